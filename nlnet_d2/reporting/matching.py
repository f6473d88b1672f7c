"""Which detections stand for which objects: what is right, confused, missed and false in an image.

Only for looking at: average precision is computed by its own protocols.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask

MIN_SCORE = 0.5
MIN_OVERLAP = 0.5  # intersection over union


@dataclass(frozen=True)
class Objects:
    """Objects of an image, true or found.

    Attributes:
        classes: (N,) index of the class.
        boxes: (N, 4) XYWH, absolute pixels.
        scores: (N,); 1 for true ones.
        crowd: (N,) bool; regions where nothing is false.
    """

    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple], crowd: Sequence[bool] | None = None) -> "Objects":
        """From rows (class, box, score)."""
        classes, boxes, scores = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(
            np.array(classes, int),
            np.array(boxes, float).reshape(-1, 4),
            np.array(scores, float),
            np.zeros(len(rows), bool) if crowd is None else np.array(crowd, bool),
        )


@dataclass
class Verdict:
    """Indices of true objects and of detections that score ``MIN_SCORE`` or more.

    ``right`` and ``confused`` are pairs (true, found) that overlap, of one class and of different classes;
    ``missed`` are true objects, ``false`` detections without a partner. ``overlaps`` are those of ``right``.
    """

    right: list[tuple[int, int]] = field(default_factory=list)
    confused: list[tuple[int, int]] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    false: list[int] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)

    @property
    def quality(self) -> tuple[float, float]:
        """F1 of the image, then the mean overlap of what is right: the order from worst to best."""
        right = len(self.right)
        others = 2 * len(self.confused) + len(self.missed) + len(self.false)
        f1 = 2 * right / (2 * right + others) if right + others else 1.0
        return f1, float(np.mean(self.overlaps)) if right else 0.0


def match(truth: Objects, found: Objects) -> Verdict:
    """Pair objects one to one, those of one class first, the largest overlap first."""
    sure = np.flatnonzero(found.scores >= MIN_SCORE)
    plain = np.flatnonzero(~truth.crowd)
    overlap = _overlaps(truth.boxes[plain], found.boxes[sure])
    same = truth.classes[plain][:, None] == found.classes[sure][None]
    verdict, free_true, free_found = Verdict(), dict.fromkeys(plain.tolist()), dict.fromkeys(sure.tolist())
    candidates = np.argwhere(overlap >= MIN_OVERLAP)
    order = np.argsort(-(overlap + same)[tuple(candidates.T)], kind="stable")
    for t, f in candidates[order].tolist():
        true, detection = int(plain[t]), int(sure[f])
        if true not in free_true or detection not in free_found:
            continue
        del free_true[true], free_found[detection]
        (verdict.right if same[t, f] else verdict.confused).append((true, detection))
        if same[t, f]:
            verdict.overlaps.append(float(overlap[t, f]))
    verdict.missed = list(free_true)
    in_crowd = _inside(found.boxes, truth.boxes[truth.crowd])
    verdict.false = [detection for detection in free_found if not in_crowd[detection]]
    return verdict


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs of XYWH boxes, (A, B)."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    return np.asarray(mask.iou(np.ascontiguousarray(b), np.ascontiguousarray(a), [0] * len(a))).T


def _inside(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """(N,) whether half of a box or more lies in a crowd."""
    if not len(boxes) or not len(crowds):
        return np.zeros(len(boxes), bool)
    shares = mask.iou(np.ascontiguousarray(boxes), np.ascontiguousarray(crowds), [1] * len(crowds))
    return np.asarray(shares).max(axis=1) >= MIN_OVERLAP


def confusion(pairs: Iterable[tuple[Objects, Objects, Verdict]], num_classes: int) -> np.ndarray:
    """(K + 1, K + 1) counts: row true class, column found class; the last ones are "nothing"."""
    counts = Counter()
    for truth, found, verdict in pairs:
        for t, f in (*verdict.right, *verdict.confused):
            counts[int(truth.classes[t]), int(found.classes[f])] += 1
        counts.update((int(truth.classes[t]), num_classes) for t in verdict.missed)
        counts.update((num_classes, int(found.classes[f])) for f in verdict.false)
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    for place, count in counts.items():
        matrix[place] = count
    return matrix
