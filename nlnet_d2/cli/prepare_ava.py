"""Check data in AVA's format, per video, and say what is missing; index the videos; convert boxes.

    %(prog)s --dataset ava_v2.2_val
    %(prog)s --annotations train.csv --label-map labels.pbtxt --videos videos/ --fps 25 --index
    %(prog)s --convert-boxes ava_dense_proposals_val.FAIR.recall_93.9.pkl boxes.csv

Exit code 0 where the data can be used, 3 where something is wrong.
"""

import argparse
import logging
from collections.abc import Sequence

from nlnet_d2.checkpoint.read import read_tensors
from nlnet_d2.cli.check import add_clip_options, clip_source
from nlnet_d2.data.ava_check import check_ava, format_report
from nlnet_d2.data.datasets.ava import ava_source
from nlnet_d2.data.datasets.ava_files import write_people
from nlnet_d2.data.errors import DataError
from nlnet_d2.data.video_folder import write_index
from nlnet_d2.engine.errors import exit_code


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
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
    parser.add_argument("--videos", help="folder of videos, or of folders of frames")
    add_clip_options(parser)
    parser.add_argument("--decode", action="store_true", help="decode every key frame (slow)")
    parser.add_argument(
        "--index", action="store_true", help="keep what was found, so that a run starts faster"
    )
    args = parser.parse_args(argv)
    if args.annotations and not (args.label_map and args.videos):
        parser.error("--annotations needs --label-map and --videos")
    return args


def run(args: argparse.Namespace) -> None:
    if args.convert_boxes:
        pickle, path = args.convert_boxes
        people = {name: boxes.numpy() for name, boxes in read_tensors(pickle).items()}
        print(f"{write_people(path, people, source=pickle)} people written to {path}")
        return
    given = args.annotations and clip_source(args.annotations, args.videos, args)
    source = given or ava_source(args.dataset)
    videos, findings = check_ava(source, args.decode)
    print(format_report(videos, findings))
    if args.index:
        print(f"index: {write_index(source.videos, [v.video for v in videos if v.readable], source.fps)}")
    if findings:
        raise DataError(f"{len(findings)} problem(s) in the data, see above")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return exit_code(run, args)
