"""Evaluation on AVA (Gu et al. 2018, 1705.08421) and on data in its formats: frame-mAP by public protocols.

``frame_map`` has the metric, ``protocols`` what the public evaluators do differently; here are the files, the
table, and the ``DatasetEvaluator``, whose number is always the one of the detections file that it writes.
"""

import logging
import math
import os
import tempfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from nlnet_d2.data.datasets.ava import ava_source
from nlnet_d2.data.datasets.ava_files import (
    AvaTable,
    frame_keys,
    read_ava_csv,
    read_frames,
    write_detections,
)
from nlnet_d2.data.datasets.label_map import LabelMap, read_label_map
from nlnet_d2.data.errors import DataError
from nlnet_d2.evaluation.frame_map import ActionBoxes, ClassResult, frame_map, number_frames
from nlnet_d2.evaluation.protocols import PROTOCOLS

logger = logging.getLogger(__name__)

DETECTIONS_FILE = "ava_detections.csv"
# AVA has 80 classes; its list of the 60 that are evaluated leaves out their types.
AVA_EVALUATED = frozenset(range(1, 81)) - {
    *(2, 16, 18, 19, 21, 23, 25, 31, 32, 33, 35, 39, 40, 42, 44, 50, 53, 55, 71, 75)
}
AVA_GROUPS = {
    "PERSON_MOVEMENT": range(1, 15),
    "OBJECT_MANIPULATION": range(15, 64),
    "PERSON_INTERACTION": range(64, 81),
}


def evaluate_ava(
    groundtruth: str | Path | AvaTable,
    detections: str | Path | AvaTable,
    labelmap: str | Path | LabelMap,
    excluded: str | Path | AvaTable | None = None,
    protocol: str = "activitynet",
) -> dict:
    """Frame-mAP at an overlap of 0.5.

    Args:
        groundtruth, detections: CSVs in AVA's format, see ``data/datasets/ava_files.py``.
        labelmap: the classes that are evaluated; rows of other classes are left out.
        excluded: CSV of frames (video, second) that are left out.
        protocol: a name of ``PROTOCOLS``.

    Returns:
        a dict, all APs in 0..1 and NaN for a class or group without ground truth:
        ``mAP``; ``mAP_bounds``: (lowest, highest) over the orders of equal scores;
        ``per_class``: class id -> AP; ``groups``: label type -> mAP of its classes;
        ``classes``: class id -> name, counts and bounds; ``curves``: class id -> (recall, precision) arrays;
        ``protocol``.

    Raises:
        DataError: a file cannot be read, a row is malformed, no row is of an evaluated class, or the two
            files have no video in common.
        KeyError: unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise KeyError(f"unknown protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    classes = labelmap if isinstance(labelmap, LabelMap) else read_label_map(labelmap)
    truth = groundtruth if isinstance(groundtruth, AvaTable) else read_ava_csv(groundtruth)
    found = detections if isinstance(detections, AvaTable) else read_ava_csv(detections, scored=True)
    left_out = read_frames(excluded) if isinstance(excluded, str | Path) else excluded
    _require_common_ground(truth, found, classes)
    _log_left_out(found, classes)
    if left_out is not None and left_out.videos and set(left_out.videos).isdisjoint(truth.videos):
        logger.warning("%s: none of its videos is among those of %s", left_out.source, truth.source)

    keys = frame_keys(found, truth, *([] if left_out is None else [left_out]))
    det_frame, gt_frame, *excluded_frame = number_frames(*keys)
    results = frame_map(
        _action_boxes(truth, gt_frame),
        _action_boxes(found, det_frame),
        list(classes.names),
        PROTOCOLS[protocol],
        *excluded_frame,
    )
    return {"protocol": protocol, **_summarise(results, classes)}


def _action_boxes(table: AvaTable, frame: np.ndarray) -> ActionBoxes:
    return ActionBoxes(frame, table.box, table.row_box, table.action, table.score)


def _require_common_ground(truth: AvaTable, found: AvaTable, classes: LabelMap) -> None:
    if not np.isin(truth.action, list(classes.names)).any():
        raise DataError(f"{truth.source}: no row is of a class of the label map; do the two belong together?")
    if found.videos and not set(found.videos) & set(truth.videos):
        raise DataError(
            f"{found.source}: none of its {len(found.videos)} videos ({found.videos[0]}, ...) is among the "
            f"{len(truth.videos)} of {truth.source} ({truth.videos[0]}, ...): the boxes are of other videos"
        )


def _log_left_out(found: AvaTable, classes: LabelMap) -> None:
    """Say which detections cannot count."""
    flat = ~(found.box[:, 2:] > found.box[:, :2]).all(axis=1)
    if flat.any():
        flat = flat[found.row_box]
    other = ~np.isin(np.arange(1 << 16), list(classes.names))[found.action]  # isin of all rows is slow
    for level, rows, what in (
        (logging.WARNING, flat, "boxes have no area"),
        (logging.INFO, other, "classes are not evaluated"),
    ):
        if rows.any():
            line = found.line[np.argmax(rows)]
            logger.log(level, "%s: %d rows whose %s, first in line %d", found.source, rows.sum(), what, line)


def _summarise(results: dict[int, ClassResult], classes: LabelMap) -> dict:
    groups = class_groups(classes)
    return {
        "mAP": _mean([r.ap for r in results.values()]),
        "mAP_bounds": tuple(
            _mean([getattr(r, bound) for r in results.values()]) for bound in ("ap_fp_first", "ap_tp_first")
        ),
        "per_class": {id_: r.ap for id_, r in results.items()},
        "groups": {
            group: _mean([results[id_].ap for id_, its in groups.items() if its == group])
            for group in dict.fromkeys(groups.values())
        },
        "classes": {
            id_: {
                "name": classes.names[id_],
                "group": groups.get(id_),
                **{key: getattr(r, key) for key in ("num_gt", "num_det", "num_tp")},
                **{key: getattr(r, key) for key in ("ap", "ap_fp_first", "ap_tp_first", "tie_sensitive")},
            }
            for id_, r in results.items()
        },
        "curves": {id_: (r.recall, r.precision) for id_, r in results.items()},
    }


def class_groups(classes: LabelMap) -> dict[int, str]:
    """Types of the classes: the label map's, or AVA's where it lists exactly AVA's evaluated classes."""
    if classes.groups or set(classes.names) != AVA_EVALUATED:
        return classes.groups
    return {id_: group for group, ids in AVA_GROUPS.items() for id_ in ids if id_ in AVA_EVALUATED}


