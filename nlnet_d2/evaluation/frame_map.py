"""Frame-mAP: average precision of actions over the boxes of key frames (AVA, Gu et al. 2018, 1705.08421).

Per frame and class every detection is assigned to the one ground-truth box it overlaps most. It is a true
positive if that overlap is at least 0.5 and no earlier detection took the box. A class's AP is the area
under its whole precision-recall curve with precision made monotone (VOC 2010); mAP is the mean over the
classes with ground truth.

The public evaluators agree on that and on nothing else: ``protocols.py`` names the differences. Where
detections share a score, AP depends on the order in which a sort leaves them; the references leave that to
the machine. Here later rows rank first, on every machine, and the APs with every tie resolved for and against
the detector are given as bounds.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from nlnet_d2.data.datasets.ava_files import NO_ACTION
from nlnet_d2.data.errors import DataError
from nlnet_d2.data.threads import core_threads
from nlnet_d2.evaluation.average_precision import area, curve, ranks_of_hits
from nlnet_d2.evaluation.protocols import Protocol

BLOCK = 1 << 18  # rows that are sorted at once, in the cache


@dataclass(frozen=True)
class ActionBoxes:
    """Boxes of frames and the actions said of them.

    Attributes:
        frame: (B,) integers, equal where two boxes lie on the same frame.
        box: (B, 4) XYXY, any unit.
        row_box: (N,) the box that row n speaks of; the rows are in the order of their boxes.
        action: (N,) class id of row n; -1 says that the box has no action.
        score: (N,) of row n.
    """

    frame: np.ndarray
    box: np.ndarray
    row_box: np.ndarray
    action: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class ClassResult:
    """AP of one class; NaN where the protocol leaves the class out of the mean.

    ``recall`` and ``precision`` are the curve at the true positives, ``precision`` made monotone.
    """

    num_gt: int
    num_det: int
    num_tp: int
    ap: float
    ap_fp_first: float
    ap_tp_first: float
    recall: np.ndarray
    precision: np.ndarray

    @property
    def tie_sensitive(self) -> bool:
        """Whether the AP depends on the order of equal scores."""
        return self.ap_fp_first < self.ap_tp_first


def frame_map(
    groundtruth: ActionBoxes,
    detections: ActionBoxes,
    class_ids: Collection[int],
    protocol: Protocol,
    excluded: np.ndarray | None = None,
    threshold: float = 0.5,
) -> dict[int, ClassResult]:
    """Evaluate every class.

    Args:
        groundtruth, detections: their ``frame`` numbers must come from the same numbering.
        class_ids: the evaluated classes; rows of other classes are ignored.
        protocol: an entry of ``protocols.PROTOCOLS``.
        excluded: numbers of frames that are left out.
        threshold: intersection over union of a true positive.

    Returns:
        class id -> result, in the order of ``class_ids``.

    Raises:
        DataError: rows that are not in the order of their boxes.
    """
    _require_order("the ground truth", groundtruth.row_box)
    _require_order("the detections", detections.row_box)
    excluded = np.array([], np.int64) if excluded is None else excluded
    detections = _counted(groundtruth, _frame_by_frame(detections), class_ids, protocol, excluded)
    starts = _first_rows(detections, np.arange(groundtruth.frame.max(initial=-1) + 2))
    gt_used = ~np.isin(groundtruth.frame, excluded)

    def rows_by_class(start: int) -> list[np.ndarray]:
        return _rows_by_class(detections.action[start : start + BLOCK], start, class_ids)

    def evaluate(class_id: int, parts: tuple[np.ndarray, ...]) -> ClassResult:
        all_gt, det = np.flatnonzero(groundtruth.action == class_id), np.concatenate(parts, dtype=np.intp)
        gt = all_gt[gt_used[groundtruth.row_box[all_gt]]]
        num_gt = len(all_gt) if protocol.excluded_count else len(gt)
        return _class_result(groundtruth, gt, detections, det, starts, num_gt, protocol, threshold)

    with core_threads() as pool:  # numpy lets go of Python's lock
        parts = zip(*pool.map(rows_by_class, range(0, len(detections.action) + 1, BLOCK)), strict=True)
        return dict(zip(class_ids, pool.map(evaluate, class_ids, parts), strict=True))


def number_frames(*keys: np.ndarray) -> list[np.ndarray]:
    """Number the frames that integer ``keys`` name from 0, by first appearance over all arrays in turn."""
    joined = np.concatenate(keys)
    starts = np.flatnonzero(np.diff(joined, prepend=joined[:1] - 1))  # a frame's boxes mostly come in turn
    _, first, inverse = np.unique(joined[starts], return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    numbers = np.repeat(rank[inverse], np.diff(starts, append=len(joined)))
    return np.split(numbers, np.cumsum([len(k) for k in keys])[:-1])


def _require_order(name: str, row_box: np.ndarray) -> None:
    """The rows of a box are searched for by bisection."""
    falls = row_box[1:] < row_box[:-1]
    if falls.any():
        row = int(np.argmax(falls)) + 1
        raise DataError(
            f"{name}: expected rows in the order of their boxes, got row {row} of box {row_box[row]} "
            f"after one of box {row_box[row - 1]}; sort row_box, action and score by row_box"
        )


def _frame_by_frame(boxes: ActionBoxes) -> ActionBoxes:
    """The same with all boxes and rows of a frame in turn, otherwise in the order of the file."""
    if (np.diff(boxes.frame) >= 0).all():
        return boxes
    smallest = np.min_scalar_type(boxes.frame.max())  # 16 bits get a radix sort
    order = np.argsort(boxes.frame.astype(smallest), kind="stable")
    first = np.searchsorted(boxes.row_box, np.arange(len(order) + 1, dtype=boxes.row_box.dtype))
    row_box, rows = _pairs(first[order], first[order + 1])
    return ActionBoxes(boxes.frame[order], boxes.box[order], row_box, boxes.action[rows], boxes.score[rows])


def _counted(groundtruth, detections, class_ids, protocol: Protocol, excluded) -> ActionBoxes:
    """The detections, with no action in those rows that the protocol leaves out."""
    used = _scored_boxes(groundtruth, detections, class_ids, protocol)
    used &= ~np.isin(detections.frame, excluded)
    if not protocol.keep_degenerate:
        used &= (detections.box[:, 2:] > detections.box[:, :2]).all(axis=1)
    action = detections.action
    if protocol.cap:
        action = np.where(_best_rows_per_frame(detections, class_ids, protocol.cap), action, NO_ACTION)
    if not used.all():
        action = np.where(used[detections.row_box], action, NO_ACTION)
    return replace(detections, action=action)


def _scored_boxes(groundtruth, detections, class_ids, protocol: Protocol) -> np.ndarray:
    """(B,) whether a detection lies on a frame that the protocol scores."""
    if protocol.frames == "all":
        return np.ones(len(detections.frame), bool)
    frames = groundtruth.frame
    if protocol.frames == "labelled":
        frames = frames[groundtruth.row_box[np.isin(groundtruth.action, list(class_ids))]]
    return np.isin(detections.frame, frames)


def _first_rows(boxes: ActionBoxes, frames: np.ndarray) -> np.ndarray:
    """The first row of every one of the ``frames``, in boxes that are frame by frame."""
    first_box = np.searchsorted(boxes.frame, frames)
    return np.searchsorted(boxes.row_box, first_box.astype(boxes.row_box.dtype))  # else it copies all rows


def _rows_by_class(action: np.ndarray, start: int, class_ids: Collection[int]) -> list[np.ndarray]:
    """The rows of every class, in file order, where row n has the class ``action[n - start]``."""
    action = action.astype(np.int16, copy=False)
    order = np.argsort(action, kind="stable")  # a radix sort
    ids = np.fromiter(class_ids, action.dtype)
    starts, ends = (np.searchsorted(action, ids, side, sorter=order) for side in ("left", "right"))
    rows = (start + order).astype(np.int32)
    return [rows[start:end] for start, end in zip(starts, ends, strict=True)]


def _class_result(groundtruth, gt, detections, det, starts, num_gt, protocol, threshold) -> ClassResult:
    """Match and rank the detection rows ``det`` of one class against its ground-truth rows ``gt``.

    ``starts`` has the first detection row of every frame.
    """
    score = detections.score.take(det).astype(protocol.precision, copy=False)
    gt_box = groundtruth.row_box.take(gt)
    frame = groundtruth.frame.take(gt_box)
    gt, in_class = _pairs(np.searchsorted(det, starts[frame]), np.searchsorted(det, starts[frame + 1]))
    overlap = _intersection_over_union(
        groundtruth.box.take(gt_box[gt], axis=0).astype(protocol.precision, copy=False),
        detections.box.take(detections.row_box[det[in_class]], axis=0).astype(protocol.precision, copy=False),
    )
    hit = _true_positives(gt, in_class, overlap, threshold, score if protocol.match_by_score else None)
    hits = np.zeros(len(score), bool)
    hits[hit] = True

    if num_gt == 0 or (protocol.skip_undetected and len(score) == 0):
        nothing = np.zeros(0)
        return ClassResult(num_gt, len(score), len(hit), *[float("nan")] * 3, nothing, nothing)
    ranks, fp_first, tp_first = ranks_of_hits(score, hits)
    recall, precision = curve(ranks, num_gt)
    aps = [area(*curve(r, num_gt)) for r in (ranks, fp_first, tp_first)]
    return ClassResult(num_gt, len(score), len(hit), *aps, recall, precision)


def _pairs(first: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index, number) for the numbers from ``first`` up to ``end`` at every index, in turn."""
    count = end - first
    nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(np.arange(len(count)), count), np.repeat(first, count) + nth


