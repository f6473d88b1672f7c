"""Training augmentations that Detectron2 has but its YAML configs cannot name."""

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T


def random_flip(cfg: CfgNode) -> list[T.Augmentation]:
    """The flip of ``INPUT.RANDOM_FLIP``: horizontal, vertical or none."""
    way = cfg.INPUT.RANDOM_FLIP
    return [] if way == "none" else [T.RandomFlip(horizontal=way == "horizontal", vertical=way == "vertical")]


def large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """Flip, resize to ``INPUT.JITTER.SIZE`` pixels times a factor from ``SCALES``, crop to that size.

    From "Simple Copy-Paste", arXiv 2012.07177. Smaller images are left small: the model pads them
    (``MODEL.FPN.SQUARE_PAD``).
    """
    side, (low, high) = cfg.INPUT.JITTER.SIZE, cfg.INPUT.JITTER.SCALES
    return [
        *random_flip(cfg),
        T.ResizeScale(low, high, target_height=side, target_width=side),
        T.FixedSizeCrop((side, side), pad=False),
    ]


def crop_or_resize(cfg: CfgNode) -> list[T.Augmentation]:
    """The augmentation of DETR (arXiv 2005.12872): one image in two is cropped at random first."""
    sizes, style = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    crop = [
        T.ResizeShortestEdge([400, 500, 600], sample_style="choice"),
        T.RandomCrop("absolute_range", (384, 600)),
    ]
    return [
        T.RandomApply(T.AugmentationList(crop), prob=0.5),
        T.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, style),
        *random_flip(cfg),
    ]


AUGMENTATIONS = {f.__name__: f for f in (large_scale_jitter, crop_or_resize)}


def build_mapper(cfg: CfgNode, is_train: bool) -> DatasetMapper:
    """Detectron2's mapper with ``INPUT.AUGMENTATION`` in training; with masks, their crops give the boxes.

    Raises:
        ValueError: an unknown augmentation.
    """
    name = cfg.INPUT.AUGMENTATION
    if name == "stock" or not is_train:
        return DatasetMapper(cfg, is_train)
    if name not in AUGMENTATIONS:
        raise ValueError(f"INPUT.AUGMENTATION is stock, {' or '.join(AUGMENTATIONS)}, got {name!r}")
    augmentations = AUGMENTATIONS[name](cfg)
    return DatasetMapper(cfg, is_train, augmentations=augmentations, recompute_boxes=cfg.MODEL.MASK_ON)
