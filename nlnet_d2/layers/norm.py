"""Normalisation layers by name, for images (N, C, H, W) and clips (N, C, T, H, W)."""

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers import get_norm as get_norm_2d
from torch import nn
from torch.nn import functional as F

GROUPS = 32  # arXiv 1803.08494, section 4


class FrozenBatchNorm3d(FrozenBatchNorm2d):
    """Detectron2's frozen batch normalisation for (N, C, T, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def get_norm(norm: str, channels: int, dim: int = 2) -> nn.Module | None:
    """Detectron2's ``get_norm`` in two or three dimensions.

    Args:
        norm: "" (none), "BN", "SyncBN", "FrozenBN", "GN", "LN" or, for images, any name Detectron2 knows.
        channels: C of the input.
        dim: 2 for (N, C, H, W), 3 for (N, C, T, H, W).

    Returns:
        The layer, or None for "".

    Raises:
        ValueError: GN on a channel count that 32 groups do not divide, or a name unknown for clips.
    """
    if norm == "GN" and channels % GROUPS:
        raise ValueError(
            f"NORM: GN has {GROUPS} groups, which do not divide {channels} channels; "
            f"choose a multiple of {GROUPS} channels, or another NORM (LN has no groups)"
        )
    if dim == 2 or not norm:
        return get_norm_2d(norm, channels)
    layers = {
        "BN": nn.BatchNorm3d,
        "SyncBN": nn.SyncBatchNorm,
        "FrozenBN": FrozenBatchNorm3d,
        "GN": lambda c: nn.GroupNorm(GROUPS, c),
        "LN": lambda c: nn.GroupNorm(1, c),
    }
    if norm not in layers:
        raise ValueError(f"NORM: {norm} is not known for clips; choose one of {', '.join(layers)}")
    return layers[norm](channels)
