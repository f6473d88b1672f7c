"""Data sets in AVA's format: AVA v2.1 and v2.2, and one's own: a CSV, a label map and a folder of videos.

A record is one key frame: ``video_id``, ``second``, ``video`` (what reads its frames), ``key_frame`` (index),
``width`` and ``height`` in pixels, and its people: ``boxes`` (B, 4) float32 XYXY in 0..1, ``annotated`` (B,)
bool, ``scores`` (B,) of a detector, NaN for people it did not find, ``actions`` (B, K) uint8, multi-hot in
the order of the label map. ``select_people`` then decides whom a model is trained on or tested with.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from nlnet_d2.data.clip_sampler import key_frame_index
from nlnet_d2.data.datasets.ava_files import (
    NO_ACTION,
    AvaTable,
    read_ava_csv,
    read_frames,
    report,
)
from nlnet_d2.data.datasets.label_map import read_label_map
from nlnet_d2.data.errors import DataError, Finding
from nlnet_d2.data.video_folder import Video, find_videos, read_frame_list

logger = logging.getLogger(__name__)

WITHOUT_PEOPLE = ("drop", "best", "frame")
_OF_PEOPLE = ("boxes", "annotated", "scores", "actions")  # keys of a record with an entry per person
_DECIMALS = 4  # boxes that agree to so many are the same person, "0.1" or "0.100"


@dataclass(frozen=True)
class AvaSource:
    """The files of a data set.

    Attributes:
        annotations: CSV of what the people do.
        label_map: the classes of a model; every action of the CSVs must be among them.
        videos: folder of ``NAME.mp4`` (or another container) or of folders ``NAME/`` of numbered frames.
        boxes: CSVs of detected people with scores. They are trained on beside the annotated ones; with them,
            a model is tested on them alone, otherwise on the annotated boxes.
        excluded: CSV of key frames to leave out.
        evaluated_label_map: the classes that are evaluated, if not all.
        frame_list: frames of the videos in PySlowFast's format, with paths relative to ``videos``.
        fps: frames per second at which video files are seen and frames were extracted.
        start_second: time in the CSVs at which the videos begin.

    Raises:
        DataError: ``fps`` is not above 0, or ``start_second`` is no number.
    """

    annotations: str
    label_map: str
    videos: str
    boxes: tuple[str, ...] = ()
    excluded: str | None = None
    evaluated_label_map: str | None = None
    frame_list: str | None = None
    fps: float = 30.0
    start_second: float = 0.0

    def __post_init__(self):
        if not (isinstance(self.fps, int | float) and 0 < self.fps < math.inf):
            raise DataError(f"fps: expected frames per second above 0, got {self.fps!r}")
        if not (isinstance(self.start_second, int | float) and math.isfinite(self.start_second)):
            raise DataError(f"start_second: expected a time in seconds, got {self.start_second!r}")


def register_ava(name: str, source: AvaSource) -> None:
    """Register a data set; its files are read when it is used. The same again changes nothing.

    Raises:
        DataError: the name stands for other data.
    """
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("source") != source:
            raise DataError(f"data set {name!r} is already registered, with other files: choose another name")
        return
    DatasetCatalog.register(name, partial(load_ava, source))
    MetadataCatalog.get(name).set(evaluator_type="ava", source=source)


def register_ava_from_config(cfg: CfgNode) -> None:
    """Register every data set of ``cfg.DATASETS.REGISTER_AVA``: NAME and the fields of ``AvaSource``.

    Raises:
        DataError: an entry lacks a key or has one too many, or see ``register_ava``.
    """
    known = {f.name.upper(): f.name for f in fields(AvaSource)}
    needed = {"NAME", "ANNOTATIONS", "LABEL_MAP", "VIDEOS"}
    for i, entry in enumerate(cfg.DATASETS.REGISTER_AVA):
        if not isinstance(entry, dict) or not needed <= set(entry) <= {"NAME", *known}:
            raise DataError(
                f"DATASETS.REGISTER_AVA[{i}]: expected {', '.join(sorted(needed))} and any of "
                f"{', '.join(sorted(set(known) - needed))}, got {entry}"
            )
        values = {known[key]: value for key, value in entry.items() if key != "NAME"}
        boxes = values.get("boxes") or ()
        values["boxes"] = (boxes,) if isinstance(boxes, str) else tuple(boxes)
        register_ava(entry["NAME"], AvaSource(**values))


def is_ava(name: str) -> bool:
    """Whether a registered data set is in AVA's format."""
    return MetadataCatalog.get(name).get("evaluator_type") == "ava"


def ava_source(name: str) -> AvaSource:
    """The files of a registered data set; an embedded one is drawn if it is not there.

    Raises:
        DataError: no data set in AVA's format has this name, or it is not there.
    """
    known = [n for n in DatasetCatalog.list() if is_ava(n)]
    if name not in known:
        raise DataError(f"no data set in AVA's format is named {name!r}; there are {', '.join(known)}")
    source = MetadataCatalog.get(name).source
    if not os.path.exists(source.label_map):
        DatasetCatalog.get(name)
    return source


