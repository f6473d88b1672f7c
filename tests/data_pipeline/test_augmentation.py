"""Augmentations that a YAML config names: large-scale jitter and DETR's crop."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from PIL import Image

from nlnet_d2 import add_nlnet_config
from nlnet_d2.data.augmentation import build_mapper


def config(name: str, **inputs):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.AUGMENTATION = name
    for key, value in inputs.items():
        setattr(cfg.INPUT, key, value)
    return cfg


@pytest.fixture
def record(tmp_path):
    """An image 200 x 100 with a bright rectangle, and the instance of that rectangle."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[40:80, 60:160] = 200
    Image.fromarray(pixels).save(tmp_path / "image.png")
    polygon = [60, 40, 160, 40, 160, 80, 60, 80]
    annotation = {"bbox": [60, 40, 160, 80], "bbox_mode": 0, "category_id": 0, "segmentation": [polygon]}
    file_name = str(tmp_path / "image.png")
    return {"file_name": file_name, "height": 100, "width": 200, "annotations": [annotation]}


def test_stock_is_untouched():
    mapper = build_mapper(config("stock"), is_train=True)
    kinds = [type(a) for a in mapper.augmentations.augs]
    assert kinds == [T.ResizeShortestEdge, T.RandomFlip] and not mapper.recompute_boxes


@pytest.mark.parametrize("name", ["large_scale_jitter", "crop_or_resize"])
def test_evaluation_only_resizes(name):
    mapper = build_mapper(config(name), is_train=False)
    assert [type(a) for a in mapper.augmentations.augs] == [T.ResizeShortestEdge]


def test_large_scale_jitter(record):
    """Images fit the crop, are not padded, and their boxes are those of the cropped masks."""
    cfg = config("large_scale_jitter")
    cfg.INPUT.JITTER.SIZE, cfg.INPUT.JITTER.SCALES = 128, [0.5, 2.0]
    mapper = build_mapper(cfg, is_train=True)
    assert mapper.recompute_boxes
    np.random.seed(0)
    sizes = set()
    for _ in range(30):
        sample = mapper(record)
        height, width = sample["image"].shape[1:]
        assert max(height, width) <= 128
        sizes.add((height, width))
        for x0, y0, x1, y1 in sample["instances"].gt_boxes.tensor.tolist():
            inside = sample["image"][:, round(y0) + 1 : round(y1) - 1, round(x0) + 1 : round(x1) - 1]
            assert inside.numel() == 0 or inside.min() > 100, "the box holds the bright rectangle only"
    assert any(width < 100 for _, width in sizes) and any(width == 128 for _, width in sizes)


def test_crop_or_resize(record):
    cfg = config("crop_or_resize", MIN_SIZE_TRAIN=[48, 64], MAX_SIZE_TRAIN=100)
    mapper = build_mapper(cfg, is_train=True)
    np.random.seed(0)
    sizes = {tuple(mapper(record)["image"].shape[1:]) for _ in range(30)}
    assert all(max(size) <= 100 and min(size) <= 64 for size in sizes)
    ratios = {width / height for height, width in sizes}
    assert any(abs(r - 2) < 0.05 for r in ratios) and any(abs(r - 2) > 0.2 for r in ratios), "cropped or not"


@pytest.mark.parametrize("name", ["stock", "large_scale_jitter", "crop_or_resize"])
@pytest.mark.parametrize(
    ("way", "found"), [("none", []), ("horizontal", [(True, False)]), ("vertical", [(False, True)])]
)
def test_flips_follow_the_config(name, way, found):
    """Where left and right are different classes, no recipe may mirror the image."""
    augmentations = build_mapper(config(name, RANDOM_FLIP=way), is_train=True).augmentations.augs
    flips = [a for a in augmentations if isinstance(a, T.RandomFlip)]
    assert [(flip.horizontal, flip.vertical) for flip in flips] == found


def test_unknown_augmentation():
    with pytest.raises(
        ValueError, match="AUGMENTATION is stock, large_scale_jitter or crop_or_resize, got 'lsj'"
    ):
        build_mapper(config("lsj"), is_train=True)
