"""The embedded data set ``shapes``: circles, squares, triangles and stars, read as ordinary COCO data.

``shapes_train`` and ``shapes_val`` are registered by importing this module, and drawn when they are first
used, into ``$DETECTRON2_DATASETS/shapes`` (default ``./datasets/shapes``). The same parameters give the same
pictures.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image
from tqdm import tqdm

from nlnet_d2.data.datasets.coco import category_metadata
from nlnet_d2.data.datasets.drawn_folder import draw_once
from nlnet_d2.data.threads import core_threads

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
KEYPOINTS = ["centre", "top", "left", "right", "bottom"]
CATEGORIES = [
    {"id": i, "name": name, "keypoints": KEYPOINTS, "skeleton": [[1, 2], [1, 3], [1, 4], [1, 5]]}
    for i, name in enumerate(["circle", "square", "triangle", "star"], start=1)
]
REVISION = 2  # to be raised when the same parameters give other pictures, so that nobody reads stale ones


@dataclass(frozen=True)
class ShapesParameters:
    """What decides every pixel: ``count`` images of ``split``, ``side`` pixels along the longer side."""

    split: str
    count: int
    side: int = 160
    seed: int = 0

    def __post_init__(self):
        if self.split not in SPLITS or self.count < 1 or self.side < 64 or self.seed < 0:
            raise ValueError(f"expected a split of {SPLITS}, count > 0, side >= 64, seed >= 0, got {self}")

    @property
    def folder(self) -> str:
        return f"{self.split}_{self.count}_images_{self.side}px_seed{self.seed}_r{REVISION}"


def register_shapes(name: str, parameters: ShapesParameters, root: str | Path) -> None:
    """Register a set of shapes; it is drawn into a sub-folder of ``root`` on first use."""
    folder = Path(root) / parameters.folder
    MetadataCatalog.get(name).set(
        json_file=str(folder / "annotations.json"),
        image_root=str(folder / "images"),
        evaluator_type="coco",
        **category_metadata(CATEGORIES, name),
    )
    DatasetCatalog.register(name, partial(_load, name, parameters, root))


def _load(name: str, parameters: ShapesParameters, root: str | Path) -> list[dict]:
    folder = write_shapes(parameters, root)
    return load_coco_json(str(folder / "annotations.json"), str(folder / "images"), name)


def write_shapes(parameters: ShapesParameters, root: str | Path) -> Path:
    """Draw a set of shapes unless it is there; returns its folder: ``images/`` and ``annotations.json``."""
    draw = partial(draw_image, parameters)
    return write_coco(Path(root) / parameters.folder, draw, parameters.count, CATEGORIES)


def draw_image(parameters: ShapesParameters, index: int) -> tuple[np.ndarray, list[dict]]:
    """Image ``index`` of a set, uint8 RGB, and its annotations without ids."""
    # Imported here, because OpenCV is needed only where something is drawn.
    from nlnet_d2.data.datasets import shape_scenes as scenes

    rng = np.random.default_rng([parameters.seed, SPLITS.index(parameters.split), index])
    long, short = parameters.side, round(0.8 * parameters.side)
    height, width = rng.choice([(long, long), (short, long), (long, short)], p=[0.5, 0.25, 0.25]).tolist()
    objects = scenes.scatter_objects(rng, height, width)
    return scenes.paint_scene(rng, objects, height, width), scenes.annotate(objects, height, width)


def write_coco(
    folder: Path, draw: Callable[[int], tuple[np.ndarray, list[dict]]], count: int, categories: list[dict]
) -> Path:
    """Write synthetic data in COCO format, unless the folder exists.

    The folder appears complete or not at all; several processes may ask for it at once, one of them draws.

    Args:
        draw: gives, for an index, a uint8 RGB image and its annotations: COCO's keys, without ids, and with
            ``form``, the name of the category.
    """

    def fill(unfinished: Path) -> None:
        logger.info("Drawing %d images into %s (once)", count, folder)
        (unfinished / "images").mkdir()
        content = _draw_all(unfinished / "images", draw, count, categories)
        (unfinished / "annotations.json").write_text(json.dumps(content))

    return draw_once(folder, fill)


def _draw_all(image_folder: Path, draw: Callable, count: int, categories: list[dict]) -> dict:
    """Draw and save all images; returns the content of the JSON file."""
    category_ids = {category["name"]: category["id"] for category in categories}
    images, annotations = [], []
    with core_threads() as pool:
        drawn = pool.map(partial(_draw_and_save, image_folder, draw), range(count))
        for index, (record, objects) in enumerate(tqdm(drawn, total=count, disable=None), start=1):
            images.append({"id": index, **record})
            for thing in objects:
                thing["category_id"] = category_ids[thing.pop("form")]
                annotations.append({"id": len(annotations) + 1, "image_id": index, **thing})
    return {"images": images, "annotations": annotations, "categories": categories}


def _draw_and_save(image_folder: Path, draw: Callable, index: int) -> tuple[dict, list[dict]]:
    image, objects = draw(index)
    suffix, options = ("png", {}) if index % 4 == 0 else ("jpg", {"quality": 95})
    file_name = f"{index:06d}.{suffix}"
    Image.fromarray(image).save(image_folder / file_name, **options)
    return {"file_name": file_name, "height": image.shape[0], "width": image.shape[1]}, objects


_ROOT = Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / "shapes"  # read at import, as Detectron2 does
register_shapes("shapes_train", ShapesParameters("train", count=1600), _ROOT)
register_shapes("shapes_val", ShapesParameters("val", count=200), _ROOT)
