"""Augmentations of clips: drawn once, applied to all frames and to the boxes.

Detectron2's augmentations draw from one frame; fvcore's transforms, which they return, take (T, H, W, 3) as
well as (H, W, 3). Added here is what Detectron2 lacks for clips: a resize without anti-aliasing, as in the
pipelines that the published weights come from, and a saturation that is each frame's own.
"""

import math
from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, ScaleTransform, Transform

SAMPLINGS = ("inverse", "uniform")
LUMA = np.array([0.299, 0.587, 0.114])  # of RGB, ITU-R BT.601


class ResizeShorterSide(T.Augmentation):
    """Resize the shorter side to a length drawn from ``low`` to ``high`` pixels, the other in proportion.

    Args:
        sampling: "uniform" in the length, or "inverse": uniform in 1 / length, which favours short ones
            (PySlowFast's training).
    """

    def __init__(self, low: int, high: int, sampling: str = "inverse"):
        super().__init__()
        if not 0 < low <= high or sampling not in SAMPLINGS:
            raise ValueError(
                f"expected 0 < low <= high and one of {SAMPLINGS}, got {low}, {high}, {sampling!r}"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self.sampling == "inverse":
            size = 1 / np.random.uniform(1 / self.high, 1 / self.low)
        else:
            size = np.random.uniform(self.low, self.high)
        size, shorter = round(size), min(height, width)
        new = [size if side == shorter else math.floor(side / shorter * size) for side in (height, width)]
        return ScaleTransform(height, width, *new, interp="bilinear")


class SaturationTransform(Transform):
    """Blend every pixel with its own grey: weight 1 leaves it, 0 makes it grey."""

    def __init__(self, weight: float):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """``img``: (..., 3) RGB in 0..255."""
        grey = (img @ LUMA)[..., None]
        return np.clip(grey + self.weight * (img - grey), 0, 255).astype(img.dtype)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def inverse(self) -> Transform:
        return NoOpTransform()


class RandomSaturation(T.Augmentation):
    """Saturation times a factor drawn from ``low`` to ``high``."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        return SaturationTransform(np.random.uniform(self.low, self.high))


def train_augmentations(
    scales: tuple[int, int], sampling: str, crop: int, flips: Sequence[T.Augmentation], color_jitter: float
) -> list[T.Augmentation]:
    """Resize, crop (0: none), flip; change brightness, contrast, saturation by ``color_jitter`` at most."""
    augmentations = [ResizeShorterSide(*scales, sampling)]
    if crop:
        augmentations.append(T.RandomCrop("absolute", (crop, crop)))
    augmentations += flips
    if color_jitter:
        weights = 1 - color_jitter, 1 + color_jitter
        augmentations += [
            T.RandomBrightness(*weights),
            T.RandomContrast(*weights),
            RandomSaturation(*weights),
        ]
    return augmentations


def transform_clip(
    augmentations: Sequence[T.Augmentation], frames: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw once, from the first frame, and apply to all.

    Args:
        frames: (T, H, W, 3) uint8.
        boxes: (B, 4) XYXY absolute pixels.

    Returns:
        frames (T, H', W', 3) and boxes (B, 4), which may reach beyond the frame.
    """
    transforms = T.AugmentationList(list(augmentations))(T.AugInput(frames[0]))
    return transforms.apply_image(frames), transforms.apply_box(boxes)
