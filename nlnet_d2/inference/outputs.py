"""What a prediction leaves on the disk: an annotated picture or video per source, and one file of results."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from detectron2.data import Metadata
from PIL import Image

from nlnet_d2.data.datasets.label_map import LabelMap
from nlnet_d2.data.video_folder import VIDEO_SUFFIXES
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.inference.drawing import ActionOverlay, draw_objects, enlarge
from nlnet_d2.inference.predictor import Prediction
from nlnet_d2.inference.sources import PICTURE_SUFFIXES, TICKS, Camera, Failures, Picture, Source, Video
from nlnet_d2.inference.writing import VideoWriter, ava_detections, coco_results

WRITTEN_SUFFIXES = {"picture": (".jpg", ".png"), "video": (".mp4", ".mkv", ".mov")}


@dataclass(frozen=True)
class Outputs:
    """Names of the files: of the results, and of each source's annotated picture or video."""

    results: Path
    annotated: dict[Source, Path]


def plan_outputs(
    output: str | Path, sources: Sequence[Source], suffix: str, boxes: str | None = None
) -> Outputs:
    """In a folder, or, for one source, in a file with the results beside it. Makes the folder.

    Args:
        suffix: of the results.
        boxes: another file that is read.

    Raises:
        ConfigError: two files would have one name, or replace an input; the folder cannot be made.
    """
    output = Path(output)
    if output.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES:
        _require_one_of_its_kind(output, sources)
        outputs = Outputs(output.with_suffix(suffix), {sources[0]: output})
    else:
        annotated = {source: output / _file_name(source) for source in sources}
        outputs = Outputs(output / f"predictions{suffix}", annotated)
    inputs = [source.path for source in sources if not isinstance(source, Camera)]
    inputs = {Path(path).resolve() for path in (*inputs, boxes) if path}
    for path, times in Counter([*outputs.annotated.values(), outputs.results]).items():
        if times > 1 or path.resolve() in inputs:
            if times > 1:
                what, remedy = f"{times} inputs would become", "predict them one after the other"
            else:
                what, remedy = "an input would be replaced by", "name another folder"
            raise ConfigError(f"--output {output}: {what} {path}; {remedy}")
    try:
        outputs.results.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: expected a place for a folder, got {error}") from error
    return outputs


def _require_one_of_its_kind(output: Path, sources: Sequence[Source]) -> None:
    kind = "picture" if output.suffix.lower() in PICTURE_SUFFIXES else "video"
    fits = isinstance(sources[0], Picture) == (kind == "picture")
    if len(sources) != 1 or not fits or output.suffix not in WRITTEN_SUFFIXES[kind]:
        suffixes = ", ".join(WRITTEN_SUFFIXES[kind])
        raise ConfigError(f"--output {output}: expected a folder; a file ({suffixes}) is for one {kind}")


def _file_name(source: Source) -> str:
    return source.name if isinstance(source, Picture) else f"{Path(source.name).stem}.mp4"


def write_objects(
    outputs: Outputs, predictions: Iterable[Prediction], classes: Metadata, min_score: float
) -> None:
    """Pictures and videos with their objects, and COCO results.

    Args:
        predictions: of one source after the other.
        min_score: objects below it are in the results, but not drawn.
    """
    with coco_results(outputs.results, classes) as record:
        for source, found in groupby(predictions, lambda prediction: prediction.source):
            images = _with_objects(found, record, classes, min_score)
            if isinstance(source, Picture):
                for _, image in images:
                    Image.fromarray(image).save(outputs.annotated[source])
            else:
                _write_video(outputs.annotated[source], images)


def _with_objects(
    predictions: Iterable[Prediction], record: Callable, classes: Metadata, min_score: float
) -> Iterator[tuple[float, np.ndarray]]:
    for prediction in predictions:
        record(prediction)
        yield prediction.second, draw_objects(prediction.image, prediction.instances, classes, min_score)


def write_actions(
    outputs: Outputs,
    predict: Callable[[Source], Iterator[Prediction]],
    failures: Failures,
    classes: LabelMap,
    min_score: float,
) -> None:
    """Videos with the actions of their people, and detections in AVA's format.

    What was found holds until the next key frame. A video is decoded a second time for it, because a clip
    reaches beyond its key frame: one picture is in memory, instead of all that wait for their clip. A camera
    cannot be seen twice: of it, the key frames alone are written.

    Args:
        predict: key frames of a source.
        min_score: actions below it are in the results, but not named in the picture.
    """
    names = list(classes.names.values())

    def overlay(prediction: Prediction) -> ActionOverlay:
        record(prediction)
        return ActionOverlay(prediction.instances, names, min_score)

    with ava_detections(outputs.results, classes) as record:
        for source, path in outputs.annotated.items():
            found = predict(source)
            if isinstance(source, Video):
                images = _between_key_frames(source, found, overlay)
            else:
                images = ((p.second, overlay(p).over(p.image)) for p in found)
            with failures.kept(source):
                _write_video(path, images)


def _between_key_frames(
    source: Video, predictions: Iterator[Prediction], overlay: Callable[[Prediction], ActionOverlay]
) -> Iterator[tuple[float, np.ndarray]]:
    """(second, annotated picture) of all frames."""
    shown, coming = None, next(predictions, None)
    if coming is None:  # why was said, when it failed
        return
    for tick, image in source.frames(TICKS):
        while coming is not None and coming.second * TICKS < tick + 1:
            shown, coming = overlay(coming), next(predictions, None)
        yield tick / TICKS, shown.over(image) if shown else enlarge(image)


def _write_video(path: Path, images: Iterable[tuple[float, np.ndarray]]) -> None:
    with VideoWriter(path) as video:
        for second, image in images:
            video.write(second, image)
