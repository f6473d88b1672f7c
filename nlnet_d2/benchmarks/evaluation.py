"""Suites ``ava-eval`` and ``coco-eval``: the evaluators beside those that they stand for."""

import contextlib
import io
from functools import partial

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nlnet_d2.benchmarks.measure import Case, Goal, Pair
from nlnet_d2.data.datasets.ava_files import AvaTable
from nlnet_d2.data.datasets.label_map import LabelMap
from nlnet_d2.evaluation.ava import AVA_EVALUATED, evaluate_ava
from nlnet_d2.evaluation.coco import FastCOCOeval, paused_collector

try:  # PySlowFast's evaluator, from a checkout on PYTHONPATH
    from ava_evaluation.object_detection_evaluation import PascalDetectionEvaluator
except ImportError:
    PascalDetectionEvaluator = None

CLASSES = LabelMap({id_: f"class {id_}" for id_ in sorted(AVA_EVALUATED)}, {})


def ava(quick: bool) -> list[Case]:
    """``full``: as many as AVA's validation set; the alternatives see a tenth and take ten times as long."""
    sizes = {"a few": (20, 1)} if quick else {"a tenth": (5500, 1), "full": (55000, 10)}
    alternatives = {"literal form": by_loops}
    if PascalDetectionEvaluator:
        alternatives["PySlowFast"] = by_pyslowfast
    return [
        Case(
            name=f"AVA evaluation, {frames} key frames, {size}",
            alternative=name,
            build=partial(build_ava, frames, parts, evaluate),
            work=frames,
            unit="key frames",
            tolerance=1e-12 if parts == 1 else None,
            goal=Goal(600, 0.1) if (name, size) == ("PySlowFast", "full") else Goal(),
        )
        for size, (frames, parts) in sizes.items()
        for name, evaluate in alternatives.items()
    ]


