"""Look for every mistake in data, with file, line or id, and remedy; then count what there is, and draw some.

nlnet-d2 check annotations.json images/
nlnet-d2 check train.csv videos/ --label-map labels.pbtxt
nlnet-d2 check folder/                      annotations.csv, labels.pbtxt, videos/ and, if there, boxes.csv
nlnet-d2 check coco_2017_val                a data set that Detectron2 or nlnet_d2 knows by name

Exit code 0 where the data can be used, 3 where they cannot.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog

from nlnet_d2.data.ava_check import check_ava, format_report
from nlnet_d2.data.check import check_coco, files_of
from nlnet_d2.data.datasets.ava import AvaSource, register_ava
from nlnet_d2.data.datasets.coco import register_coco_data
from nlnet_d2.data.errors import DataError
from nlnet_d2.data.statistics import statistics_of
from nlnet_d2.engine.config import suggest
from nlnet_d2.engine.errors import ConfigError, exit_code
from nlnet_d2.evaluation.gallery import draw_samples


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a JSON or CSV file, a folder, or a name")
    parser.add_argument("folder", nargs="?", help="where the images or videos of the file are")
    parser.add_argument(
        "--picture", default="samples.png", metavar="PNG", help="draw samples there ('': do not)"
    )
    parser.add_argument("--samples", type=int, default=12, metavar="N", help="how many (default: 12)")
    parser.add_argument(
        "--limit", type=int, default=50, metavar="N", help="print so many problems (default: 50)"
    )
    parser.add_argument("--decode", action="store_true", help="decode every image or key frame (slow)")
    images = parser.add_argument_group("images in COCO format")
    images.add_argument(
        "--masks", choices=("polygon", "bitmask"), help="check for a training of masks, given in this form"
    )
    images.add_argument("--keypoints", action="store_true", help="check for a training of keypoints")
    images.add_argument("--unlabelled", action="store_true", help="a test set, which needs no annotations")
    clips = parser.add_argument_group("clips in AVA's format")
    add_clip_options(clips)
    return parser.parse_args(argv)


def add_clip_options(parser) -> None:
    """The fields of ``AvaSource`` beside its annotations and videos."""
    parser.add_argument("--label-map", help="all classes (.pbtxt)")
    parser.add_argument("--boxes", nargs="*", default=[], help="detected people (.csv)")
    parser.add_argument("--excluded", help="key frames that are left out (.csv)")
    parser.add_argument("--frame-list", help="frames of the videos (.csv of PySlowFast)")
    parser.add_argument("--fps", type=float, default=30.0, help="frames per second")
    parser.add_argument("--start-second", type=float, default=0.0, help="time at which the videos begin")


def clip_source(annotations: str, videos: str, args: argparse.Namespace) -> AvaSource:
    """The files that the options of ``add_clip_options`` name."""
    return AvaSource(
        annotations=annotations,
        label_map=args.label_map,
        videos=videos,
        boxes=tuple(args.boxes),
        excluded=args.excluded,
        frame_list=args.frame_list,
        fps=args.fps,
        start_second=args.start_second,
    )


def check(args: argparse.Namespace) -> None:
    """Print problems and statistics, and draw samples.

    Raises:
        ConfigError: the arguments name no data.
        DataError: the data cannot be used.
    """
    files = files_of(args.data) if args.data in DatasetCatalog else _files_given(args)
    if files is None:
        raise ConfigError(f"{args.data} is in neither format, COCO's or AVA's")
    clips = isinstance(files, AvaSource)
    problems = _check_clips(files, args) if clips else _check_images(*files, args)
    if problems:
        raise DataError(f"{problems} problem(s), see above; statistics and pictures come when there are none")
    if args.data not in DatasetCatalog:
        register_ava(args.data, files) if clips else register_coco_data(args.data, *files)
    print(f"\n{statistics_of(args.data)}")
    if args.picture:
        draw_samples(args.data, args.picture, args.samples)
        print(f"\nsamples with their ground truth: {args.picture}")


def _files_given(args: argparse.Namespace) -> AvaSource | tuple[str, str]:
    """The files that are named on the command line."""
    path = Path(args.data)
    if (path / "annotations.csv").is_file():
        args.label_map = args.label_map or str(path / "labels.pbtxt")
        args.boxes = args.boxes or [str(file) for file in [path / "boxes.csv"] if file.exists()]
        return clip_source(str(path / "annotations.csv"), args.folder or str(path / "videos"), args)
    if path.is_dir():
        raise ConfigError(
            f"{path} holds no annotations.csv: name a JSON or CSV file, and then its images or videos"
        )
    if path.suffix not in (".json", ".csv"):
        if path.is_file():
            raise ConfigError(f"{path}: expected a name that ends in .json or .csv")
        hint = suggest(args.data, DatasetCatalog.list(), "correct the path")
        raise ConfigError(f"{args.data} is no file, folder or data set; {hint}")
    if not args.folder:
        raise ConfigError(f"{path}: name the folder of its images or videos too")
    if path.suffix == ".json":
        return args.data, args.folder
    if not args.label_map:
        raise ConfigError(f"{path}: name its classes too: --label-map labels.pbtxt")
    return clip_source(args.data, args.folder, args)


def _check_images(json_file: str, folder: str, args: argparse.Namespace) -> int:
    """Print the problems; returns the number of errors."""
    findings = check_coco(json_file, folder, not args.unlabelled, args.masks, args.keypoints, args.decode)
    errors = [finding for finding in findings if finding.severity == "error"]
    for finding in [*errors, *(f for f in findings if f.severity != "error")][: args.limit]:
        print(f"{finding.severity}: {finding}")
    if len(findings) > args.limit:
        print(f"... and {len(findings) - args.limit} more (--limit)")
    print(f"{len(errors)} errors, {len(findings) - len(errors)} warnings")
    return len(errors)


def _check_clips(source: AvaSource, args: argparse.Namespace) -> int:
    """Print the videos and the problems; returns the number of these."""
    videos, findings = check_ava(source, args.decode)
    print(format_report(videos, findings, args.limit))
    return len(findings)


def main(argv: Sequence[str]) -> int:
    return exit_code(check, parse_arguments(argv))
