"""Frame-mAP: average precision of actions over the boxes of key frames (AVA, Gu et al. 2018, 1705.08421).

Per frame and class every detection is assigned to the one ground-truth box it overlaps most. It is a true
positive if that overlap is at least 0.5 and no earlier detection took the box. A class's AP is the area
under its whole precision-recall curve with precision made monotone (VOC 2010); mAP is the mean over the
classes with ground truth.

The public evaluators agree on that and on nothing else: ``PROTOCOLS`` names the differences. Where detections
share a score, AP depends on the order in which a sort leaves them; the references leave that to the machine.
Here later rows rank first, on every machine, and the APs with every tie resolved for and against the detector
are given as bounds.
"""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Protocol:
    """What the public AVA evaluators do differently.

    Attributes:
        cap: rows kept per frame, those with the highest scores; 0 keeps all.
        match_by_score: detections of a frame choose boxes by falling score; otherwise in the file's order.
        frames: detections are scored on ``all`` frames, on those ``listed`` in the ground-truth file, or on
            those ``labelled`` with at least one evaluated class.
        keep_degenerate: detections without area are false positives; otherwise they are dropped.
        excluded_count: ground truth on excluded frames still counts as missed.
        skip_undetected: a class without any detection is left out of the mean; otherwise its AP is 0.
        precision: of boxes and scores.
        min_score: scores not above it are left out when the evaluator writes a model's detections.
    """

    cap: int = 0
    match_by_score: bool = True
    frames: str = "listed"
    keep_degenerate: bool = False
    excluded_count: bool = False
    skip_undetected: bool = False
    precision: type = np.float64
    min_score: float = -np.inf


PROTOCOLS = {
    # ActivityNet's get_ava_performance.py since 2020.
    "activitynet": Protocol(cap=50),
    # The zoo numbers of PySlowFast.
    "pyslowfast": Protocol(match_by_score=False, frames="all"),
    # The zoo numbers of mmaction2 1.x.
    "mmaction2": Protocol(
        frames="labelled",
        keep_degenerate=True,
        excluded_count=True,
        skip_undetected=True,
        precision=np.float32,
        min_score=0.002,
    ),
}


@dataclass(frozen=True)
class ActionBoxes:
    """Boxes of frames and the actions said of them.

    Attributes:
        frame: (B,) integers, equal where two boxes lie on the same frame.
        box: (B, 4) XYXY, any unit.
        row_box: (N,) the box that row n speaks of.
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
        protocol: an entry of ``PROTOCOLS``.
        excluded: numbers of frames that are left out.
        threshold: intersection over union of a true positive.

    Returns:
        class id -> result, in the order of ``class_ids``.
    """
    excluded = np.array([], np.int64) if excluded is None else excluded
    gt_used = ~np.isin(groundtruth.frame, excluded)
    det_used = _scored_boxes(groundtruth, detections, class_ids, protocol) & ~np.isin(
        detections.frame, excluded
    )
    if not protocol.keep_degenerate:
        det_used &= (detections.box[:, 2:] > detections.box[:, :2]).all(axis=1)
    kept = _best_rows_per_frame(detections, class_ids, protocol.cap) if protocol.cap else None
    gt_rows, det_rows = _rows_by_class(groundtruth, class_ids), _rows_by_class(detections, class_ids, kept)

    def evaluate(class_id: int) -> ClassResult:
        gt = _by_frame(groundtruth, gt_rows[class_id], gt_used)
        det = _by_frame(detections, det_rows[class_id], det_used)
        num_gt = len(gt_rows[class_id]) if protocol.excluded_count else len(gt)
        return _class_result(groundtruth, gt, detections, det, num_gt, protocol, threshold)

    with ThreadPoolExecutor() as pool:  # numpy lets go of Python's lock
        return dict(zip(class_ids, pool.map(evaluate, class_ids), strict=True))


