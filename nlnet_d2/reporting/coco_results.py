"""Results on data of COCO's kind: boxes, masks, keypoints."""

import contextlib
import io
import json
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.structures import BoxMode
from pycocotools.coco import COCO

from nlnet_d2.data.errors import DataError
from nlnet_d2.evaluation.coco import FIELD_OF_TASK, FastCOCOeval, complete_annotations
from nlnet_d2.evaluation.gallery import draw_things
from nlnet_d2.reporting.matching import MIN_SCORE, Objects
from nlnet_d2.reporting.results import Compared, Curve, SetResults, Table

SUMMARY = {
    "bbox": ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR 1", "AR 10", "AR 100")
    + ("AR small", "AR medium", "AR large"),
    "keypoints": (
        "AP",
        "AP50",
        "AP75",
        "AP medium",
        "AP large",
        "AR",
        "AR50",
        "AR75",
        "AR medium",
        "AR large",
    ),
}
SUMMARY["segm"] = SUMMARY["bbox"]
TITLES = {"bbox": "Boxes", "segm": "Masks", "keypoints": "Keypoints"}
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # of a result in JSON
IOU_50, IOU_75 = 0, 5  # indices of the overlaps 0.5, 0.55, ..., 0.95
NOTE = "In per cent, by the protocol of COCO; – where there is no ground truth of this kind."


def coco_results(name: str, detections: Path, cfg: CfgNode) -> SetResults:
    """Evaluate COCO results of a registered data set once more, with everything that a page can show.

    Raises:
        OSError, DataError: the data set is not there, or not the one that was evaluated.
    """
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    results = json.loads(detections.read_text())
    tables, curves = [], {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth = COCO(metadata.json_file)
        complete_annotations(truth, metadata.json_file)
        _require_same_data(detections, results, truth)
        for task in FIELD_OF_TASK:
            if any(FIELDS[task] in result for result in results):
                evaluation = _evaluate(truth, results, task, cfg)
                tables += [_summary(evaluation, task), _per_class(evaluation, task, metadata)]
                curves |= _curves(evaluation, task, metadata)
    return SetResults(name, metadata.thing_classes, tables, curves, _compare(records, results, metadata))


def _require_same_data(detections: Path, results: list[dict], truth: COCO) -> None:
    for key, known in (("image_id", truth.imgs), ("category_id", truth.cats)):
        unknown = {result[key] for result in results} - set(known)
        if unknown:
            raise DataError(f"{detections}: {key} {min(unknown)} is not in the data: it is of other data")


def _evaluate(truth: COCO, results: list[dict], task: str, cfg: CfgNode) -> FastCOCOeval:
    drop = "bbox" if task == "segm" else ""  # or areas would be those of the boxes
    found = truth.loadRes([{k: v for k, v in result.items() if k != drop} for result in results])
    evaluation = FastCOCOeval(truth, found, task)
    if task == "keypoints" and cfg.TEST.KEYPOINT_OKS_SIGMAS:
        evaluation.params.kpt_oks_sigmas = np.array(cfg.TEST.KEYPOINT_OKS_SIGMAS)
    elif task != "keypoints":
        evaluation.params.maxDets = [1, 10, cfg.TEST.DETECTIONS_PER_IMAGE]
    evaluation.run()
    return evaluation


def _summary(evaluation: FastCOCOeval, task: str) -> Table:
    names = list(SUMMARY[task])
    if task != "keypoints":
        names[8] = f"AR {evaluation.params.maxDets[-1]}"
    rows = [[n, _per_cent(value)] for n, value in zip(names, evaluation.stats, strict=False)]
    return Table(f"{TITLES[task]}: COCO's numbers", ["metric", "value"], rows, NOTE)


def _per_class(evaluation: FastCOCOeval, task: str, metadata) -> Table:
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (overlaps, recalls, classes)
    recall = evaluation.eval["recall"][:, :, 0, -1]  # (overlaps, classes)
    objects = np.bincount(
        [
            metadata.thing_dataset_id_to_contiguous_id[a["category_id"]]
            for a in evaluation.cocoGt.anns.values()
            if not a.get("iscrowd")
        ],
        minlength=len(metadata.thing_classes),
    )
    rows = [
        [name, int(objects[k]), *(_per_cent(_mean(p)) for p in _at_overlaps(precision[..., k])),
         _per_cent(_mean(recall[:, k]))]
        for k, name in enumerate(metadata.thing_classes)
    ]  # fmt: skip
    return Table(f"{TITLES[task]}: per class", ["class", "objects", "AP", "AP50", "AP75", "AR"], rows, NOTE)


def _at_overlaps(precision: np.ndarray) -> tuple[np.ndarray, ...]:
    return precision, precision[IOU_50], precision[IOU_75]


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _per_cent(value: float) -> float | None:
    return None if value < 0 else 100 * float(value)


def _curves(evaluation: FastCOCOeval, task: str, metadata) -> dict[str, list[Curve]]:
    """The mean over classes at several overlaps, and every class at 0.5."""
    precision, recall = evaluation.eval["precision"][:, :, :, 0, -1], evaluation.params.recThrs
    known = (precision > -1).all(axis=(0, 1))
    means = zip(
        ("0.50 to 0.95", "0.50", "0.75"),
        (precision.mean(0), precision[IOU_50], precision[IOU_75]),
        strict=True,
    )
    overall = [Curve(f"overlap {label}", recall, p[:, known].mean(1)) for label, p in means if known.any()]
    classes = [
        Curve(name, recall, precision[IOU_50, :, k])
        for k, name in enumerate(metadata.thing_classes)
        if known[k]
    ]
    title = TITLES[task]
    return {f"{title}: mean over classes": overall, f"{title}: each class at overlap 0.5": classes}


def _compare(records: list[dict], results: list[dict], metadata) -> list[Compared]:
    contiguous_id, found = metadata.thing_dataset_id_to_contiguous_id, defaultdict(list)
    for result in results:
        if result["score"] >= MIN_SCORE:
            thing = {"category_id": contiguous_id[result["category_id"]], "bbox_mode": BoxMode.XYWH_ABS}
            found[result["image_id"]].append(result | thing)
    compared = []
    for record in records:
        truth, things = record.get("annotations", []), found[record["image_id"]]
        crowd = [bool(thing.get("iscrowd")) for thing in truth]
        compared.append(
            Compared(
                f"image {record['image_id']}",
                Objects.of([(t["category_id"], _xywh(t), 1.0) for t in truth], crowd),
                Objects.of([(t["category_id"], t["bbox"], t["score"]) for t in things]),
                partial(detection_utils.read_image, record["file_name"], "RGB"),
                partial(_draw, record, things, metadata),
                record,
            )
        )
    return compared


def _xywh(thing: dict) -> list[float]:
    return BoxMode.convert(thing["bbox"], thing["bbox_mode"], BoxMode.XYWH_ABS)


def _draw(record: dict, found: list[dict], metadata) -> tuple[np.ndarray, np.ndarray]:
    image = detection_utils.read_image(record["file_name"], "RGB")
    unshown = () if any("keypoints" in thing for thing in found) else ("keypoints",)
    truth = [{k: v for k, v in thing.items() if k not in unshown} for thing in record.get("annotations", [])]
    return draw_things(image, truth, metadata), draw_things(image, found, metadata)
