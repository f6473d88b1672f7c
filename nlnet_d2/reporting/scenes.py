"""A picture or clip as a trained model sees it, for pictures of its attention."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_image_to_rgb
from torch import nn

from nlnet_d2.analysis.attention_views import View, view
from nlnet_d2.data.clip_sampler import clip_frames, key_position
from nlnet_d2.data.clip_transforms import ResizeShorterSide, transform_clip
from nlnet_d2.data.errors import DataError
from nlnet_d2.data.frame_reader import VideoFile
from nlnet_d2.data.video_folder import Video
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.inference.clips import Clip, KeyFrame
from nlnet_d2.inference.predictor import ObjectPredictor, clip_rate, prepare_clip, takes_clips
from nlnet_d2.inference.sources import PICTURE_SUFFIXES, Picture


@dataclass(frozen=True)
class Scene:
    """One input of a model.

    Attributes:
        image: (H, W, 3) uint8 RGB, the picture or key frame at full size.
        frames: (T, h, w, 3) uint8 RGB, what the network is given; T = 1 for a picture.
        sample: the model's input.
    """

    image: np.ndarray
    frames: np.ndarray
    sample: dict

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points (Q, 2), x, y in pixels of the image, as y, x or frame, y, x in pixels of ``frames``."""
        scale = np.array(self.frames.shape[1:3]) / self.image.shape[:2]
        points = points[:, ::-1] * scale
        if "clip" not in self.sample:
            return points
        key = key_position(len(self.frames)) + 0.5
        return np.insert(points, 0, key, axis=1)


def read_scene(cfg: CfgNode, path: str, second: float | None = None) -> Scene:
    """The scene of a file: an image, or for models of clips a video around a second (None: its middle).

    Raises:
        ConfigError: a picture, but the model takes clips.
        DataError: the file cannot be read, or ends before the second.
    """
    if not takes_clips(cfg):
        return picture_scene(cfg, next(Picture(path).frames(1.0))[1])
    if Path(path).suffix.lower() in PICTURE_SUFFIXES:
        raise ConfigError(f"{path}: this model takes clips; name a video")
    fps = clip_rate(cfg)
    video = VideoFile.open(path, fps)
    slot = video.num_frames // 2 if second is None else round(second * fps)
    if not 0 <= slot < video.num_frames:
        raise DataError(
            f"{path}: --second {second:g} is outside of it: it has {video.num_frames / fps:.2f} s"
        )
    return clip_scene(cfg, video, slot)


def picture_scene(cfg: CfgNode, image: np.ndarray) -> Scene:
    """The scene of an (H, W, 3) uint8 RGB image."""
    sample = ObjectPredictor(None, cfg).prepare(image)
    pixels = convert_image_to_rgb(sample["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    return Scene(image, pixels[None], sample)


def clip_scene(cfg: CfgNode, video: Video, key_frame: int) -> Scene:
    """The scene of the clip around a frame of a video."""
    options = cfg.INPUT.CLIP
    indices = clip_frames(key_frame, options.NUM_FRAMES, options.STRIDE, video.num_frames)
    full = video.read([key_frame, *indices])
    resize = ResizeShorterSide(options.SIZE_TEST, options.SIZE_TEST)
    frames, _ = transform_clip([resize], full[1:], np.zeros((0, 4), np.float32))
    second = key_frame / clip_rate(cfg)
    return Scene(full[0], frames, prepare_clip(Clip(KeyFrame(key_frame, second), full[0], frames)))


def object_points(model: nn.Module, scene: Scene, count: int, min_score: float) -> np.ndarray:
    """The centres of what the model finds, the surest first: (Q, 2), x, y in pixels of the image.

    Raises:
        ConfigError: it finds nothing with such a score.
    """
    with torch.no_grad():
        found = model([scene.sample])[0]["instances"].to("cpu")
    scores = found.person_scores if found.has("person_scores") else found.scores
    best = scores.argsort(descending=True)[:count]
    best = best[scores[best] >= min_score]
    if not len(best):
        surest = f"; the surest has {scores.max():.2f}" if len(scores) else ""
        raise ConfigError(
            f"nothing is found here with a score of {min_score:g} or more{surest}: choose a point with "
            "--point X Y, or lower --min-score"
        )
    return found.pred_boxes[best].get_centers().numpy()


def view_scene(model: nn.Module, scene: Scene, points: np.ndarray) -> View:
    """What the model's backbone looks at from points (Q, 2), x, y in pixels of the image.

    Raises:
        ConfigError: a point is outside, or the backbone has no attention.
    """
    height, width = scene.image.shape[:2]
    for x, y in points.tolist():
        if not (0 <= x <= width and 0 <= y <= height):
            raise ConfigError(
                f"--point {x:g} {y:g} is outside the picture, which is {width} x {height} pixels"
            )
    try:
        seen = view(model, scene.sample, scene.frames, scene.points(points))
    except ValueError as error:
        raise ConfigError(
            f"{error}: there is nothing to draw. Models with MODEL.CONTEXT.BLOCKS such as NonLocal or "
            "GlobalContext have attention, and those with a ViT or MViT"
        ) from error
    return seen if "clip" in scene.sample else seen.on(scene.image)
