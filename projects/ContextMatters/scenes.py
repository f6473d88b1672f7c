"""Scenes in which the class of an object is written elsewhere in the image.

On one side lies the *key*, a bar in red, green or blue; on the opposite side lie one to three small grey
discs. These are the objects to detect, and their class is the colour of the key, which is at least GAP pixels
from each of them: farther than the convolutions of ``baseline.yaml`` can see.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from nlnet_d2.data.datasets.coco import category_metadata
from nlnet_d2.data.datasets.shapes import write_coco

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
CATEGORIES = [{"id": i, "name": name} for i, name in enumerate(COLOURS, start=1)]
COUNTS = {"train": 2400, "val": 300}
SIDE = 96  # pixels
KEY_WIDTH, KEY_LENGTH = 36, 64  # it begins at the side
DISCS_AT, DISC_RADII = (84, 88), (6, 8)  # distance of the centres from the side of the key
GAP = DISCS_AT[0] - DISC_RADII[1] - KEY_WIDTH  # 40


def draw_scene(split: str, index: int) -> tuple[np.ndarray, list[dict]]:
    """Image ``index``, uint8 RGB, and its annotations without ids; ``form`` names the class."""
    rng = np.random.default_rng([list(COUNTS).index(split), index])
    name = list(COLOURS)[rng.integers(len(COLOURS))]
    image = np.zeros((SIDE, SIDE, 3)) + rng.uniform(20, 60)
    start = rng.integers(SIDE - KEY_LENGTH + 1)
    image[start : start + KEY_LENGTH, :KEY_WIDTH] = rng.uniform(150, 230) * np.array(COLOURS[name])
    boxes = []  # at up to three places, too far from each other to touch
    for y in rng.permutation([16, 48, 80])[: rng.integers(1, 4)] + rng.uniform(-6, 6):
        x, radius = rng.uniform(*DISCS_AT), rng.uniform(*DISC_RADII)
        draw_disc(image, x, y, radius, rng.uniform(150, 230))
        boxes.append([x - radius, y - radius, 2 * radius, 2 * radius])
    image += rng.normal(0, 5, image.shape)
    image, boxes = turn(rng, image.clip(0, 255).astype(np.uint8), np.array(boxes))
    area = np.pi / 4 * boxes[:, 2] * boxes[:, 3]
    common = {"form": name, "iscrowd": 0}
    return image, [common | {"bbox": b.tolist(), "area": a} for b, a in zip(boxes, area, strict=True)]


def turn(rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put the left side, and the boxes (N, 4: x, y, width, height), on any of the four sides."""
    if rng.random() < 0.5:
        image = image[:, ::-1]
        boxes[:, 0] = SIDE - boxes[:, 0] - boxes[:, 2]
    if rng.random() < 0.5:
        image, boxes = image.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
    return image, boxes


def draw_disc(image: np.ndarray, x: float, y: float, radius: float, brightness: float) -> None:
    """Paint a grey disc into ``image``; its edge is one pixel wide."""
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    alpha = (radius - np.hypot(columns - x, rows - y) + 0.5).clip(0, 1)[..., None]
    image += alpha * (brightness - image)


def register(root: Path) -> None:
    """Register ``context_train`` and ``context_val``, drawn into ``root`` on first use."""
    for split, count in COUNTS.items():
        folder, name = root / f"{split}_{count}", f"context_{split}"
        MetadataCatalog.get(name).set(
            json_file=str(folder / "annotations.json"),
            image_root=str(folder / "images"),
            evaluator_type="coco",
            **category_metadata(CATEGORIES, name),
        )
        DatasetCatalog.register(name, partial(_load, name, split, folder))


def _load(name: str, split: str, folder: Path) -> list[dict]:
    folder = write_coco(folder, partial(draw_scene, split), COUNTS[split], CATEGORIES)
    return load_coco_json(str(folder / "annotations.json"), str(folder / "images"), name)


register(Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / "context_matters")
