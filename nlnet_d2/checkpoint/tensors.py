"""The operations that turn a published tensor into ours, where renaming is not enough.

Each takes the tensor and the ``Target``, the parameter it is for, and returns it unchanged where it has
nothing to do. Shapes are compared afterwards: an operation need not check them.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from nlnet_d2.checkpoint.checkpointer import CheckpointError

TOKENS = 2  # of the class and of distillation, whose positions come before those of the map


class Target(NamedTuple):
    """Where a tensor goes: shape of the parameter, and the module that holds its layer (theta's block)."""

    shape: torch.Size
    block: nn.Module


TensorOp = Callable[[torch.Tensor, Target], torch.Tensor]


def inflate(weight: torch.Tensor, target: Target) -> torch.Tensor:
    """2-D kernel (O, I, H, W) -> (O, I, T, H, W): the same response to a still clip (arXiv 1705.07750)."""
    if weight.ndim != 4 or len(target.shape) != 5:
        return weight
    return weight[:, :, None].expand(-1, -1, target.shape[2], -1, -1) / target.shape[2]


def squeeze_time(weight: torch.Tensor, target: Target) -> torch.Tensor:
    """3-D kernel (O, I, 1, H, W) of a network that was trained on images -> (O, I, H, W)."""
    is_image_kernel = weight.ndim == 5 and weight.shape[2] == 1 and len(target.shape) == 4
    return weight.squeeze(2) if is_image_kernel else weight


def linear_or_conv(weight: torch.Tensor, target: Target) -> torch.Tensor:
    """(O, I) <-> (O, I, 1, 1) or (O, I, 1, 1, 1): a linear layer is a convolution of kernel 1."""
    return (
        weight.reshape(target.shape) if _without_ones(weight.shape) == _without_ones(target.shape) else weight
    )


def _without_ones(shape: torch.Size) -> tuple[int, ...]:
    """Without the trailing dimensions of size 1."""
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def resize_positions(positions: torch.Tensor, target: Target) -> torch.Tensor:
    """Absolute positions (1, [1 +] S * S, C) -> those of another square map, bicubic; the class token's first
    position is kept, or dropped if the target has none.

    Raises:
        CheckpointError: the positions are not those of a square map.
    """
    if positions.shape == target.shape or positions.ndim != 3:
        return positions
    old, new = (math.isqrt(n) for n in (positions.shape[1], target.shape[1]))
    if positions.shape[1] - old**2 > TOKENS:
        raise CheckpointError(
            f"{positions.shape[1]} absolute positions are no square map after at most {TOKENS} tokens, so "
            "they cannot be interpolated: resize them to the model's map in the file"
        )
    token, grid = positions.split([positions.shape[1] - old**2, old**2], dim=1)
    if old != new:
        grid = grid.unflatten(1, (old, old)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
        grid = grid.flatten(2).transpose(1, 2)  # (1, new * new, C)
    return torch.cat([token[:, : target.shape[1] - new**2], grid], dim=1)


def resize_offsets(table: torch.Tensor, target: Target) -> torch.Tensor:
    """Relative positions along one axis (L, C) -> (L', C), linear."""
    if table.ndim != 2 or table.shape == target.shape:
        return table
    return F.interpolate(table.t()[None], size=target.shape[0], mode="linear")[0].t()


def resize_kernel(weight: torch.Tensor, target: Target) -> torch.Tensor:
    """Kernel of a patch embedding (C, 3, P, P) -> another patch size, bicubic (ViT-H/14 -> /16)."""
    if weight.ndim != 4 or weight.shape[:2] != target.shape[:2] or weight.shape == target.shape:
        return weight
    return F.interpolate(weight, size=target.shape[2:], mode="bicubic", align_corners=False)


def hwio_to_oihw(weight: torch.Tensor, _: Target) -> torch.Tensor:
    """2-D kernel of JAX (H, W, I, O) -> (O, I, H, W)."""
    return weight.permute(3, 2, 0, 1) if weight.ndim == 4 else weight


def dense(weight: torch.Tensor, _: Target) -> torch.Tensor:
    """Kernel of a linear layer in JAX (I, O) -> (O, I); I may be several dimensions: heads and channels."""
    return weight.flatten(end_dim=-2).t() if weight.ndim > 1 else weight


def fuse_qkv(qkv: torch.Tensor, target: Target) -> torch.Tensor:
    """Query, key and value in JAX, kernels (I, 3, heads, D) or biases (3, heads, D) -> (3 * heads * D[, I]),
    for a block of as many heads; the same weights in others would mean something else.
    """
    fits = qkv.ndim > 2 and qkv.shape[-2] == target.block.num_heads
    return qkv.flatten(-3).t() if fits else qkv


def drop_background(rows: torch.Tensor, target: Target) -> torch.Tensor:
    """Rows of a classifier (1 + K, ...) whose class 0 is the background -> (K, ...)."""
    return rows[1:] if rows.shape[0] == target.shape[0] + 1 else rows


def background_last(rows: torch.Tensor, _: Target) -> torch.Tensor:
    """Rows of a classifier (1 + K, ...), background first -> background last, as in Detectron2."""
    return rows.roll(-1, dims=0)


def drop_background_boxes(rows: torch.Tensor, _: Target) -> torch.Tensor:
    """Rows of a box regressor (4 * (1 + K), ...) whose class 0 is the background -> (4 * K, ...)."""
    return rows[4:]


def undo_inverse_scale(theta: torch.Tensor, target: Target) -> torch.Tensor:
    """theta of a block that multiplies its logits by sqrt(C'), for one that divides them: times C'.

    The non-local block of the GCNet code divides by C'^-1/2 where it means to divide by C'^1/2. Ours scales
    (``block.scale``) only the embedded Gaussian, and only if told to; so does theirs.
    """
    return theta if target.block.scale == 1 else theta * theta.shape[0]


def reverse_channels(state: dict[str, torch.Tensor]) -> None:
    """Change the first convolutions (C, 3, ...) in a state dict of ours from RGB images to BGR, or back.

    Raises:
        ValueError: it has none.
    """
    first = [name for name in state if re.search(r"(^|\.)(stem\.conv1|patch_embed\.proj)\.weight$", name)]
    if not first:
        raise ValueError("the weights hold no first convolution")
    for name in first:
        state[name] = state[name].flip(1)
