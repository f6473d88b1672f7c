"""The number format of mixed-precision training."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling.poolers import ROIPooler
from torch import nn

from nlnet_d2.engine.errors import ConfigError


def training_precision(cfg: CfgNode) -> torch.dtype | None:
    """SOLVER.AMP as a dtype; ``auto`` is float16 on a GPU, as in Detectron2, and bfloat16 on a CPU.

    Raises:
        ConfigError: float16 on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    on_cpu, name = cfg.MODEL.DEVICE == "cpu", cfg.SOLVER.AMP.PRECISION
    if name == "fp16" and on_cpu:
        raise ConfigError("SOLVER.AMP.PRECISION fp16 does not train on a CPU: use bf16, or auto")
    return torch.bfloat16 if name == "bf16" or on_cpu else torch.float16


def keep_coordinates(model: nn.Module) -> None:
    """Give the RoI poolers of a model float32 maps, in place: RoIAlign rounds the boxes to the maps' format.

    A coordinate of 1000 pixels would be off by up to 2 in bfloat16, by 1/4 in float16.
    """
    for module in model.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_pre_hook(lambda _, inputs: ([x.float() for x in inputs[0]], *inputs[1:]))
