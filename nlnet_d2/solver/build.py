"""The optimizer of a config."""

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from nlnet_d2.solver.param_groups import parameter_groups


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW by ``SOLVER.OPTIMIZER``, with Detectron2's gradient clipping.

    Raises:
        ValueError: an optimizer of another name, or see ``param_groups.layer_numbers``.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        norm_decay=solver.WEIGHT_DECAY_NORM,
        bias_decay=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        no_decay=solver.NO_DECAY,
        layer_decay=solver.LAYER_DECAY,
    )
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(groups, solver.BASE_LR, solver.MOMENTUM, nesterov=solver.NESTEROV)
    elif solver.OPTIMIZER == "AdamW":
        optimizer = torch.optim.AdamW(groups, solver.BASE_LR)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is SGD or AdamW, got {solver.OPTIMIZER!r}")
    return maybe_add_gradient_clipping(cfg, optimizer)
