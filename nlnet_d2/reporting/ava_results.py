"""Results on data in AVA's format: actions of people on key frames.

For the comparison of key frames, an action of a person is an object: the box of the person, and the class.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from nlnet_d2.data.datasets.ava import ava_source
from nlnet_d2.data.datasets.ava_files import AvaTable, read_ava_csv, second_text
from nlnet_d2.data.datasets.label_map import read_label_map
from nlnet_d2.evaluation.ava import evaluate_ava
from nlnet_d2.evaluation.gallery import draw_people
from nlnet_d2.reporting.matching import MIN_SCORE, Objects
from nlnet_d2.reporting.results import Compared, Curve, SetResults, Table

NOTE = "Average precision at overlap 0.5 in per cent, by the protocol {}; – for classes without ground truth."


def ava_results(name: str, detections: Path, cfg: CfgNode) -> SetResults:
    """Evaluate the detections of a registered data set once more, with everything that a page can show.

    Raises:
        DataError: the data set is not there, or the detections are malformed.
    """
    source, protocol = ava_source(name), cfg.TEST.AVA_PROTOCOL
    classes = read_label_map(source.label_map).names
    evaluated = read_label_map(source.evaluated_label_map or source.label_map)
    found = read_ava_csv(detections, scored=True)
    result = evaluate_ava(source.annotations, found, evaluated, source.excluded, protocol)
    curves = [
        Curve(result["classes"][id_]["name"], recall, precision)
        for id_, (recall, precision) in result["curves"].items()
        if len(recall)
    ]
    return SetResults(
        name=name,
        classes=list(classes.values()),
        tables=[_summary(result, protocol), _per_class(result, protocol)],
        curves={"Each class": curves},
        compared=_compare(DatasetCatalog.get(name), found, classes, list(evaluated.names)),
    )


def _summary(result: dict, protocol: str) -> Table:
    rows = [["mAP", _per_cent(result["mAP"])]]
    rows += [[f"mAP {group}", _per_cent(ap)] for group, ap in result["groups"].items() if group]
    return Table("Actions: mean over classes", ["metric", "value"], rows, NOTE.format(protocol))


def _per_class(result: dict, protocol: str) -> Table:
    rows = [
        [c["name"], c["group"] or "", c["num_gt"], c["num_det"], c["num_tp"], _per_cent(c["ap"])]
        for c in result["classes"].values()
    ]
    header = ["class", "group", "ground truth", "detections", "right", "AP"]
    return Table("Actions: per class", header, rows, NOTE.format(protocol))


def _per_cent(ap: float) -> float | None:
    return None if np.isnan(ap) else 100 * float(ap)


def _compare(
    records: list[dict], table: AvaTable, classes: dict[int, str], evaluated: list[int]
) -> list[Compared]:
    found, columns = _sure_rows(table), {id_: i for i, id_ in enumerate(classes)}
    shown = {columns[id_] for id_ in evaluated}
    compared = []
    for record in records:
        size = np.array([record["width"], record["height"]] * 2)
        truth = [
            (int(column), box, 1.0)
            for box, actions in zip(
                record["boxes"][record["annotated"]], record["actions"][record["annotated"]], strict=True
            )
            for column in np.flatnonzero(actions)
            if column in shown
        ]
        rows = found[record["video_id"], second_text(record["second"])]
        rows = [(columns[action], box, score) for action, box, score in rows if action in columns]
        name = f"{record['video_id']}, {record['second']:g} s"
        draw = partial(_draw, record, truth, rows, list(classes.values()))
        pixels = [[(c, _xywh(box * size), score) for c, box, score in side] for side in (truth, rows)]
        compared.append(Compared(name, *map(Objects.of, pixels), partial(_image, record), draw, record))
    return compared


def _sure_rows(table: AvaTable) -> dict[tuple[str, str], list[tuple[int, np.ndarray, float]]]:
    """(video, second) -> (action, box in 0..1, score) of the detections that count as such."""
    rows = defaultdict(list)
    for row in np.flatnonzero(table.score >= MIN_SCORE).tolist():
        box = table.row_box[row]
        key = table.videos[table.video[box]], second_text(float(table.second[box]))
        rows[key].append((int(table.action[row]), table.box[box], float(table.score[row])))
    return rows


def _xywh(box: np.ndarray) -> np.ndarray:
    return np.concatenate([box[:2], box[2:] - box[:2]])


def _image(record: dict) -> np.ndarray:
    return record["video"].read([record["key_frame"]])[0]


def _draw(record: dict, truth: list, found: list, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    image = _image(record)
    return draw_people(image, *_people(truth, names)), draw_people(image, *_people(found, names))


def _people(
    rows: list[tuple[int, np.ndarray, float]], names: list[str]
) -> tuple[np.ndarray, list[list[str]]]:
    """Boxes (N, 4), and the actions of each, the surest first."""
    actions = defaultdict(list)
    for column, box, score in sorted(rows, key=lambda row: -row[2]):
        actions[tuple(box.tolist())].append(names[column] + (f" {score:.0%}" if score < 1 else ""))
    return np.array(list(actions)), list(actions.values())
