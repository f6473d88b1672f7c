"""Metrics: COCO's on a compiled backend, AVA's frame-mAP by public protocols, pictures of predictions."""

from nlnet_d2.evaluation.ava import evaluate_ava

__all__ = ["evaluate_ava"]
