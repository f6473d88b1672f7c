"""Files of predictions: annotated videos, COCO results and AVA detections, each written as it comes.

Without a prediction there is no file, and one of an earlier run stays.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from fractions import Fraction
from functools import cache
from itertools import count
from pathlib import Path
from typing import TextIO

import numpy as np
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json

from nlnet_d2.data.datasets.ava_files import AvaTable, detection_rows
from nlnet_d2.data.datasets.label_map import LabelMap
from nlnet_d2.data.frame_reader import require_av
from nlnet_d2.inference.predictor import Prediction
from nlnet_d2.inference.sources import Picture

TIME_BASE = Fraction(1, 1000)  # seconds; of the written videos


class VideoWriter:
    """Writes pictures with their times as H.264, or as MPEG-4 where FFmpeg has no encoder for that.

    Close it (or leave its ``with``), or the file cannot be played.
    """

    def __init__(self, path: str | Path):
        self.path, self._container, self._stream = str(path), None, None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write(self, second: float, image: np.ndarray) -> None:
        """Show (H, W, 3) uint8 RGB from ``second`` on. An odd row or column at the border is left out."""
        require_av(self.path)
        import av  # needed only where a video is read or written

        height, width = (side // 2 * 2 for side in image.shape[:2])
        if self._stream is None:
            self._open(av, height, width)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
        frame.pts, frame.time_base = round(second / TIME_BASE), TIME_BASE
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
            self._container.close()

    def _open(self, av, height: int, width: int) -> None:
        codec, options = "libx264", {"crf": "20"}
        if codec not in av.codecs_available:
            codec, options = "mpeg4", {"qscale": "3"}
        self._container = av.open(self.path, "w")
        self._stream = self._container.add_stream(codec, rate=30, options=options)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.codec_context.time_base = TIME_BASE


@contextmanager
def _at_first_use(path: str | Path, begin: str = "", end: str = "") -> Iterator[Callable[[], TextIO]]:
    """What opens a text file when it is called, the first time, and closes it after ``end``."""
    with ExitStack() as stack:

        @cache
        def file() -> TextIO:
            opened = stack.enter_context(open(path, "w", encoding="utf-8"))
            opened.write(begin)
            stack.callback(opened.write, end)
            return opened

        yield file


@contextmanager
def coco_results(path: str | Path, classes: Metadata) -> Iterator:
    """A function that adds a prediction to a file of COCO results (a list of annotations with scores).

    Image ids count from 0; ``file_name`` and, for videos, ``second`` tell which one it is.
    """
    ids = {i: id_ for id_, i in classes.get("thing_dataset_id_to_contiguous_id", {}).items()}
    numbers, separator = count(), "\n"

    def add(prediction: Prediction) -> None:
        nonlocal separator
        origin = {"file_name": prediction.source.name}
        if not isinstance(prediction.source, Picture):
            origin["second"] = prediction.second
        instances = deepcopy(prediction.instances)  # Detectron2 moves its keypoints
        results = file()
        for result in instances_to_coco_json(instances, next(numbers)):
            result["category_id"] = ids.get(result["category_id"], result["category_id"])
            results.write(separator + json.dumps(result | origin))
            separator = ",\n"

    with _at_first_use(path, "[", "\n]\n") as file:
        yield add


@contextmanager
def ava_detections(path: str | Path, classes: LabelMap) -> Iterator:
    """A function that adds a prediction to a CSV of detections in AVA's format, with all its scores.

    The video's name is that of its file, without suffix; seconds count from its beginning.
    """

    def add(prediction: Prediction) -> None:
        instances = prediction.instances
        height, width = instances.image_size
        boxes = instances.pred_boxes.tensor.double().numpy() / (width, height, width, height)
        table = AvaTable.from_scores(
            [Path(prediction.source.name).stem] * len(boxes),
            np.full(len(boxes), prediction.second),
            boxes.clip(0, 1),
            instances.scores.float().numpy(),
            list(classes.names),
        )
        file().writelines(detection_rows(table))

    with _at_first_use(path) as file:
        yield add