def _true_positives(gt, det, overlap, threshold: float, score: np.ndarray | None) -> np.ndarray:
    """Detections that get a ground-truth box, out of all pairs of boxes on the same frame.

    The best detection chooses first by ``score``, the first one of the file if that is None.
    """
    largest = np.zeros(det.max(initial=-1) + 1)
    np.maximum.at(largest, det, overlap)
    chosen = np.flatnonzero((overlap >= threshold) & (overlap == largest[det]))
    gt, det = gt[chosen], det[chosen]
    order = np.lexsort((gt, det))
    order = order[np.diff(det[order], prepend=-1) > 0]  # the first of equal overlaps
    gt, det = gt[order], det[order]
    order = np.lexsort((det, det if score is None else -score[det], gt))
    return det[order[np.diff(gt[order], prepend=-1) > 0]]


def _intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) of the boxes a[n] and b[n]; 0 where both have no area."""
    corner, far_corner = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    zero = np.zeros(len(a))  # float64 whatever the boxes are: so the references intersect
    intersection = np.multiply(*np.maximum(zero, (far_corner - corner).T))
    union = _area(a) + _area(b) - intersection
    return np.divide(intersection, union, out=zero, where=union != 0)


def _area(box: np.ndarray) -> np.ndarray:
    """(N,) of XYXY boxes."""
    x1, y1, x2, y2 = box.T
    return (x2 - x1) * (y2 - y1)


def _best_rows_per_frame(boxes: ActionBoxes, class_ids: Collection[int], cap: int) -> np.ndarray:
    """(N,) whether a row is among the ``cap`` best of the evaluated classes on its frame."""
    kept = np.zeros(len(boxes.action), bool)

    def keep(start: int, end: int) -> None:
        for rows in _rows_by_frame(boxes, start, end, class_ids):  # (frames with equally many rows, rows)
            if rows.shape[1] <= cap:
                kept[rows] = True
                continue
            score = boxes.score[rows]
            lowest = np.partition(score, -cap, axis=1)[:, [-cap]]
            kept[rows[score > lowest]] = True
            kept[_surviving_ties(boxes, rows, score, lowest, cap)] = True

    some = _first_rows(boxes, np.arange(0, boxes.frame.max(initial=-1) + 1, 500))  # rows that fit the cache
    with core_threads() as pool:
        list(pool.map(keep, some, [*some[1:], len(kept)]))
    return kept


def _rows_by_frame(
    boxes: ActionBoxes, start: int, end: int, class_ids: Collection[int]
) -> Iterator[np.ndarray]:
    """Rows of the evaluated classes, of those from ``start`` to ``end``, which hold all of some frames.

    Yields:
        (frames, rows per frame) once for every number of rows per frame.
    """
    rows = start + np.flatnonzero(np.isin(boxes.action[start:end], list(class_ids)))
    frame = boxes.frame[boxes.row_box[rows]]
    starts = np.flatnonzero(np.diff(frame, prepend=frame[:1] - 1))
    counts = np.diff(starts, append=len(rows))
    for count in np.unique(counts):
        yield rows[starts[counts == count, None] + np.arange(count)]


def _surviving_ties(boxes: ActionBoxes, rows, score, lowest, cap: int) -> np.ndarray:
    """The rows at the ``lowest`` kept score that ActivityNet's heap of size ``cap`` ends up with.

    It refuses a row that ties when ``cap`` rows at least as good came before; of those it took, better ones
    that come later push out the smallest (action, y1, x1, y2, x2).
    """
    came_in_time = np.cumsum(score >= lowest, axis=1) <= cap
    frame, column = np.nonzero((score == lowest) & came_in_time)
    tied = rows[frame, column]
    x1, y1, x2, y2 = boxes.box[boxes.row_box[tied]].T
    order = np.lexsort((x2, y2, x1, y1, boxes.action[tied], -frame))[::-1]  # by frame, the largest first
    frame, tied = frame[order], tied[order]
    nth = np.arange(len(frame)) - np.searchsorted(frame, frame, "left")
    room = cap - (score > lowest).sum(axis=1)
    return tied[nth < room[frame]]
