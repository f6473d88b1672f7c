"""What a data set consists of: how many images, objects and classes, and how large they are."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from nlnet_d2.data.datasets.ava import action_names, is_ava

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}  # COCO's, in pixels


@dataclass(frozen=True)
class Statistics:
    """Of one data set.

    Attributes:
        totals: what there is, in words, and how much of it.
        classes: name, number of objects (or of people who do it), number of images (or key frames) with any.
    """

    totals: dict[str, str]
    classes: list[tuple[str, int, int]]

    def __str__(self) -> str:
        totals = tabulate(self.totals.items(), tablefmt="plain", disable_numparse=True)
        total = sum(count for _, count, _ in self.classes) or 1
        rows = [(name, count, f"{count / total:.1%}", images) for name, count, images in self.classes]
        headers = ("class", "count", "share", "images")
        return (
            f"{totals}\n\n{tabulate(rows, headers, disable_numparse=[0], colalign=('left', *['right'] * 3))}"
        )


def statistics_of(name: str) -> Statistics:
    """Statistics of a registered data set in COCO's or AVA's format; an embedded one is drawn at first use.

    Raises:
        OSError, DataError: its files are not there, or cannot be read.
    """
    records = DatasetCatalog.get(name)
    if is_ava(name):
        return ava_statistics(records, action_names(name))
    return coco_statistics(MetadataCatalog.get(name).json_file)


def coco_statistics(json_file: str) -> Statistics:
    """Statistics of a file in COCO format in which ``check_coco`` finds no error."""
    with open(json_file, encoding="utf-8") as f:
        content = json.load(f)
    annotations = content.get("annotations", [])
    objects = [thing for thing in annotations if not thing.get("iscrowd")]
    per_image = Counter(thing["image_id"] for thing in objects)
    images, sizes = content["images"], Counter(_size(thing) for thing in objects)
    empty = sum(image["id"] not in per_image for image in images)
    totals = {
        "images": f"{len(images)}, {empty} of them without objects",
        "pixels": _image_sizes(images),
        "objects": f"{len(objects)}, {max(per_image.values(), default=0)} at most in one image",
        "crowds": str(len(annotations) - len(objects)),
        "sizes": ", ".join(f"{sizes[name]} {name}" for name in SIZES),
        "masks": str(sum(bool(thing.get("segmentation")) for thing in objects)),
        "keypoints": f"{sum(bool(thing.get('num_keypoints')) for thing in objects)} objects with any",
    }
    counts = Counter(thing["category_id"] for thing in objects)
    seen = Counter(category for category, _ in {(o["category_id"], o["image_id"]) for o in objects})
    classes = [(c["name"], counts[c["id"]], seen[c["id"]]) for c in content["categories"]]
    return Statistics(totals, classes)


def _size(thing: dict) -> str:
    area = thing.get("area") or thing["bbox"][2] * thing["bbox"][3]
    return next(name for name, (low, high) in SIZES.items() if low <= area < high)


def _image_sizes(images: Sequence[dict]) -> str:
    shown = []
    for key in ("width", "height"):
        values = sorted(image[key] for image in images)
        shown.append(f"{key} {values[0]} to {values[-1]} (median {values[len(values) // 2]})")
    return ", ".join(shown)


def ava_statistics(records: Sequence[dict], names: Sequence[str]) -> Statistics:
    """Statistics of the records of ``load_ava``.

    Args:
        names: of the classes, in the order of the records' ``actions``.
    """
    actions = [record["actions"] for record in records]
    people = np.concatenate(actions) if actions else np.zeros((0, len(names)), int)
    acting = people.any(axis=1)
    on_frames = sum((a.any(axis=0).astype(int) for a in actions), np.zeros(len(names), int))
    videos = Counter(record["video_id"] for record in records)
    seconds = [
        later["second"] - earlier["second"]
        for earlier, later in pairwise(records)
        if earlier["video_id"] == later["video_id"]
    ]
    totals = {
        "videos": str(len(videos)),
        "key frames": f"{len(records)}, every {np.median(seconds):g} s" if seconds else str(len(records)),
        "people": f"{len(people)}, {int((~acting).sum())} of them without an action",
        "actions": f"{people[acting].sum(axis=1).mean() if acting.any() else 0:.2f} per acting person",
        "detected": str(sum(int((~np.isnan(record["scores"])).sum()) for record in records)),
    }
    counts = people.sum(axis=0).tolist()
    return Statistics(totals, list(zip(names, counts, on_frames.tolist(), strict=True)))
