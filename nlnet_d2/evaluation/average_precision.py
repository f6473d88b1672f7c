"""Average precision of detections, of which only the ranks of the true positives matter.

A million false positives need not be sorted to know how many of them are ahead of a true positive.
"""

import numpy as np

BUCKETS = 1 << 16  # of scores: their counts fit the second cache of a core


def ranks_of_hits(score: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks of the true positives, from 0, in rising order.

    Args:
        score: (N,) of all detections, without NaN.
        hit: (N,) whether a detection is a true positive.

    Returns:
        three arrays (true positives,), which differ in what comes first among equal scores: the later row,
        the false positives, the true positives.
    """
    hits = np.sort(score[hit])[::-1]
    close, ahead = _close_to(hits, score)
    score, hit = score[close], hit[close]
    ascending = np.sort(score)
    lower, higher = np.searchsorted(ascending, hits, "left"), np.searchsorted(ascending, hits, "right")
    before, after = np.searchsorted(-hits, -hits, "left"), np.searchsorted(-hits, -hits, "right")
    nth = np.arange(len(hits))
    fp_first = ahead + len(score) - lower - (after - nth)
    tp_first = ahead + len(score) - higher + (nth - before)
    if np.array_equal(fp_first, tp_first):
        return tp_first, fp_first, tp_first
    return ahead + np.flatnonzero(hit[np.argsort(score, kind="stable")[::-1]]), fp_first, tp_first


def _close_to(hits: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that share a bucket of scores with a true positive, and how many others rank before each of these.

    Counting is much faster than sorting, and the order of rows far from a true positive does not matter.
    """
    low, high = score.min(initial=np.inf), score.max(initial=-np.inf)
    bucket, of_hits = (((s - low) / (high - low or 1) * (BUCKETS - 1)).astype(np.intp) for s in (score, hits))
    close = np.zeros(BUCKETS, bool)
    close[of_hits] = True
    far = np.bincount(bucket, minlength=BUCKETS)
    far[close] = 0
    return np.flatnonzero(close[bucket]), far.sum() - far.cumsum()[of_hits]


def curve(ranks: np.ndarray, num_gt: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and monotone precision at the true positives of the given ranks."""
    hits = np.arange(1, len(ranks) + 1)
    precision = hits / (ranks + 1)
    return hits / num_gt, np.maximum.accumulate(precision[::-1])[::-1]


def area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the curve of ``curve``, in as many terms as the references sum, so that all bits agree."""
    steps = np.diff(recall, prepend=0.0, append=1.0)  # precision is 0 where recall is not reached
    heights = np.append(precision, 0.0)
    return float(np.sum((steps * heights)[steps != 0]))
