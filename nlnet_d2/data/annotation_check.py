"""Checks of single COCO annotations; see ``check.py`` for those of whole files."""

import math
from collections.abc import Iterator

from nlnet_d2.data.errors import Finding, has_id, item_name

BOX_SLACK = 1.0  # pixels by which a box may reach over the edge of the image without a word

XYWH = "four finite numbers [x, y, width, height]"
CORRECT_BOX = "correct the box or remove the annotation"
CHECK_UNITS = "is it [x, y, width, height], in pixels of this image?"
REDRAW = "redraw or remove the polygon"
EXPORT_MASK = "export the mask again"


class AnnotationCheck:
    """Finds the problems of annotations that belong to given images and categories.

    Args:
        file: the JSON file, for the findings.
        images, categories: valid records of the JSON file by id.
        mask_format: "polygon" or "bitmask" if a model is to learn the mask of every object, else None.
        keypoints: whether a model is to learn the keypoints of every object.
    """

    def __init__(self, file: str, images: dict, categories: dict, mask_format: str | None, keypoints: bool):
        self.file = file
        self.images = images
        self.categories = categories
        self.mask_format = mask_format
        self.keypoints = keypoints

    def findings(self, annotation, index: int) -> Iterator[Finding]:
        """Problems of the annotation at an index of the file's list."""
        item = item_name("annotation", annotation, index)
        if not isinstance(annotation, dict):
            yield Finding(self.file, item, "", "a record", annotation, "export again")
            return
        if has_id(annotation, "image_id"):
            item += f" (image {annotation['image_id']})"
        for problem in self._problems(annotation):
            yield Finding(self.file, item, *problem)

    def _problems(self, annotation: dict) -> Iterator[tuple]:
        """(key, expected, got, remedy[, severity]) of each problem."""
        if not has_id(annotation):
            yield "id", "a number", annotation.get("id"), "number the annotations"
        records = {}
        for kind, known in (("image", self.images), ("category", self.categories)):
            key = f"{kind}_id"
            records[kind] = known.get(annotation[key]) if has_id(annotation, key) else None
            if records[kind] is None:
                remedy = f"add the {kind} or remove the annotation"
                yield key, f"the id of a valid {kind}", annotation.get(key), remedy
        if annotation.get("ignore"):
            yield "ignore", "0 or nothing", annotation["ignore"], "Detectron2 has no ignore: use iscrowd"
        yield from _box_problems(annotation.get("bbox"), records["image"])
        yield from self._mask_problems(annotation, records["image"])
        yield from self._keypoint_problems(annotation, records["category"])

    def _mask_problems(self, annotation: dict, image: dict | None) -> Iterator[tuple]:
        mask, learnt = annotation.get("segmentation"), self.mask_format and not annotation.get("iscrowd")
        if not mask:
            if learnt:
                yield "segmentation", "a mask", mask, "add it, or train without masks: MODEL.MASK_ON False"
        elif isinstance(mask, dict):
            if learnt and self.mask_format == "polygon":
                yield "segmentation", "polygons", "a run-length mask", "set INPUT.MASK_FORMAT to bitmask"
            if image is not None:
                yield from _run_length_problems(mask, image)
        elif isinstance(mask, list):
            for polygon in mask:
                yield from _polygon_problems(polygon)
        else:
            yield "segmentation", "polygons or a run-length mask", mask, EXPORT_MASK

    def _keypoint_problems(self, annotation: dict, category: dict | None) -> Iterator[tuple]:
        values = annotation.get("keypoints")
        if values and not _are_finite(values):
            yield "keypoints", "a list of finite numbers", values, "correct or remove them"
            return
        if not self.keypoints or annotation.get("iscrowd") or category is None:
            return
        names = category.get("keypoints")
        count = len(names) if isinstance(names, list) else 0
        if not count:
            got, remedy = f"category {category['name']!r}", "name its keypoints, or remove its objects"
            yield "keypoints", "a category with keypoints", got, remedy
        elif not values or len(values) != 3 * count or not set(values[2::3]) <= {0, 1, 2}:
            expected = f"{count} times x, y and visibility (0, 1 or 2)"
            yield "keypoints", expected, values, "correct them, or give zeros for unlabelled ones"


def _are_finite(values) -> bool:
    """Whether a JSON value is a list of finite numbers."""
    if not isinstance(values, list):
        return False
    try:
        return math.isfinite(math.fsum(values))
    except (TypeError, OverflowError, ValueError):  # strings, nested lists; infinities of both signs
        return False


def _box_problems(box, image: dict | None) -> Iterator[tuple]:
    if not _are_finite(box) or len(box) != 4:
        yield "bbox", XYWH, box, CORRECT_BOX
        return
    x, y, width, height = box
    if min(width, height) <= 0:
        # Not "dropped" if negative: the loader turns it into another, valid box.
        severity = "dropped" if min(width, height) == 0 else "error"
        yield "bbox", "a width and height above 0", box, CORRECT_BOX, severity
        return
    if image is None:
        return
    got = f"{box} in an image of {image['width']} x {image['height']} pixels"
    reach = max(-x, -y, x + width - image["width"], y + height - image["height"])
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        yield "bbox", "a box inside the image", got, f"{CORRECT_BOX}; {CHECK_UNITS}", "dropped"
    elif reach > BOX_SLACK:
        yield "bbox", "a box that ends with the image", got, f"it is cut off; {CHECK_UNITS}", "warning"


def _polygon_problems(polygon) -> Iterator[tuple]:
    if not _are_finite(polygon):
        yield "segmentation", "polygons: lists of finite numbers x1, y1, x2, ...", polygon, REDRAW
    elif len(polygon) < 6:
        yield "segmentation", "polygons of 3 points or more", polygon, REDRAW, "dropped"
    elif len(polygon) % 2:
        got = f"{len(polygon)} numbers"
        yield "segmentation", "polygons of pairs x, y", got, REDRAW, "dropped"


def _run_length_problems(mask: dict, image: dict) -> Iterator[tuple]:
    counts, size = mask.get("counts"), [image["height"], image["width"]]
    if mask.get("size") != size:
        yield "segmentation", f"a mask of the image's size {size}", mask.get("size"), EXPORT_MASK
    elif isinstance(counts, list):
        if not _are_finite(counts) or min(counts, default=-1) < 0 or sum(counts) != math.prod(size):
            yield "segmentation", "run lengths that sum up to the image's pixels", counts, EXPORT_MASK
    elif not isinstance(counts, str):
        yield "segmentation", "run lengths: a list or a string", counts, EXPORT_MASK
