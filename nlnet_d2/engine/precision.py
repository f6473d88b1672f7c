"""The number format of mixed-precision training."""

import torch
from detectron2.config import CfgNode

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
