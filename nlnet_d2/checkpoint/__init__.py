"""Weights in and out: published files read safely and fitted strictly, checkpoints that survive a kill."""

from nlnet_d2.checkpoint.load import load_weights
from nlnet_d2.checkpoint.read import read_tensors
from nlnet_d2.checkpoint.report import LoadReport

__all__ = ["LoadReport", "load_weights", "read_tensors"]
