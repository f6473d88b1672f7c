"""Which learning rate and weight decay each parameter gets: Detectron2's groups, and layer-wise decay."""

import re
from collections.abc import Iterable

from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from torch import nn

# "residual": convolutions that are new in detection, not part of the pre-trained block.
BLOCK = re.compile(r"backbone\.(?:\w+\.)*blocks\.(\d+)\.(?!residual\.)")
EMBEDDING = re.compile(r"backbone\.(?:\w+\.)*(pos_embed$|patch_embed\.)")


def layer_numbers(names: Iterable[str]) -> dict[str, int]:
    """The layer of each parameter: 0 for the embeddings, i + 1 for block i, and one more for all the rest.

    Args:
        names: of all parameters of a detector, its backbone under ``backbone``.

    Raises:
        ValueError: no parameter belongs to a block of the backbone.
    """
    names = list(names)
    blocks = {name: int(match[1]) for name in names if (match := BLOCK.match(name))}
    if not blocks:
        raise ValueError(
            "SOLVER.LAYER_DECAY needs a backbone of transformer blocks (parameters backbone.*.blocks.N.*), "
            "and this model has none: set it to 1.0"
        )
    last = max(blocks.values()) + 2
    return {n: blocks[n] + 1 if n in blocks else 0 if EMBEDDING.match(n) else last for n in names}


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    norm_decay: float | None = None,
    bias_decay: float | None = None,
    bias_lr_factor: float = 1.0,
    no_decay: Iterable[str] = (),
    layer_decay: float = 1.0,
) -> list[dict]:
    """Groups of the trainable parameters for a torch optimizer.

    Args:
        model: the detector, not yet wrapped for distributed training.
        lr, weight_decay: of a plain weight in the last layer.
        norm_decay, bias_decay: weight decay of normalisation layers and of biases; None for ``weight_decay``.
        bias_lr_factor: learning rate of biases relative to weights.
        no_decay: last names of parameters that are not decayed, such as "pos_embed".
        layer_decay: the learning rate of a layer relative to that of the next (arXiv 2003.10555; ViTDet:
            B 0.7, L 0.8, H 0.9).

    Returns:
        Dicts of ``params``, ``lr`` and ``weight_decay``.
    """
    groups = get_default_optimizer_params(
        model,
        base_lr=lr,
        weight_decay=weight_decay,
        weight_decay_norm=norm_decay,
        bias_lr_factor=bias_lr_factor,
        weight_decay_bias=bias_decay,
        overrides={name: {"weight_decay": 0.0} for name in no_decay},
    )
    if layer_decay == 1.0:
        return groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    numbers = layer_numbers(names.values())
    last = max(numbers.values())
    single = (group | {"params": [p]} for group in groups for p in group["params"])
    return reduce_param_groups(
        [g | {"lr": g["lr"] * layer_decay ** (last - numbers[names[g["params"][0]]])} for g in single]
    )
