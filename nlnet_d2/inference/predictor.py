"""What a model finds in pictures, videos or a camera: objects frame by frame, or actions on key frames."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from nlnet_d2.data.clip_transforms import ResizeShorterSide
from nlnet_d2.data.datasets.ava import is_ava
from nlnet_d2.data.frame_reader import VideoFile
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.engine.weights import load_complete
from nlnet_d2.inference.clips import Clip, KeyFrame, PeopleFile, cut_clips, regular_key_frames, stretches
from nlnet_d2.inference.config import predict_config
from nlnet_d2.inference.sources import Camera, Failures, Picture, Source, all_frames, find_sources, frames_of

logger = logging.getLogger(__name__)

AVA_FPS = 30.0
# Formats of pictures that lose nothing where they are read as RGB.
FROM_RGB = ("BGR", "RGB", "L", "YUV-BT.601")


@dataclass(frozen=True)
class Prediction:
    """What was found in a picture, a frame of a video, or around a key frame.

    Attributes:
        source: the file or camera.
        second: from its beginning; 0 for a picture.
        image: (H, W, 3) uint8 RGB, the picture or (key) frame.
        instances: on the CPU, in pixels of it. Of actions: ``pred_boxes``, ``scores`` (people, classes), and
            ``person_scores`` where the model found the people.
    """

    source: Source
    second: float
    image: np.ndarray
    instances: Instances


def predict(
    model_or_config: nn.Module | CfgNode | str | Path,
    source: str | Path | int | Sequence,
    *,
    weights: str | Path | None = None,
    config: CfgNode | str | Path | None = None,
    batch_size: int = 4,
    boxes: str | Path | None = None,
    every: float = 1.0,
) -> Iterator[Instances]:
    """Predictions for pictures or frames in turn, or for key frames where the model takes clips.

    Args:
        model_or_config: a config or its file; or a model, as it is, with its ``config``.
        weights: of the model of a config; its MODEL.WEIGHTS unless given.
        source: an image or video file, a folder or glob of them, the number of a webcam, or a list of these.
        batch_size: pictures or clips at once.
        boxes: CSV in AVA's format with the people of clips; else the model finds them (MODEL.PEOPLE).
        every: seconds from one key frame to the next, without ``boxes``.

    Raises:
        ConfigError, CheckpointError: at once; the model cannot be built, or does not suit the source.
        DataError: nothing to read; or, when all else is done, files that could not be read to their end.
    """
    sources = find_sources(source)
    if weights is not None:
        model_or_config = _with_weights(model_or_config, weights)
    predictor = build_predictor(model_or_config, config, batch_size=batch_size, boxes=boxes, every=every)
    predictor.require(sources)
    return (prediction.instances for prediction in run(predictor, sources))


def run(predictor: "ObjectPredictor | ActionPredictor", sources: Sequence[Source]) -> Iterator[Prediction]:
    """Predictions for all sources; a DataError at the end names those that failed."""
    failures = Failures()
    yield from predictor(sources, failures)
    failures.raise_any(sources)


def build_predictor(
    model_or_config: nn.Module | CfgNode | str | Path,
    config: CfgNode | str | Path | None = None,
    *,
    batch_size: int = 4,
    boxes: str | Path | None = None,
    every: float = 1.0,
) -> "ObjectPredictor | ActionPredictor":
    """The predictor for a model; arguments and errors are those of ``predict``."""
    if batch_size < 1 or not every > 0:
        raise ConfigError(f"expected a batch size and seconds above 0, got {batch_size} and {every}")
    if isinstance(model_or_config, nn.Module):
        if config is None:
            raise ConfigError("a model needs its config, which says how pictures are prepared: config=...")
        model, cfg = model_or_config, _read(config)
    else:
        cfg = _read(model_or_config)
        model = trained_model(cfg)
    if takes_clips(cfg):
        return ActionPredictor(model.eval(), cfg, batch_size, boxes, every)
    if boxes:
        raise ConfigError(f"{cfg.MODEL.META_ARCHITECTURE} takes no boxes of people: it is no action model")
    return ObjectPredictor(model.eval(), cfg, batch_size)


def _read(config: CfgNode | str | Path) -> CfgNode:
    return config if isinstance(config, CfgNode) else predict_config(str(config))


def _with_weights(config: CfgNode | str | Path, weights: str | Path) -> CfgNode:
    if isinstance(config, nn.Module):
        raise ConfigError("weights are for a config; a model is taken as it is (see nlnet_d2.load_weights)")
    cfg = _read(config).clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights)
    return cfg


def trained_model(cfg: CfgNode) -> nn.Module:
    """The model of a config with MODEL.WEIGHTS, complete.

    Raises:
        ConfigError, CheckpointError: it cannot be built, or the weights do not fit.
    """
    try:
        model = build_model(cfg)
    except (ValueError, AssertionError) as error:  # Detectron2 asserts
        raise ConfigError(f"the model of this config cannot be built: {error}") from error
    load_complete(model, cfg)
    return model


def takes_clips(cfg: CfgNode) -> bool:
    """Whether the model of a config is one for clips, not for pictures."""
    return getattr(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), "takes_clips", False)


class ObjectPredictor:
    """Objects in pictures and in every frame of videos, with the preparation of Detectron2's tests.

    Args:
        model: maps list[dict] with ``image``, ``height``, ``width`` to list[dict] with ``instances``.
        cfg: its config.
        batch_size: pictures at once; one, where a camera waits.

    Raises:
        ConfigError: the model takes more than colours, such as transparency.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode, batch_size: int = 4):
        self.model, self.batch_size = model, batch_size
        self.resize = T.AugmentationList(detection_utils.build_augmentation(cfg, is_train=False))
        self.format = cfg.INPUT.FORMAT
        if self.format not in FROM_RGB:
            raise ConfigError(f"INPUT.FORMAT: pictures are read as {', '.join(FROM_RGB)}, got {self.format}")

    def require(self, sources: Sequence[Source]) -> None:
        """All kinds of sources will do."""

    def __call__(self, sources: Sequence[Source], failures: Failures) -> Iterator[Prediction]:
        frames = all_frames(sources, failures)
        size = _batch_size(self.batch_size, sources)
        while batch := list(islice(frames, size)):
            found = self.detect([image for *_, image in batch])
            yield from (Prediction(*frame, instances) for frame, instances in zip(batch, found, strict=True))

    @torch.no_grad()
    def detect(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """For each (H, W, 3) uint8 RGB image its instances, on the CPU, in its pixels."""
        outputs = self.model([self.prepare(image) for image in images])
        if "instances" not in outputs[0]:
            raise ConfigError(f"expected a model that finds instances, but this one gives {list(outputs[0])}")
        return [output["instances"].to("cpu") for output in outputs]

    def prepare(self, image: np.ndarray) -> dict:
        """The model's input for an (H, W, 3) uint8 RGB image."""
        prepared = T.AugInput(detection_utils.convert_PIL_to_numpy(Image.fromarray(image), self.format))
        self.resize(prepared)
        pixels = torch.from_numpy(prepared.image.transpose(2, 0, 1).copy())
        return {"image": pixels, "height": image.shape[0], "width": image.shape[1]}


class ActionPredictor:
    """Actions of people in videos, on key frames; no person is followed from one to the next.

    Clips are seen at the frame rate of the data set that the config names, else AVA's.

    Args:
        model: an ``ActionRCNN``.
        cfg: its config.
        batch_size: clips at once; one, where a camera waits.
        boxes: CSV of people, see ``PeopleFile``; None: the model finds them.
        every: seconds from one key frame to the next, without ``boxes``.

    Raises:
        ConfigError: neither boxes nor a model that finds people.
        DataError: see ``PeopleFile``.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: CfgNode,
        batch_size: int = 4,
        boxes: str | Path | None = None,
        every: float = 1.0,
    ):
        if boxes is None and not cfg.MODEL.PEOPLE.NAME:
            raise ConfigError(
                "nobody says where the people are: name a detector (--people-config and --people-weights), "
                "a CSV of boxes (--boxes), or a model that finds them (MODEL.PEOPLE.NAME)"
            )
        self.model, self.batch_size, self.every = model, batch_size, every
        self.clip, self.fps = cfg.INPUT.CLIP, clip_rate(cfg)
        self.people = None if boxes is None else PeopleFile(boxes, self.clip.PERSON_SCORE_TEST)

    def require(self, sources: Sequence[Source]) -> None:
        """
        Raises:
            ConfigError: a source has no clips.
        """
        for source in sources:
            if isinstance(source, Picture):
                raise ConfigError(f"{source.path}: an action model needs a video, and this is none")
            if isinstance(source, Camera) and self.people:
                raise ConfigError(f"{source.name}: boxes on file are for videos, not for a camera")

    def __call__(self, sources: Sequence[Source], failures: Failures) -> Iterator[Prediction]:
        for source in sources:
            with failures.kept(source):
                yield from self._of_source(source, failures)

    def _of_source(self, source: Source, failures: Failures) -> Iterator[Prediction]:
        clips, people, count = self._clips(source, failures), 0, 0
        while batch := list(islice(clips, _batch_size(self.batch_size, [source]))):
            for clip, instances in zip(batch, self.detect(batch), strict=True):
                count, people = count + 1, people + len(instances)
                yield Prediction(source, clip.key.second, clip.image, instances)
        if not people and source not in failures.reasons:
            hint = "; people of a CSV count from INPUT.CLIP.PERSON_SCORE_TEST on" if self.people else ""
            logger.warning("%s: nobody was found on its %d key frames%s", source.name, count, hint)

    def _clips(self, source: Source, failures: Failures) -> Iterator[Clip]:
        size = ResizeShorterSide(self.clip.SIZE_TEST, self.clip.SIZE_TEST)
        frames = frames_of(source, self.fps, failures)
        # A camera is not seen while the model works: clips start anew behind a pause in which key frames were
        # missed. Clips of it would show nothing, and take the time in which the next ones are missed.
        pause = self.every * self.fps if isinstance(source, Camera) else math.inf
        for start, stretch in stretches(frames, pause):
            yield from cut_clips(
                stretch,
                (key for key in self._key_frames(source) if key.slot >= start),
                self.clip.NUM_FRAMES,
                self.clip.STRIDE,
                lambda image: size.get_transform(image).apply_image(image),
            )

    def _key_frames(self, source: Source) -> Iterator[KeyFrame]:
        if self.people is None:
            return regular_key_frames(self.every, self.fps)
        length = VideoFile.open(source.path, self.fps).num_frames
        return iter(self.people.key_frames(Path(source.path).stem, self.fps, length))

    @torch.no_grad()
    def detect(self, clips: Sequence[Clip]) -> list[Instances]:
        """For each clip its people, on the CPU, in pixels of its key frame."""
        return [
            output["instances"].to("cpu") for output in self.model([prepare_clip(clip) for clip in clips])
        ]


def prepare_clip(clip: Clip) -> dict:
    """The model's input for a clip."""
    frames = torch.from_numpy(np.ascontiguousarray(clip.frames.transpose(3, 0, 1, 2)))  # (3, T, h, w)
    inputs = {"clip": frames, "height": clip.image.shape[0], "width": clip.image.shape[1]}
    if clip.key.boxes is None:
        return inputs | {"key_frame": torch.from_numpy(np.ascontiguousarray(clip.image.transpose(2, 0, 1)))}
    height, width = frames.shape[2:]
    return inputs | {"boxes": Boxes(torch.from_numpy(clip.key.boxes) * torch.tensor([width, height] * 2))}


def _batch_size(wanted: int, sources: Sequence[Source]) -> int:
    return 1 if any(isinstance(source, Camera) for source in sources) else wanted


def clip_rate(cfg: CfgNode) -> float:
    """Frames per second of the clips that a model was trained on, as its data sets say; else AVA's."""
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if is_ava(name):
            return MetadataCatalog.get(name).source.fps
    logger.warning("The config names no data set of clips: they are seen at AVA's %g frames/s", AVA_FPS)
    return AVA_FPS