def action_names(name: str) -> list[str]:
    """Classes of a registered data set, in the order of a model's scores; errors as of ``ava_source``."""
    known = MetadataCatalog.get(name).get("action_names")  # of an embedded data set, before it is drawn
    return known or list(read_label_map(ava_source(name).label_map).names.values())


@dataclass
class _Person:
    annotated: bool = False
    score: float = math.nan
    actions: set[int] = field(default_factory=set)


def load_ava(source: AvaSource, findings: list[Finding] | None = None) -> list[dict]:
    """Records of all key frames, by video and time.

    Raises:
        DataError: names the first problem of the files, unless ``findings`` collects them: what the readers
            refuse, an action that is not in the label map, a box with x2 < x1 or y2 < y1, a missing or
            unreadable video, a key frame outside its video, boxes of other videos.
    """
    columns = {id_: i for i, id_ in enumerate(read_label_map(source.label_map).names)}
    annotations = read_ava_csv(source.annotations, findings=findings)
    detections = [read_ava_csv(path, scored=True, findings=findings) for path in source.boxes]
    for table in detections:
        _require_same_videos(table, annotations, findings)
    names = annotations.videos
    if source.frame_list:
        videos = read_frame_list(source.frame_list, source.videos, names, findings)
    else:
        videos = find_videos(source.videos, names, source.fps, findings)

    frames: dict[tuple[str, float], dict[tuple, _Person]] = {}
    for table in (annotations, *detections):
        rows = _usable_rows(table, columns, videos, source, findings)
        _add_people(frames, table, rows, annotated=table is annotations)
    if source.excluded is not None:
        _drop_excluded(frames, source, findings)
    return [
        _record(name, second, people, videos[name], columns, source)
        for (name, second), people in sorted(frames.items())
    ]


def _require_same_videos(table: AvaTable, annotations: AvaTable, findings: list[Finding] | None) -> None:
    known = set(annotations.videos)
    other = [name for name in table.videos if name not in known]
    if table.videos and len(other) == len(table.videos):
        got = f"{len(other)} others, such as {other[0]}"
        remedy = "name the boxes of this data set"
        report(Finding(table.source, "", "", f"videos of {annotations.source}", got, remedy), findings)
    elif other:
        logger.warning(
            "%s: %d of %d videos are not in %s and left out, such as %s",
            *(table.source, len(other), len(table.videos), annotations.source, other[0]),
        )


def _usable_rows(table: AvaTable, columns: dict, videos: dict, source: AvaSource, findings) -> np.ndarray:
    """Rows that can be trained on; the others are reported, or counted where that is no error."""
    x1, y1, x2, y2 = table.box[table.row_box].T
    has_video = np.array([name in videos for name in table.videos], bool)[table.video[table.row_box]]
    known = np.isin(table.action, [*columns, NO_ACTION])
    ordered = (x2 >= x1) & (y2 >= y1) | np.isnan(x1)
    inside = ~has_video | _inside_video(table, videos, source)[table.row_box]
    change = "correct or remove the row"
    for good, key, expected, remedy in (
        (known, "action", f"an id of {source.label_map}", f"name the label map of all classes, or {change}"),
        (ordered, "box", "x1 <= x2 and y1 <= y2", change),
        (inside, "second", "a time inside the video", f"correct start_second and fps, or {change}"),
    ):
        for row in np.flatnonzero(~good):
            report(table.finding(row, key, expected, remedy), findings)
    flat = (x2 == x1) | (y2 == y1)
    if flat.any():
        line = table.line[np.argmax(flat)]
        count = int(flat.sum())
        logger.warning("%s: %d boxes without area are left out, first in line %d", table.source, count, line)
    return np.flatnonzero(known & ordered & inside & has_video & ~flat)


def _inside_video(table: AvaTable, videos: dict, source: AvaSource) -> np.ndarray:
    """(B,) whether the key frame of a box exists."""
    lengths = np.array([videos[name].num_frames if name in videos else 0 for name in table.videos], int)
    keys = np.array([key_frame_index(s, source.start_second, source.fps) for s in table.second.tolist()], int)
    return (keys >= 0) & (keys < lengths[table.video]) if len(keys) else np.zeros(0, bool)


def _add_people(frames: dict, table: AvaTable, rows: np.ndarray, annotated: bool) -> None:
    """Merge rows into ``frames``: equal boxes of a frame are one person, with the actions of all."""
    boxes = table.box.clip(0, 1).round(_DECIMALS).tolist()
    actions, scores = table.action.tolist(), table.score.tolist()
    keys = table.key_frames()
    for row, box in zip(rows.tolist(), table.row_box[rows].tolist(), strict=True):
        people = frames.setdefault(keys[box], {})
        corners = tuple(boxes[box])
        if np.isnan(corners[0]):  # a frame listed without boxes
            continue
        person = people.setdefault(corners, _Person())
        if annotated:
            person.annotated = True
        else:
            person.score = scores[row]
        if actions[row] != NO_ACTION:
            person.actions.add(actions[row])


