"""A small COCO-format data set of one's own: three images, two classes with gaps in their ids, keypoints."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from PIL import Image

WIDTH, HEIGHT = 40, 30


class OwnData:
    """The files of the data set; ``content`` is written to ``json`` by ``save``."""

    def __init__(self, root: Path):
        self.images, self.json = root / "images", root / "own.json"
        self.images.mkdir()
        rng = np.random.default_rng(0)
        for name in ("a.jpg", "b.png", "c.png"):
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(self.images / name)
        self.content = {
            "images": [
                {"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH}
                for i, name in ((10, "a.jpg"), (11, "b.png"), (12, "c.png"))
            ],
            "annotations": [_annotation(1, 10, 7), _annotation(2, 11, 3), _annotation(3, 12, 7), _crowd(4)],
            "categories": [
                {"id": 7, "name": "fig", "keypoints": ["stalk", "left_end", "right_end"]},
                {"id": 3, "name": "date", "keypoints": ["stalk", "left_end", "right_end"]},
            ],
        }
        self.save()

    def save(self) -> None:
        self.json.write_text(json.dumps(self.content))


def _annotation(id_: int, image_id: int, category_id: int) -> dict:
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [5, 6, 20, 10],
        "area": 200,
        "iscrowd": 0,
        "segmentation": [[5, 6, 25, 6, 25, 16, 5, 16]],
        "keypoints": [10, 8, 2, 6, 8, 1, 0, 0, 0],
        "num_keypoints": 2,
    }


def _crowd(id_: int) -> dict:
    mask = {"size": [HEIGHT, WIDTH], "counts": [0, 60, HEIGHT * WIDTH - 60]}
    return _annotation(id_, 12, 3) | {"iscrowd": 1, "segmentation": mask, "bbox": [0, 0, 2, 30], "area": 60}


@pytest.fixture
def own(tmp_path):
    return OwnData(tmp_path)


@pytest.fixture
def training_mapper():
    """Makes Detectron2's mapper of a data set for training masks and keypoints, without augmentation."""

    def make(name: str, mask_format: str) -> DatasetMapper:
        return DatasetMapper(
            is_train=True,
            augmentations=[],
            image_format="BGR",
            use_instance_mask=True,
            instance_mask_format=mask_format,
            use_keypoint=True,
            keypoint_hflip_indices=create_keypoint_hflip_indices(name),
        )

    return make


@pytest.fixture(autouse=True)
def _restore_catalogs():
    """Names that a test registers are forgotten after it."""
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.remove(name)
