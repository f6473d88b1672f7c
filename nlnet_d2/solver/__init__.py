"""Optimizers and parameter groups; the schedules are Detectron2's."""

from nlnet_d2.solver.build import build_optimizer
from nlnet_d2.solver.param_groups import parameter_groups

__all__ = ["build_optimizer", "parameter_groups"]
