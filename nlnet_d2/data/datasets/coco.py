"""One's own COCO-format data: registered by name, JSON file and image folder, without writing Python.

Class names, contiguous ids and keypoint metadata come from the ``categories`` of the JSON file.
"""

import difflib
import json
import os
import re
from typing import Any
from unittest.mock import patch

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO

from nlnet_d2.data.errors import DataError

SKELETON_COLOUR = (102, 204, 255)  # RGB, for Detectron2's Visualizer
# Content of the files that are registered and not loaded yet, by name and time: parsing COCO's takes seconds.
_PARSED: dict[tuple[str, int], Any] = {}


def register_from_config(cfg: CfgNode) -> None:
    """Register every data set of ``cfg.DATASETS.REGISTER``; calling it again changes nothing.

    Raises:
        DataError: an entry has other keys than NAME, JSON and IMAGES, or see ``register_coco_data``.
    """
    for i, entry in enumerate(cfg.DATASETS.REGISTER):
        if not isinstance(entry, dict) or set(entry) != {"NAME", "JSON", "IMAGES"}:
            raise DataError(f"DATASETS.REGISTER[{i}]: expected the keys NAME, JSON and IMAGES, got {entry}")
        register_coco_data(entry["NAME"], entry["JSON"], entry["IMAGES"])


