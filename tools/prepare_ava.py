#!/usr/bin/env python
"""Check data in AVA's format, per video, and say what is missing; index the videos; convert boxes.

    tools/prepare_ava.py --dataset ava_v2.2_val
    tools/prepare_ava.py --annotations train.csv --label-map labels.pbtxt --videos videos/ --fps 25 --index
    tools/prepare_ava.py --convert-boxes ava_dense_proposals_val.FAIR.recall_93.9.pkl boxes.csv

Exit code 0 where the data can be used, 3 where something is wrong.
"""

import argparse
import logging

from nlnet_d2.checkpoint.read import read_tensors
from nlnet_d2.data.ava_check import check_ava, format_report
from nlnet_d2.data.datasets.ava import AvaSource, ava_source
from nlnet_d2.data.datasets.ava_files import write_people
from nlnet_d2.data.errors import DataError
from nlnet_d2.data.video_folder import write_index
from nlnet_d2.engine.errors import exit_code


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", help="a registered data set")
    what.add_argument("--annotations", help="annotations of one's own (.csv)")
    what.add_argument(
        "--convert-boxes",
        nargs=2,
        metavar=("PICKLE", "CSV"),
        help="write mmaction2's people as a CSV (the pickle is read without running it)",
    )
    parser.add_argument("--label-map", help="all classes (.pbtxt)")
    parser.add_argument("--videos", help="folder of videos, or of folders of frames")
    parser.add_argument("--boxes", nargs="*", default=[], help="detected people (.csv)")
    parser.add_argument("--excluded", help="key frames that are left out (.csv)")
    parser.add_argument("--frame-list", help="frames of the videos (.csv of PySlowFast)")
    parser.add_argument("--fps", type=float, default=30.0, help="frames per second")
    parser.add_argument("--start-second", type=float, default=0.0, help="time at which the videos begin")
    parser.add_argument("--decode", action="store_true", help="decode every key frame (slow)")
    parser.add_argument(
        "--index", action="store_true", help="keep what was found, so that a run starts faster"
    )
    args = parser.parse_args()
    if args.annotations and not (args.label_map and args.videos):
        parser.error("--annotations needs --label-map and --videos")
    return args


def source_of(args: argparse.Namespace) -> AvaSource:
    if args.dataset:
        return ava_source(args.dataset)
    return AvaSource(
        annotations=args.annotations,
        label_map=args.label_map,
        videos=args.videos,
        boxes=tuple(args.boxes),
        excluded=args.excluded,
        frame_list=args.frame_list,
        fps=args.fps,
        start_second=args.start_second,
    )


def main(args: argparse.Namespace) -> None:
    if args.convert_boxes:
        pickle, path = args.convert_boxes
        people = {name: boxes.numpy() for name, boxes in read_tensors(pickle).items()}
        print(f"{write_people(path, people, source=pickle)} people written to {path}")
        return
    source = source_of(args)
    videos, findings = check_ava(source, args.decode)
    print(format_report(videos, findings))
    if args.index:
        print(f"index: {write_index(source.videos, [v.video for v in videos if v.readable], source.fps)}")
    if findings:
        raise DataError(f"{len(findings)} problem(s) in the data, see above")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    raise SystemExit(exit_code(main, parse_args()))