def _drop_excluded(frames: dict, source: AvaSource, findings: list[Finding] | None) -> None:
    """Of published files, some frames lie outside a part of the data, but hardly all."""
    excluded = set(read_frames(source.excluded, findings).key_frames())
    if excluded and excluded.isdisjoint(frames):
        logger.warning(
            "%s: none of its %d frames is a key frame of %s",
            *(source.excluded, len(excluded), source.annotations),
        )
    for frame in excluded:
        frames.pop(frame, None)


def _record(name: str, second: float, people: dict, video: Video, columns: dict, source: AvaSource) -> dict:
    actions = np.zeros((len(people), len(columns)), np.uint8)
    for row, person in zip(actions, people.values(), strict=True):
        row[[columns[action] for action in person.actions]] = 1
    return {
        "video_id": name,
        "second": second,
        "video": video,
        "key_frame": key_frame_index(second, source.start_second, source.fps),
        "width": video.width,
        "height": video.height,
        "boxes": np.array(list(people), np.float32).reshape(-1, 4),
        "annotated": np.array([p.annotated for p in people.values()], bool),
        "scores": np.array([p.score for p in people.values()], np.float32),
        "actions": actions,
    }


def select_people(
    records: Sequence[dict], is_train: bool, min_score: float, without_people: str = "drop"
) -> list[dict]:
    """Records with the people that a model is trained on or tested with.

    Training takes annotated people and detected ones; a test takes the detected ones alone, or the annotated
    ones where nobody was detected in the whole data set.

    Args:
        min_score: of a detected person; annotated ones need none.
        without_people: what to do with a frame that is left without people: ``drop`` it (PySlowFast), keep
            the ``best`` one (mmaction2) and drop the frame if there is none, or take the whole ``frame`` as a
            person without actions if there is none.

    Raises:
        ValueError: unknown ``without_people``.
        DataError: no frame is left.
    """
    if without_people not in WITHOUT_PEOPLE:
        raise ValueError(f"unknown {without_people!r}: expected one of {', '.join(WITHOUT_PEOPLE)}")
    with_annotated = is_train or all(np.isnan(record["scores"]).all() for record in records)
    selected = []
    for record in records:
        used = record["scores"] >= min_score
        if with_annotated:
            used |= record["annotated"]
        if not used.any() and without_people != "drop" and not np.isnan(record["scores"]).all():
            used[np.nanargmax(record["scores"])] = True
        if used.any():
            selected.append(record | {key: record[key][used] for key in _OF_PEOPLE})
        elif without_people == "frame":
            selected.append(record | _whole_frame(record))
    if not selected:
        raise DataError(f"none of {len(records)} key frames has a person with a score of {min_score} or more")
    people = sum(len(record["boxes"]) for record in selected)
    logger.info("%d of %d key frames are used, with %d people", len(selected), len(records), people)
    return selected


def _whole_frame(record: dict) -> dict:
    return {
        "boxes": np.array([[0, 0, 1, 1]], np.float32),
        "annotated": np.zeros(1, bool),
        "scores": np.zeros(1, np.float32),
        "actions": np.zeros((1, record["actions"].shape[1]), np.uint8),
    }


def _register_published(root: str) -> None:
    """AVA v2.1 and v2.2 as they come from the authors and PySlowFast, in ``$DETECTRON2_DATASETS/ava``."""
    folder = os.path.join(root, "ava")
    files = os.path.join(folder, "annotations")
    evaluated = {
        "v2.1": "ava_action_list_v2.1_for_activitynet_2018.pbtxt",
        "v2.2": "ava_action_list_v2.2_for_activitynet_2019.pbtxt",
    }
    detected = {"train": "train_boxes_and_labels_include_negative", "val": "val_boxes_and_labels"}
    for version, label_map in evaluated.items():
        for split, boxes in detected.items():
            suffix = f"_{version}" if split == "train" else ""
            source = AvaSource(
                annotations=f"{files}/ava_{split}_{version}.csv",
                label_map=f"{files}/ava_action_list_{version}.pbtxt",
                videos=f"{folder}/frames",
                boxes=(f"{files}/person_box_67091280_iou90/ava_detection_{boxes}{suffix}.csv",),
                # Training frames with doubtful labels are trained on, as PySlowFast does.
                excluded=f"{files}/ava_val_excluded_timestamps_{version}.csv" if split == "val" else None,
                evaluated_label_map=f"{files}/{label_map}",
                start_second=900.0,
            )
            register_ava(f"ava_{version}_{split}", source)


_register_published(os.getenv("DETECTRON2_DATASETS", "datasets"))
