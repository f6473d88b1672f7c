"""Prediction: pictures, videos and cameras in; instances, annotated pictures and videos, JSON and CSV out."""

from nlnet_d2.inference.optimize import optimize_for_inference
from nlnet_d2.inference.predictor import predict

__all__ = ["optimize_for_inference", "predict"]
