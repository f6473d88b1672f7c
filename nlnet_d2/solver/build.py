"""The optimizer of a config."""

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from nlnet_d2.solver.param_groups import parameter_groups


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW by ``SOLVER.OPTIMIZER``, with gradient clipping.

    CLIP_TYPE ``full_model`` clips by the norm of all gradients together; Detectron2's own types, ``value``
    and ``norm``, look at each parameter alone.

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
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        return _clip_together(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
    return maybe_add_gradient_clipping(cfg, optimizer)


def _clip_together(
    optimizer: torch.optim.Optimizer, max_norm: float, norm_type: float
) -> torch.optim.Optimizer:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def clip(*_) -> None:
        nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)  # a loss scale has been taken out by then
    return optimizer
