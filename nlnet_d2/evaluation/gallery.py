"""A picture of what a model finds: images, their ground truth and the predictions side by side."""

import json
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.structures import BoxMode
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image

PANEL = 360  # pixels along the longer side of each image: small ones are enlarged until one can read them
MARGIN = 12
CAPTION = 28  # height in pixels of the line above each image
IMAGES_PER_ROW = 2


def draw_gallery(
    dataset_name: str,
    results_json: str | Path,
    output_png: str | Path,
    count: int = 8,
    min_score: float = 0.5,
) -> None:
    """Draw image, ground truth and prediction of ``count`` images, taken evenly from a data set.

    Args:
        dataset_name: a registered data set of COCO kind.
        results_json: COCO results of it, such as ``inference/coco_instances_results.json``.
        min_score: predictions below it are not drawn.
    """
    metadata = MetadataCatalog.get(dataset_name)
    records = DatasetCatalog.get(dataset_name)
    chosen = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int))
    predictions = _read_predictions(results_json, metadata, min_score)
    triples = []
    for i in chosen:
        found = predictions[records[i]["image_id"]]
        triples.append(_draw_triple(records[i], found, metadata, min_score))
    Image.fromarray(_tile(triples)).save(output_png)


def _read_predictions(results_json: str | Path, metadata, min_score: float) -> dict:
    """Predictions by image id, each like an annotation of a dataset dict, with a score."""
    contiguous_id = metadata.thing_dataset_id_to_contiguous_id
    predictions = defaultdict(list)
    for result in json.loads(Path(results_json).read_text()):
        if result["score"] >= min_score:
            thing = {"category_id": contiguous_id[result["category_id"]], "bbox_mode": BoxMode.XYWH_ABS}
            predictions[result["image_id"]].append(result | thing)
    return predictions


def _draw_triple(record: dict, predictions: list[dict], metadata, min_score: float) -> np.ndarray:
    """Image, ground truth and prediction in a row, with captions: uint8 RGB."""
    image = detection_utils.read_image(record["file_name"], "RGB")
    truth = record["annotations"]
    if not any("keypoints" in prediction for prediction in predictions):
        truth = [{k: v for k, v in thing.items() if k != "keypoints"} for thing in truth]
    panels = {
        f"image {record['image_id']}": _draw(image, [], metadata),
        f"ground truth: {len(truth)}": _draw(image, truth, metadata),
        f"prediction: {len(predictions)} with score >= {min_score:g}": _draw(image, predictions, metadata),
    }
    return np.concatenate([_caption(panel, text) for text, panel in panels.items()], axis=1)


def _draw(image: np.ndarray, things: list[dict], metadata) -> np.ndarray:
    """The image, with objects drawn over it, at the size of a panel."""
    visualizer = Visualizer(image, metadata, scale=PANEL / max(image.shape[:2]))
    if things:
        palette = colormap(rgb=True, maximum=1)
        boxes = [BoxMode.convert(thing["bbox"], thing["bbox_mode"], BoxMode.XYXY_ABS) for thing in things]
        visualizer.overlay_instances(
            boxes=np.array(boxes),
            labels=[_label(thing, metadata.thing_classes) for thing in things],
            masks=_all(things, "segmentation"),
            keypoints=_keypoints(things),
            assigned_colors=[palette[thing["category_id"] % len(palette)] for thing in things],
            alpha=0.4,
        )
    return visualizer.output.get_image()


def _label(thing: dict, names: list[str]) -> str:
    extra = " crowd" if thing.get("iscrowd") else f" {thing['score']:.0%}" if "score" in thing else ""
    return names[thing["category_id"]] + extra


def _all(things: list[dict], key: str) -> list | None:
    """The values of a key, or None unless every object has one."""
    return [thing[key] for thing in things] if all(key in thing for thing in things) else None


def _keypoints(things: list[dict]) -> np.ndarray | None:
    values = _all(things, "keypoints")
    return None if values is None else np.array(values, np.float32).reshape(len(things), -1, 3)


def _caption(panel: np.ndarray, text: str) -> np.ndarray:
    """The panel on white, with a line of text above: a square whatever the image's shape."""
    canvas = np.full((PANEL + CAPTION + MARGIN, PANEL + MARGIN, 3), 255, np.uint8)
    cv2.putText(canvas, text, (2, CAPTION - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    canvas[CAPTION : CAPTION + panel.shape[0], : panel.shape[1]] = panel[:PANEL, :PANEL]
    return canvas


def _tile(triples: list[np.ndarray]) -> np.ndarray:
    """Triples in rows of ``IMAGES_PER_ROW``; the last row is filled up with white."""
    blank = np.full_like(triples[0], 255)
    filled = triples + [blank] * (-len(triples) % IMAGES_PER_ROW)
    rows = [
        np.concatenate(filled[i : i + IMAGES_PER_ROW], axis=1) for i in range(0, len(filled), IMAGES_PER_ROW)
    ]
    return np.concatenate(rows)