def _mean(aps: list[float]) -> float:
    known = [ap for ap in aps if not math.isnan(ap)]
    return float(np.mean(known)) if known else float("nan")


def format_result(result: dict) -> str:
    """The result of ``evaluate_ava`` as a table in per cent: classes, groups, mean."""
    low, high = (100 * bound for bound in result["mAP_bounds"])
    rows = [
        (id_, c["name"], c["num_gt"], c["num_det"], c["num_tp"], 100 * c["ap"])
        for id_, c in result["classes"].items()
    ]
    rows += [("", group, "", "", "", 100 * ap) for group, ap in result["groups"].items()]
    rows.append(("", f"mean ({result['protocol']})", "", "", "", 100 * result["mAP"]))
    table = tabulate(
        rows,
        ("id", "class", "ground truth", "detections", "true", "AP@0.5"),
        floatfmt=".2f",
        missingval="-",
    )
    low, high = f"{low:.2f}", f"{high:.2f}"
    ties = "" if low == high else f"\nequal scores leave the mean open between {low} and {high}"
    return table + ties


class AvaEvaluator(DatasetEvaluator):
    """Frame-mAP of an action model on a registered data set in AVA's format.

    Reads ``inputs``' ``video_id`` and ``second``, and ``outputs``' ``instances``: ``pred_boxes`` in pixels of
    ``image_size`` and ``scores`` (boxes, classes) in the order of the data set's label map. The result
    does not depend on how the frames were dealt out to processes.

    Args:
        dataset_name: registered by ``data/datasets/ava.py``.
        output_dir: where ``ava_detections.csv`` is written.
        protocol: a name of ``PROTOCOLS``.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, protocol: str = "activitynet"):
        self._name = dataset_name
        self._source = ava_source(dataset_name)
        self._output_dir = output_dir
        self._protocol = protocol
        self._ids = list(read_label_map(self._source.label_map).names)
        self._evaluated = read_label_map(self._source.evaluated_label_map or self._source.label_map)
        self.reset()

    def reset(self):
        self._frames = {}  # (video, second) -> boxes (B, 4) in 0..1, scores (B, classes)

    def process(self, inputs: list[dict], outputs: list[dict]):
        for record, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            height, width = instances.image_size
            boxes = instances.pred_boxes.tensor.double().numpy() / (width, height, width, height)
            scores = instances.scores.float().numpy()
            self._frames[record["video_id"], float(record["second"])] = boxes.clip(0, 1), scores

    def evaluate(self) -> OrderedDict | None:
        """``{"action": {"mAP": ..., "<group>": ..., "AP-<class>": ...}}`` in per cent (main process only).

        Raises:
            DataError: there were no frames, or see ``evaluate_ava``.
        """
        gathered = comm.gather(self._frames, dst=0)
        if not comm.is_main_process():
            return None
        frames = {key: frame for part in gathered for key, frame in part.items()}
        repeated = sum(map(len, gathered)) - len(frames)
        if repeated:
            logger.warning("%d frames were predicted by more than one process; each counts once", repeated)
        if not frames:
            raise DataError("the model was given no frames: the data set has no key frames with boxes")
        with tempfile.TemporaryDirectory() as scratch:
            path = os.path.join(self._output_dir or scratch, DETECTIONS_FILE)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_detections(path, self._table(frames))
            result = evaluate_ava(
                self._source.annotations,
                path,
                self._evaluated,
                self._source.excluded,
                self._protocol,
            )
        logger.info("Frame-mAP on %s:\n%s", self._name, format_result(result))
        return OrderedDict(action=_percentages(result))

    def _table(self, frames: dict) -> AvaTable:
        """The gathered frames, in order of video and time, with the evaluated classes only."""
        names, seconds, boxes, scores = [], [], [], []
        for (video, second), (box, score) in sorted(frames.items()):
            names += [video] * len(box)
            seconds += [second] * len(box)
            boxes.append(box)
            scores.append(score)
        columns = [i for i, id_ in enumerate(self._ids) if id_ in self._evaluated.names]
        scores = np.concatenate(scores)[:, columns]
        kept_ids = [self._ids[i] for i in columns]
        table = AvaTable.from_scores(names, seconds, np.concatenate(boxes), scores, kept_ids)
        keep = table.score > PROTOCOLS[self._protocol].min_score
        rows = {column: getattr(table, column)[keep] for column in ("row_box", "action", "score", "line")}
        return replace(table, **rows)


def _percentages(result: dict) -> dict[str, float]:
    per_class = {f"AP-{result['classes'][id_]['name']}": ap for id_, ap in result["per_class"].items()}
    return {name: 100 * ap for name, ap in ({"mAP": result["mAP"]} | result["groups"] | per_class).items()}