def register_coco_data(name: str, json_file: str, image_root: str) -> None:
    """Register COCO-format data (boxes, and masks or keypoints where the file has them) under a name.

    The same name with the same paths may be registered again.

    Raises:
        DataError: there is no such file or folder, the name already stands for other data, or the file has
            no usable ``categories``.
    """
    for kind, path, exists in (("file", json_file, os.path.isfile), ("folder", image_root, os.path.isdir)):
        if not exists(path):
            raise DataError(f"data set {name!r}: there is no {kind} {path!r} (seen from {os.getcwd()})")
    json_file, image_root = os.path.abspath(json_file), os.path.abspath(image_root)
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        if (known.get("json_file"), known.get("image_root")) != (json_file, image_root):
            raise DataError(f"data set {name!r} is registered already, with other files: rename this one")
        return
    try:
        content = read_json(json_file)
    except ValueError as error:
        raise DataError(f"{json_file}: not valid JSON ({error}); is the file truncated?") from error
    metadata = category_metadata(_categories(content, json_file), json_file)
    _PARSED[_key(json_file)] = content
    DatasetCatalog.register(name, lambda: _load(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata
    )


def read_json(json_file: str) -> Any:
    """The content of a JSON file, not to be changed; errors as those of ``open`` and ``json.load``."""
    key = _key(json_file)
    if key in _PARSED:
        return _PARSED[key]
    with open(json_file, encoding="utf-8") as f:
        return json.load(f)


def _key(json_file: str) -> tuple[str, int]:
    return os.path.abspath(json_file), os.stat(json_file).st_mtime_ns


def _load(json_file: str, image_root: str, name: str) -> list[dict]:
    """Detectron2's records of a data set; its reader takes what the registration has parsed."""

    def parsed(_: str) -> COCO:
        coco, coco.dataset = COCO(), read_json(json_file)
        coco.createIndex()
        return coco

    with patch("pycocotools.coco.COCO", parsed):
        records = load_coco_json(json_file, image_root, name)
    _PARSED.pop(_key(json_file), None)
    return records


def _categories(content: Any, json_file: str) -> list[dict]:
    categories = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(categories, list) or not categories:
        raise DataError(f"{json_file}: categories: expected a list that is not empty, got {categories}")
    for category in categories:
        named = isinstance(category, dict) and isinstance(category.get("name"), str)
        if not named or not isinstance(category.get("id"), int):
            raise DataError(f"{json_file}: categories: expected {{'id': int, 'name': str}}, got {category}")
    return categories


def category_metadata(categories: list[dict], source: str) -> dict:
    """Detectron2's metadata of COCO categories: classes in the order of their ids, and keypoints.

    A category may give ``keypoints`` (names), ``skeleton`` (pairs of 1-based indices) and, beyond COCO,
    ``flip_map`` (pairs of names); without it, a horizontal flip swaps names that differ in left/right.

    Raises:
        DataError: names the ``source``: repeated ids, different keypoints in two categories, or a left
            keypoint without a right one.
    """
    ordered = sorted(categories, key=lambda category: category["id"])
    ids = [category["id"] for category in ordered]
    if len(set(ids)) < len(ids):
        raise DataError(f"{source}: categories: ids are repeated: {ids}")
    metadata = {
        "thing_classes": [category["name"] for category in ordered],
        "thing_dataset_id_to_contiguous_id": {id_: i for i, id_ in enumerate(ids)},
    }
    with_keypoints = [category for category in ordered if category.get("keypoints")]
    if not with_keypoints:
        return metadata
    first = with_keypoints[0]
    for category in with_keypoints[1:]:
        if category["keypoints"] != first["keypoints"]:
            raise DataError(
                f"{source}: categories {first['name']!r} and {category['name']!r} have different keypoints; "
                "a keypoint head predicts one set: split the data, or give both categories the same list"
            )
    return metadata | _keypoint_metadata(first, source)


def _keypoint_metadata(category: dict, source: str) -> dict:
    names = category["keypoints"]
    if not isinstance(names, list) or len({str(name) for name in names}) < len(names):
        raise DataError(f"{source}: keypoints: expected a list of different names, got {names}")
    skeleton = _pairs(category, "skeleton", range(1, len(names) + 1), source)
    pairs = _pairs(category, "flip_map", names, source)
    if "flip_map" not in category:
        pairs = _left_right_pairs(names, source)
    return {
        "keypoint_names": names,
        "keypoint_flip_map": pairs,
        "keypoint_connection_rules": [(names[a - 1], names[b - 1], SKELETON_COLOUR) for a, b in skeleton],
    }


def _pairs(category: dict, key: str, allowed, source: str) -> list[tuple]:
    """The pairs of allowed values under a key of a category; none if the key is missing."""
    pairs = category.get(key, [])
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not isinstance(pair, list) or len(pair) != 2 or any(value not in allowed for value in pair):
            raise DataError(f"{source}: {key}: expected pairs of {list(allowed)}, got {pair}")
    return [tuple(pair) for pair in pairs]


# The word "left" or "right" in left_eye, eye_left, LeftEye, eyeLeft; not the one in "bright".
_SIDE = re.compile(r"(?<![A-Za-z])(?:[Ll]eft|[Rr]ight|LEFT|RIGHT)(?![a-z])|(?<=[a-z])(?:Left|Right)(?![a-z])")
_OTHER_SIDE = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
_OTHER_SIDE |= {right: left for left, right in _OTHER_SIDE.items()}


def _left_right_pairs(names: list[str], source: str) -> list[tuple[str, str]]:
    """Pairs of names (left, right) that a horizontal flip swaps."""
    pairs = []
    for name in names:
        partner = _SIDE.sub(lambda side: _OTHER_SIDE[side.group()], name)
        if partner == name:
            continue
        if partner not in names:
            raise DataError(
                f"{source}: keypoint {name!r} has no partner {partner!r}, which a horizontal flip would turn "
                "it into; give the category a 'flip_map': a list of pairs of names"
            )
        if (partner, name) not in pairs:
            pairs.append((name, partner))
    return pairs


def num_classes(dataset_names) -> int:
    """Number of classes of one or several registered data sets.

    Raises:
        DataError: a name is not registered, or the data sets have different classes.
    """
    return len(_shared_metadata(dataset_names, "thing_classes"))


def num_keypoints(dataset_names) -> int:
    """Number of keypoints of one or several registered data sets, 0 where they have none; errors as above."""
    return len(_shared_metadata(dataset_names, "keypoint_names"))


def _shared_metadata(dataset_names, key: str) -> list[str]:
    if not dataset_names:
        raise DataError("no data set is named: set DATASETS.TRAIN or DATASETS.TEST")
    values = {}
    for name in dataset_names:
        if name not in DatasetCatalog:
            similar = ", ".join(difflib.get_close_matches(name, DatasetCatalog.list())) or "none is similar"
            raise DataError(f"data set {name!r} is not registered; nearest names: {similar}")
        values[name] = MetadataCatalog.get(name).get(key) or []
    first = next(iter(values))
    for name, value in values.items():
        if value != values[first]:
            raise DataError(f"data sets {first!r} and {name!r} differ in {key}: {values[first]} and {value}")
    return values[first]