def number_frames(*keys: np.ndarray) -> list[np.ndarray]:
    """Number the frames that integer ``keys`` name from 0, by first appearance over all arrays in turn."""
    joined = np.concatenate(keys)
    starts = np.flatnonzero(
        np.diff(joined, prepend=joined[:1] - 1)
    )  # a frame's boxes mostly follow each other
    _, first, inverse = np.unique(joined[starts], return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    numbers = np.repeat(rank[inverse], np.diff(starts, append=len(joined)))
    return np.split(numbers, np.cumsum([len(k) for k in keys])[:-1])


def _scored_boxes(groundtruth, detections, class_ids, protocol: Protocol) -> np.ndarray:
    """(B,) whether a detection lies on a frame that the protocol scores."""
    if protocol.frames == "all":
        return np.ones(len(detections.frame), bool)
    frames = groundtruth.frame
    if protocol.frames == "labelled":
        frames = frames[groundtruth.row_box[np.isin(groundtruth.action, list(class_ids))]]
    return np.isin(detections.frame, frames)


def _rows_by_class(
    boxes: ActionBoxes, class_ids: Collection[int], kept: np.ndarray | None = None
) -> dict[int, np.ndarray]:
    """The rows of every class, in file order, of those that are ``kept``."""
    action = boxes.action if kept is None else boxes.action[kept]
    order = np.argsort(action.astype(np.int16, copy=False), kind="stable")  # a radix sort
    ids = np.fromiter(class_ids, action.dtype)
    starts, ends = (np.searchsorted(action, ids, side, sorter=order) for side in ("left", "right"))
    rows = order if kept is None else np.flatnonzero(kept)[order]
    return {id_: rows[start:end] for id_, start, end in zip(class_ids, starts, ends, strict=True)}


def _by_frame(boxes: ActionBoxes, rows: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Those ``rows`` whose boxes are ``used``, frame by frame, else in the order given."""
    rows = rows[used[boxes.row_box[rows]]]
    return rows[np.argsort(boxes.frame[boxes.row_box[rows]], kind="stable")]


def _class_result(groundtruth, gt, detections, det, num_gt, protocol, threshold) -> ClassResult:
    """Match and rank the detection rows ``det`` of one class against its ground-truth rows ``gt``."""
    gt_box, det_box = groundtruth.row_box[gt], detections.row_box[det]
    score = detections.score[det].astype(protocol.precision, copy=False)
    gt, det = _pairs(groundtruth.frame[gt_box], detections.frame[det_box])
    overlap = _intersection_over_union(
        groundtruth.box[gt_box[gt]].astype(protocol.precision, copy=False),
        detections.box[det_box[det]].astype(protocol.precision, copy=False),
    )
    hit = _true_positives(gt, det, overlap, threshold, score if protocol.match_by_score else None)
    hits = np.zeros(len(score), bool)
    hits[hit] = True

    if num_gt == 0 or (protocol.skip_undetected and len(score) == 0):
        nothing = np.zeros(0)
        return ClassResult(num_gt, len(score), len(hit), *[float("nan")] * 3, nothing, nothing)
    ranks, fp_first, tp_first = _ranks(score, hits)
    recall, precision = _curve(ranks, num_gt)
    aps = [_area(*_curve(r, num_gt)) for r in (ranks, fp_first, tp_first)]
    return ClassResult(num_gt, len(score), len(hit), *aps, recall, precision)


def _pairs(gt_frame: np.ndarray, det_frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (ground truth, detection) on one frame, detection by detection; ``gt_frame`` must be sorted."""
    num_frames = max(gt_frame.max(initial=-1), det_frame.max(initial=-1)) + 1
    on_frame = np.bincount(gt_frame, minlength=num_frames)
    first = np.cumsum(on_frame) - on_frame
    det = np.flatnonzero(on_frame[det_frame])
    count = on_frame[det_frame[det]]
    nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(first[det_frame[det]], count) + nth, np.repeat(det, count)


def _true_positives(gt, det, overlap, threshold: float, score: np.ndarray | None) -> np.ndarray:
    """Detections that get a ground-truth box, out of pairs in the order of ``_pairs``.

    The best detection chooses first by ``score``, the first one of the file if that is None.
    """
    if len(det) == 0:
        return det
    starts = np.flatnonzero(np.diff(det, prepend=-1))
    largest = np.repeat(np.maximum.reduceat(overlap, starts), np.diff(starts, append=len(det)))
    chosen = np.flatnonzero(overlap == largest)
    chosen = chosen[np.diff(det[chosen], prepend=-1) > 0]  # the first of equal overlaps
    chosen = chosen[overlap[chosen] >= threshold]
    gt, det = gt[chosen], det[chosen]
    order = np.lexsort((det, det if score is None else -score[det], gt))
    return det[order[np.diff(gt[order], prepend=-1) > 0]]


def _intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) of the boxes a[n] and b[n]; 0 where both have no area."""
    zero = np.zeros(len(a))  # float64 whatever the boxes are: so the references intersect
    width, height = np.maximum(
        zero[:, None], np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    ).T
    intersection = width * height
    union = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1) - intersection
    return np.divide(intersection, union, out=zero, where=union != 0)


def _ranks(score: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks of the true positives, from 0: with later rows, false positives, true ones first among ties."""
    ascending, hits = np.sort(score), -np.sort(-score[hit])
    lower, higher = np.searchsorted(ascending, hits, "left"), np.searchsorted(ascending, hits, "right")
    before, after = np.searchsorted(-hits, -hits, "left"), np.searchsorted(-hits, -hits, "right")
    nth = np.arange(len(hits))
    fp_first, tp_first = len(score) - lower - (after - nth), len(score) - higher + (nth - before)
    if np.array_equal(fp_first, tp_first):
        return tp_first, fp_first, tp_first
    return np.flatnonzero(hit[np.argsort(score, kind="stable")[::-1]]), fp_first, tp_first


def _curve(ranks: np.ndarray, num_gt: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and monotone precision at the true positives of the given ranks."""
    hits = np.arange(1, len(ranks) + 1)
    precision = hits / (ranks + 1)
    return hits / num_gt, np.maximum.accumulate(precision[::-1])[::-1]


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the curve of ``_curve``, in as many terms as the references sum, so that all bits agree."""
    steps = np.diff(recall, prepend=0.0, append=1.0)  # precision is 0 where recall is not reached
    heights = np.append(precision, 0.0)
    return float(np.sum((steps * heights)[steps != 0]))


def _best_rows_per_frame(boxes: ActionBoxes, class_ids: Collection[int], cap: int) -> np.ndarray:
    """(N,) whether a row is among the ``cap`` best of the evaluated classes on its frame."""
    kept = np.zeros(len(boxes.action), bool)
    for rows in _rows_by_frame(boxes, class_ids):  # (frames with equally many rows, rows)
        if rows.shape[1] <= cap:
            kept[rows] = True
            continue
        score = boxes.score[rows]
        lowest = np.partition(score, -cap, axis=1)[:, [-cap]]
        kept[rows[score > lowest]] = True
        kept[_surviving_ties(boxes, rows, score, lowest, cap)] = True
    return kept


def _rows_by_frame(boxes: ActionBoxes, class_ids: Collection[int]) -> Iterator[np.ndarray]:
    """Rows of the evaluated classes as (frames, rows per frame), once for every number of rows per frame."""
    rows = np.flatnonzero(np.isin(boxes.action, list(class_ids)))
    frame = boxes.frame[boxes.row_box[rows]]
    order = np.argsort(frame, kind="stable")
    rows, frame = rows[order], frame[order]
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
