"""Augmentations: one draw for all frames, boxes that follow the pixels."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import HFlipTransform
from PIL import Image, ImageEnhance

from nlnet_d2.data.clip_transforms import (
    RandomSaturation,
    ResizeShorterSide,
    SaturationTransform,
    train_augmentations,
    transform_clip,
)

NO_BOXES = np.zeros((0, 4), np.float32)


def moving_square(frames: int = 4, height: int = 60, width: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """A white square on black, the same in all frames but for its grey level, and its box."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    for i in range(frames):
        clip[i, 20:40, 30:50] = 255 - 10 * i
    return clip, np.array([[30, 20, 50, 40]], np.float32)


def bright_box(image: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(image[..., 0] > 110)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


@pytest.mark.parametrize("seed", range(6))
def test_boxes_follow_the_pixels_of_every_frame(seed):
    np.random.seed(seed)
    augmentations = train_augmentations((90, 120), "inverse", 80, [T.RandomFlip()], color_jitter=0.0)
    frames, boxes = transform_clip(augmentations, *moving_square())
    assert frames.shape == (4, 80, 80, 3)
    box = boxes[0].clip(0, 80)
    if (box[2:] - box[:2]).min() > 4:
        for frame in frames:
            assert np.abs(bright_box(frame) - box).max() < 1.5


def test_all_frames_get_the_same_draw():
    """Equal frames stay equal under everything at once, colour too."""
    clip = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 60, 100, 3), np.uint8), 5, axis=0)
    for seed in range(5):
        np.random.seed(seed)
        frames, _ = transform_clip(
            train_augmentations((70, 90), "uniform", 64, [T.RandomFlip()], 0.4), clip, NO_BOXES
        )
        assert (frames == frames[:1]).all()
        assert frames.dtype == np.uint8


def test_the_draw_differs_between_calls():
    augmentations = train_augmentations((70, 90), "inverse", 64, [T.RandomFlip()], 0.4)
    clip, box = moving_square()
    np.random.seed(0)
    results = [transform_clip(augmentations, clip, box)[1].tolist() for _ in range(10)]
    assert len({str(result) for result in results}) > 5


@pytest.mark.parametrize("shape", [(60, 100), (100, 60)])
def test_resize_is_plain_bilinear(shape):
    """No anti-aliasing: a quarter of the size takes two of eight pixels into account."""
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (2, *shape, 3), np.uint8)
    frames, boxes = transform_clip([ResizeShorterSide(15, 15)], clip, np.array([[4, 8, 40, 60]], np.float32))
    assert min(frames.shape[1:3]) == 15
    assert max(frames.shape[1:3]) == 25
    nchw = torch.from_numpy(clip).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(nchw, frames.shape[1:3], mode="bilinear", antialias=False)
    assert np.abs(frames - expected.permute(0, 2, 3, 1).numpy()).max() <= 0.5
    np.testing.assert_allclose(boxes, [[1, 2, 10, 15]])


def test_longer_side_is_rounded_down():
    frame = np.zeros((240, 427, 3), np.uint8)
    transform = ResizeShorterSide(256, 256).get_transform(frame)
    assert (transform.new_h, transform.new_w) == (256, 455)


@pytest.mark.parametrize("sampling, mean", [("uniform", 288.0), ("inverse", 285.6)])
def test_scale_sampling(sampling, mean):
    """Uniform lengths average 288 px; uniform inverses ln(320 / 256) / (1 / 256 - 1 / 320) = 285.6."""
    np.random.seed(0)
    frame = np.zeros((100, 100, 3), np.uint8)
    resize = ResizeShorterSide(256, 320, sampling)
    sizes = [resize.get_transform(frame).new_h for _ in range(20_000)]
    assert min(sizes) >= 256
    assert max(sizes) <= 320
    assert np.mean(sizes) == pytest.approx(mean, abs=0.4)


def test_crop_larger_than_the_frame():
    frames, _ = transform_clip(train_augmentations((32, 32), "uniform", 500, [], 0), *moving_square())
    assert frames.shape[1:3] == (32, 53)


def test_no_crop_and_no_flip():
    augmentations = train_augmentations((60, 60), "uniform", 0, [], 0)
    clip, box = moving_square()
    frames, boxes = transform_clip(augmentations, clip, box)
    np.testing.assert_array_equal(frames, clip)
    np.testing.assert_array_equal(boxes, box)


def test_colour_jitter():
    _, *jitter = train_augmentations((60, 60), "uniform", 0, [], 0.4)
    assert [str(augmentation) for augmentation in jitter] == [
        "RandomBrightness(intensity_min=0.6, intensity_max=1.4)",
        "RandomContrast(intensity_min=0.6, intensity_max=1.4)",
        "RandomSaturation(low=0.6, high=1.4)",
    ]


def test_flipping_twice_changes_nothing():
    clip, box = moving_square()
    flip = T.TransformList([HFlipTransform(100), HFlipTransform(100)])
    np.testing.assert_array_equal(flip.apply_image(clip), clip)
    np.testing.assert_allclose(flip.apply_box(box), box)


def test_saturation():
    clip = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    for weight in (0.0, 0.5, 1.0, 1.4):
        expected = [ImageEnhance.Color(Image.fromarray(frame)).enhance(weight) for frame in clip]
        changed = SaturationTransform(weight).apply_image(clip).astype(int)
        assert np.abs(changed - np.stack(expected)).max() <= 1
    np.random.seed(0)
    weights = [RandomSaturation(0.6, 1.4).get_transform(clip[0]).weight for _ in range(100)]
    assert 0.6 <= min(weights) < 0.7 < 1.3 < max(weights) <= 1.4


@pytest.mark.parametrize("arguments", [(0, 10), (20, 10), (10, 20, "linear")])
def test_impossible_sizes(arguments):
    with pytest.raises(ValueError, match="expected 0 < low <= high"):
        ResizeShorterSide(*arguments)
