"""Prediction from the command line: ``tools/demo.py`` is this ``main``."""

import argparse
import logging
import signal
from collections.abc import Iterator, Sequence
from itertools import groupby

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nlnet_d2.data.errors import DataError
from nlnet_d2.data.frame_reader import VideoFile
from nlnet_d2.engine.errors import ConfigError, exit_code
from nlnet_d2.inference.config import action_classes, object_classes, predict_config
from nlnet_d2.inference.outputs import plan_outputs, write_actions, write_objects
from nlnet_d2.inference.predictor import Prediction, build_predictor, takes_clips
from nlnet_d2.inference.sources import TICKS, Failures, Picture, Source, Video, find_sources

logger = logging.getLogger(__name__)


def argument_parser(description: str | None = None) -> argparse.ArgumentParser:
    """The flags of a prediction."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="C", help="config of the model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--input",
        nargs="+",
        metavar="SOURCE",
        help="images, videos, folders, globs, or the number of a webcam",
    )
    what.add_argument("--video", metavar="FILE", help="a video for an action model")
    parser.add_argument("--output", required=True, help="a folder; or, for one picture or video, a file")
    parser.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="pictures or clips at once (default: 4)"
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="P",
        help="do not draw what scores less (default: 0.5)",
    )
    clips = parser.add_argument_group("clips")
    clips.add_argument("--people-config", metavar="C", help="config of a detector that finds the people")
    clips.add_argument("--people-weights", metavar="FILE", help="weights of that detector")
    clips.add_argument("--boxes", metavar="CSV", help="instead of a detector: the people, in AVA's format")
    clips.add_argument(
        "--label-map", metavar="PBTXT", help="names of the actions (default: of the config's data)"
    )
    clips.add_argument(
        "--every",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="from one key frame to the next (default: 1)",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options, such as MODEL.WEIGHTS W"
    )
    return parser


def main(argv: Sequence[str] | None = None, description: str | None = None) -> int:
    """Predict as the command line says; returns the exit code (see ``engine/errors.py``)."""
    args = argument_parser(description).parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("nlnet_d2.inference").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _leave)
    with logging_redirect_tqdm():
        return exit_code(run, args)


def _leave(number: int, frame) -> None:
    """End as by Ctrl-C: the files that are being written are finished."""
    raise SystemExit(128 + number)


def run(args: argparse.Namespace) -> None:
    """Predict, and write annotated pictures and videos beside the results.

    Raises:
        ConfigError, CheckpointError: nothing was read or written.
        DataError: some of the input could not be read; the rest is done.
    """
    if not 0 <= args.confidence_threshold <= 1:
        raise ConfigError(f"--confidence-threshold: expected 0 to 1, got {args.confidence_threshold:g}")
    sources = [Video(args.video)] if args.video else find_sources(args.input)
    cfg = predict_config(args.config_file, _options(args))
    is_action = takes_clips(cfg)
    if args.video and not is_action:
        raise ConfigError(
            f"--video is for clips, but {cfg.MODEL.META_ARCHITECTURE} takes pictures: name a config of "
            "actions, or give the video as --input to predict each of its frames"
        )
    classes = action_classes(cfg, args.label_map) if is_action else object_classes(cfg)
    predictor = build_predictor(cfg, batch_size=args.batch_size, boxes=args.boxes, every=args.every)
    predictor.require(sources)
    outputs = plan_outputs(args.output, sources, ".csv" if is_action else ".json", args.boxes)
    failures, seen = Failures(), set()

    def predict(*some: Source) -> Iterator[Prediction]:
        for prediction in _with_progress(predictor(some, failures), some):
            seen.add(prediction.source)
            yield prediction

    try:
        if is_action:
            write_actions(outputs, predict, failures, classes, args.confidence_threshold)
        else:
            write_objects(outputs, predict(*sources), classes, args.confidence_threshold)
    finally:  # a camera is always interrupted
        results = outputs.results if seen else "none"
        logger.info("Read and annotated %d of %d inputs; results: %s", len(seen), len(sources), results)
    failures.raise_any(sources)


def _options(args: argparse.Namespace) -> list[str]:
    """Config options for the flags about people, and those of the command line."""
    attached = (args.people_config, args.people_weights)
    if any(attached) and (not all(attached) or args.boxes):
        raise ConfigError(
            "people come from --people-config with --people-weights, or --boxes, or from the model itself"
        )
    options = ["MODEL.PEOPLE.NAME", ""] if args.boxes else []
    if all(attached):
        options = ["MODEL.PEOPLE.NAME", "FrozenDetector", "MODEL.PEOPLE.CONFIG_FILE", args.people_config]
        options += ["MODEL.PEOPLE.WEIGHTS", args.people_weights]
    return [*options, *args.opts]


def _with_progress(predictions: Iterator[Prediction], sources: Sequence[Source]) -> Iterator[Prediction]:
    """The same, while a bar on the terminal counts pictures or seconds."""
    pictures = all(isinstance(source, Picture) for source in sources)
    total = sum(_length(source) for source in sources)
    with tqdm(total=round(total) or None, unit="" if pictures else "s", disable=None) as bar:
        before = 0.0
        for source, group in groupby(predictions, lambda prediction: prediction.source):
            for prediction in group:
                yield prediction
                bar.update(round(before + prediction.second) - bar.n)
            before += _length(source)
            bar.update(round(before) - bar.n)


def _length(source: Source) -> float:
    """1 for a picture, seconds of a video; 0 where it is unknown."""
    if isinstance(source, Picture):
        return 1
    try:
        return VideoFile.open(source.path, TICKS).num_frames / TICKS if isinstance(source, Video) else 0
    except DataError:
        return 0
