"""The protocols of frame-mAP: what the public AVA evaluators do, by name."""

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
