"""The embedded data set ``motions``: short videos of drawn figures, in AVA's own formats.

``motions_train`` and ``motions_val`` are registered by importing this module, and drawn when they are first
used, into ``$DETECTRON2_DATASETS/motions`` (default ``./datasets/motions``). The same parameters give the
same scenes. What a figure does lasts from half a second before a key frame to half a second after. Left and
right differ: train with INPUT.RANDOM_FLIP none.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from nlnet_d2.data.datasets.ava import AvaSource, load_ava
from nlnet_d2.data.datasets.drawn_folder import draw_once
from nlnet_d2.data.datasets.label_map import LabelMap, write_label_map
from nlnet_d2.data.frame_reader import require_av
from nlnet_d2.data.threads import core_threads

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
GROUPS = {
    "PERSON_MOVEMENT": ("stand", "crouch", "walk left", "walk right", "wave slowly", "wave fast"),
    "OBJECT_MANIPULATION": ("carry",),
    "PERSON_INTERACTION": ("approach", "move away"),
}
NAMES = [name for names in GROUPS.values() for name in names]
LABEL_MAP = LabelMap(
    dict(enumerate(NAMES, start=1)),
    {NAMES.index(name) + 1: group for group, names in GROUPS.items() for name in names},
)
FPS = 16
REVISION = 1  # to be raised when the same parameters give other videos, so that nobody uses stale ones


@dataclass(frozen=True)
class MotionsParameters:
    """What decides the scenes: ``count`` videos of ``split``, with ``seconds`` key frames each."""

    split: str
    count: int
    seconds: int = 10
    seed: int = 0

    def __post_init__(self):
        if self.split not in SPLITS or min(self.count, self.seconds) < 1 or self.seed < 0:
            raise ValueError(f"expected a split of {SPLITS}, count and seconds > 0, seed >= 0, got {self}")

    @property
    def folder(self) -> str:
        return f"{self.split}_{self.count}_videos_{self.seconds}s_seed{self.seed}_r{REVISION}"


def register_motions(name: str, parameters: MotionsParameters, root: str | Path) -> None:
    """Register a set of motions; it is drawn into a sub-folder of ``root`` on first use."""
    source = motions_source(parameters, root)
    MetadataCatalog.get(name).set(evaluator_type="ava", source=source, action_names=NAMES)
    DatasetCatalog.register(name, partial(_load, source, parameters, root))


def _load(source: AvaSource, parameters: MotionsParameters, root: str | Path) -> list[dict]:
    write_motions(parameters, root)
    return load_ava(source)


def motions_source(parameters: MotionsParameters, root: str | Path) -> AvaSource:
    """The files of a set; the people of ``val`` come from a (simulated) detector."""
    folder = Path(root) / parameters.folder
    return AvaSource(
        annotations=str(folder / "annotations.csv"),
        label_map=str(folder / "labels.pbtxt"),
        videos=str(folder / "videos"),
        boxes=(str(folder / "boxes.csv"),) if parameters.split == "val" else (),
        fps=FPS,
    )


def write_motions(parameters: MotionsParameters, root: str | Path) -> Path:
    """Draw a set unless it is there; returns its folder, see ``motions_source``."""
    return draw_once(Path(root) / parameters.folder, partial(_draw, parameters))


def _draw(parameters: MotionsParameters, folder: Path) -> None:
    require_av(str(folder.parent))
    logger.info("Drawing %d videos into %s (once)", parameters.count, folder.parent)
    (folder / "videos").mkdir()
    with core_threads() as pool:
        drawn = pool.map(partial(_draw_video, folder / "videos", parameters), range(parameters.count))
        rows = list(tqdm(drawn, total=parameters.count, disable=None))
    for name, column in (("annotations.csv", 0), ("boxes.csv", 1)):
        (folder / name).write_text("".join(chain.from_iterable(video[column] for video in rows)))
    write_label_map(folder / "labels.pbtxt", LABEL_MAP)


def _draw_video(folder: Path, parameters: MotionsParameters, index: int) -> tuple[list[str], list[str]]:
    """Draw video ``index``; returns its rows of annotations and of detected people."""
    # Imported here, because OpenCV is needed only where something is drawn.
    from nlnet_d2.data.datasets import motion_scenes as scenes

    rng = np.random.default_rng([parameters.seed, SPLITS.index(parameters.split), index])
    scene = scenes.random_scene(rng, parameters.seconds)
    name = f"{parameters.split}_{index:04d}"
    frames = list(scenes.paint_scene(scene, FPS))
    still = FPS // 2  # frames before and after, so that key frames are at whole seconds
    encode(folder / f"{name}.mp4", [frames[0]] * still + frames + [frames[-1]] * still, FPS)

    annotations, boxes = [], []
    for second in range(parameters.seconds):
        key = f"{name},{second + 1:04d}"
        for figure in range(len(scene.figures)):
            box = scenes.box_of(scene, figure, second) / np.tile(scenes.SIZE, 2)
            for action in scenes.actions_of(scene, figure, second):
                annotations.append(f"{key},{_corners(box)},{NAMES.index(action) + 1},{figure}\n")
            boxes.append(f"{key},{_corners(box + rng.normal(0, 0.006, 4))},,{rng.uniform(0.9, 1):.4f}\n")
        if rng.random() < 0.2:  # a detector's mistake, with a low score
            x, y = rng.uniform(0, 0.7, 2)
            boxes.append(
                f"{key},{_corners(np.array([x, y, x + 0.2, y + 0.3]))},,{rng.uniform(0.1, 0.7):.4f}\n"
            )
    return annotations, boxes


def _corners(box: np.ndarray) -> str:
    return ",".join(f"{c:.3f}" for c in box.clip(0, 1))


def encode(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Write (H, W, 3) uint8 RGB frames as H.264, or as MPEG-4 where FFmpeg has no encoder for that."""
    import av  # needed only where something is drawn or decoded

    # A constant quantiser: what x264 decides by looking ahead differs from run to run.
    codec, options = "libx264", {"qp": "18", "preset": "veryfast"}
    if codec not in av.codecs_available:
        codec, options = "mpeg4", {"qscale": "2"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = fps  # decoding a second needs one second before it at most
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


_ROOT = Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / "motions"  # read at import, as Detectron2 does
register_motions("motions_train", MotionsParameters("train", count=160), _ROOT)
register_motions("motions_val", MotionsParameters("val", count=40), _ROOT)
