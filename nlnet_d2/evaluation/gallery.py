"""Pictures of data, and of what a model finds: images, ground truth and predictions side by side."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.structures import BoxMode
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import VisImage, Visualizer
from PIL import Image

from nlnet_d2.data.datasets.ava import action_names, is_ava

PANEL = 360  # pixels along the longer side of each image: small ones are enlarged until one can read them
MARGIN = 12
CAPTION = 28  # height in pixels of the line above each image
IMAGES_PER_ROW = 2
SAMPLES_PER_ROW = 4
ACTIONS_SHOWN = 3  # per person
PERSON_COLOUR = (1.0, 0.8, 0.0)  # one for all: nobody is followed from one key frame to the next
# Of the classes: Detectron2's colours, but those that one cannot read on the black ground of a label.
COLOURS = [colour for colour in colormap(rgb=True, maximum=1) if colour @ (0.299, 0.587, 0.114) > 0.35]


class Drawing(Visualizer):
    """Detectron2's ``Visualizer``, but a label that would reach over the border is moved inside."""

    def draw_text(self, *args, **kwargs) -> VisImage:
        output = super().draw_text(*args, **kwargs)
        text, renderer = output.ax.texts[-1], output.canvas.get_renderer()
        text.update_bbox_position_size(renderer)
        box = text.get_bbox_patch().get_window_extent(renderer).transformed(output.ax.transData.inverted())
        inward = np.minimum(0, (output.width, output.height) - box.max)
        text.set_position(text.get_position() + np.maximum(inward, -box.min))
        return output


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
    predictions = _read_predictions(results_json, metadata, min_score)
    triples = [
        _draw_triple(record, predictions[record["image_id"]], metadata, min_score)
        for record in _evenly(records, count)
    ]
    Image.fromarray(_tile(triples, IMAGES_PER_ROW)).save(output_png)


def draw_samples(dataset_name: str, output_png: str | Path, count: int = 12) -> None:
    """Draw the ground truth of ``count`` images or key frames, taken evenly from a data set.

    Args:
        dataset_name: a registered data set of COCO's or AVA's kind.
    """
    draw = _draw_people if is_ava(dataset_name) else _draw_truth
    drawn = [draw(record, dataset_name) for record in _evenly(DatasetCatalog.get(dataset_name), count)]
    height = CAPTION + max(len(picture) for picture, _ in drawn) + MARGIN  # all may be wide
    tiles = [_caption(picture, text)[:height] for picture, text in drawn]
    Image.fromarray(_tile(tiles, SAMPLES_PER_ROW)).save(output_png)


def _evenly(records: list[dict], count: int) -> list[dict]:
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[i] for i in np.unique(chosen)]


def _draw_truth(record: dict, dataset_name: str) -> tuple[np.ndarray, str]:
    """An image with its annotations, uint8 RGB, and a caption."""
    image = detection_utils.read_image(record["file_name"], "RGB")
    truth = record.get("annotations", [])
    text = f"image {record['image_id']}: {len(truth)} objects"
    return draw_things(image, truth, MetadataCatalog.get(dataset_name)), text


def _draw_people(record: dict, dataset_name: str) -> tuple[np.ndarray, str]:
    """A key frame with the annotated people and what they do, uint8 RGB, and a caption."""
    image, shown = record["video"].read([record["key_frame"]])[0], record["annotated"]
    names = np.array(action_names(dataset_name))
    actions = [names[does > 0] for does in record["actions"][shown]]
    text = f"{record['video_id']}, {record['second']:g} s: {len(actions)} people"
    return draw_people(image, record["boxes"][shown], actions), text


def draw_people(image: np.ndarray, boxes: np.ndarray, actions: Sequence[Sequence[str]]) -> np.ndarray:
    """The image, with people and the first of their actions over it, at the size of a panel: uint8 RGB.

    Args:
        boxes: (N, 4) XYXY in 0..1.
        actions: of each box.
    """
    # Enlarged before people are drawn: labels would stand beside small ones.
    height, width = (round(side * PANEL / max(image.shape[:2])) for side in image.shape[:2])
    visualizer = Drawing(cv2.resize(image, (width, height)))
    if len(boxes):
        visualizer.overlay_instances(
            boxes=boxes * np.tile([width, height], 2),
            labels=["\n".join(some[:ACTIONS_SHOWN]) for some in actions],
            assigned_colors=[PERSON_COLOUR] * len(boxes),
        )
    return visualizer.output.get_image()


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
    things = {
        f"image {record['image_id']}": [],
        f"ground truth: {len(truth)}": truth,
        f"prediction: {len(predictions)} with score >= {min_score:g}": predictions,
    }
    panels = [_caption(draw_things(image, drawn, metadata), text) for text, drawn in things.items()]
    return np.concatenate(panels, axis=1)


def draw_things(image: np.ndarray, things: list[dict], metadata) -> np.ndarray:
    """The image, with objects drawn over it, at the size of a panel: uint8 RGB."""
    visualizer = Drawing(image, metadata, scale=PANEL / max(image.shape[:2]))
    if things:
        boxes = [BoxMode.convert(thing["bbox"], thing["bbox_mode"], BoxMode.XYXY_ABS) for thing in things]
        visualizer.overlay_instances(
            boxes=np.array(boxes),
            labels=[_label(thing, metadata.thing_classes) for thing in things],
            masks=_all(things, "segmentation"),
            keypoints=_keypoints(things),
            assigned_colors=[COLOURS[thing["category_id"] % len(COLOURS)] for thing in things],
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


def _tile(tiles: list[np.ndarray], per_row: int) -> np.ndarray:
    """Pictures of one size in rows; the last row is filled up with white."""
    per_row = min(per_row, len(tiles))
    filled = tiles + [np.full_like(tiles[0], 255)] * (-len(tiles) % per_row)
    rows = [np.concatenate(filled[i : i + per_row], axis=1) for i in range(0, len(filled), per_row)]
    return np.concatenate(rows)