def build_ava(frames: int, parts: int, evaluate, device) -> Pair:
    truth, found = ava_tables(frames)
    a_part = [by_frame(table) for table in ava_tables(frames // parts)]

    def ours() -> list[float]:
        return list(evaluate_ava(truth, found, CLASSES, protocol="pyslowfast")["per_class"].values())

    return Pair(ours, lambda: evaluate(*a_part), repeat=parts)


def ava_tables(frames: int) -> tuple[AvaTable, AvaTable]:
    """Three people per frame, found a little beside themselves, with one or two actions and all scores."""
    rng = np.random.default_rng(0)
    people = 3 * frames
    videos = [f"video{i // 900:04d}" for i in np.repeat(np.arange(frames), 3)]
    seconds = 902.0 + np.repeat(np.arange(frames) % 900, 3)
    corner, size = rng.uniform(0, 0.5, (people, 2)), rng.uniform(0.2, 0.5, (people, 2))
    box = np.concatenate((corner, corner + size), 1)
    ids = np.array(list(CLASSES.names))
    scores = rng.uniform(size=(people, len(ids)))
    found = AvaTable.from_scores(videos, seconds, box + rng.normal(0, 0.02, box.shape), scores, ids)
    truth = AvaTable.from_scores(videos, seconds, box, np.ones((people, 1)), ids[:1])
    row_box = np.repeat(np.arange(people, dtype=np.int32), rng.integers(1, 3, people))
    rows = np.ones(len(row_box))
    columns = {"row_box": row_box, "action": rng.choice(ids, len(row_box)), "score": rows, "line": rows}
    return AvaTable(**vars(truth) | columns), found


def by_frame(table: AvaTable) -> dict:
    """(video, second) -> boxes (R, 4), classes (R,), scores (R,), one row per box and class."""
    frame = table.video[table.row_box] * 10_000.0 + table.second[table.row_box]
    keys, first = np.unique(frame, return_index=True)
    cuts = np.append(first, len(frame))
    rows = [slice(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    box = table.box[table.row_box]
    return {key: (box[r], table.action[r], table.score[r]) for key, r in zip(keys, rows, strict=True)}


def by_loops(truth: dict, found: dict) -> list[float]:
    """arXiv 1705.08421, section 6: per class, per frame, per detection; AP is the area under the curve."""
    aps = []
    for class_id in CLASSES.names:
        scores, hits, positives = [], [], 0
        for key in truth.keys() | found.keys():
            gt, det = (_of_class(boxes.get(key), class_id) for boxes in (truth, found))
            positives += len(gt[0])
            taken = set()
            for box, score in zip(*det, strict=True):
                overlaps = [_overlap(box, other) for other in gt[0]]
                best = int(np.argmax(overlaps)) if overlaps else -1
                hit = best >= 0 and overlaps[best] >= 0.5 and best not in taken
                taken |= {best} if hit else set()
                scores.append(score)
                hits.append(hit)
        aps.append(_average_precision(np.array(scores), np.array(hits), positives))
    return aps


def _of_class(rows: tuple | None, class_id: int) -> tuple[np.ndarray, np.ndarray]:
    if rows is None:
        return np.zeros((0, 4)), np.zeros(0)
    boxes, classes, scores = rows
    return boxes[classes == class_id], scores[classes == class_id]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def _average_precision(scores: np.ndarray, hits: np.ndarray, positives: int) -> float:
    if not positives:
        return float("nan")
    hits = np.cumsum(hits[np.argsort(-scores)])
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / positives
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def by_pyslowfast(truth: dict, found: dict) -> list[float]:
    categories = [{"id": id_, "name": name} for id_, name in CLASSES.names.items()]
    evaluator = PascalDetectionEvaluator(categories)
    for key, (boxes, classes, _) in truth.items():
        info = {"groundtruth_boxes": boxes, "groundtruth_classes": classes}
        evaluator.add_single_ground_truth_image_info(
            key, info | {"groundtruth_difficult": np.zeros(len(boxes), bool)}
        )
    for key, (boxes, classes, scores) in found.items():
        info = {"detection_boxes": boxes, "detection_classes": classes, "detection_scores": scores}
        evaluator.add_single_detected_image_info(key, info)
    metrics = evaluator.evaluate()
    return [metrics[f"PascalBoxes_PerformanceByCategory/AP@0.5IOU/{c['name']}"] for c in categories]


def coco(quick: bool) -> list[Case]:
    images = 5 if quick else 2000
    return [
        Case(
            name=f"COCO boxes, {images} images x 100 detections",
            alternative="pycocotools",
            build=partial(build_coco, images),
            work=images,
            unit="images",
            tolerance=1e-12,
            goal=Goal(8, 0.75),
        )
    ]


def build_coco(images: int, device) -> Pair:
    truth, results = coco_data(images)

    def run(evaluation: type) -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            evaluator = evaluation(truth, truth.loadRes([dict(r) for r in results]), "bbox")
            for step in (evaluator.evaluate, evaluator.accumulate, evaluator.summarize):
                step()
        return np.asarray(evaluator.stats[:12])

    def ours() -> np.ndarray:
        with paused_collector():  # as FastCOCOEvaluator does
            return run(FastCOCOeval)

    return Pair(ours, partial(run, COCOeval))


def coco_data(images: int) -> tuple[COCO, list[dict]]:
    """Seven objects of 80 classes per image, and 100 detections, most of them beside an object."""
    rng = np.random.default_rng(0)
    annotations, results = [], []
    for image in range(1, images + 1):
        boxes = np.concatenate((rng.uniform(0, 400, (7, 2)), rng.uniform(10, 200, (7, 2))), 1)
        classes = rng.integers(1, 81, 7)
        for box, class_id in zip(boxes.tolist(), classes.tolist(), strict=True):
            ids = {"id": len(annotations) + 1, "image_id": image, "category_id": class_id}
            annotations.append({**ids, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        of = rng.integers(0, 7, 100)
        moved = boxes[of] + rng.normal(0, 8, (100, 4)).clip(-9, 9)
        guessed = np.where(rng.uniform(size=100) < 0.7, classes[of], rng.integers(1, 81, 100))
        scored = zip(moved.tolist(), guessed.tolist(), rng.uniform(size=100).tolist(), strict=True)
        results += [{"image_id": image, "category_id": c, "bbox": b, "score": s} for b, c, s in scored]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": str(i)} for i in range(1, 81)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth, results
