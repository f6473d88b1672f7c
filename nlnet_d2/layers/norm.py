"""Normalisation layers by name, for images (N, C, H, W) and clips (N, C, T, H, W)."""

from collections.abc import Callable
from functools import partial

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers import get_norm as get_norm_2d
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nlnet_d2.layers.layer_norm import EPS, ChannelNorm

GROUPS = 32  # arXiv 1803.08494, section 4
SUB_BATCH = 8  # clips; arXiv 1812.03982, section 4


class FrozenBatchNorm3d(FrozenBatchNorm2d):
    """Detectron2's frozen batch normalisation for (N, C, T, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class SubBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation of every ``SUB_BATCH`` clips on their own, whatever the batch of the process.

    The published networks were trained with 8 clips per GPU, and normalised by those (arXiv 1812.03982). The
    running statistics are those of all clips, by the law of total variance; names of the state as in
    ``nn.BatchNorm3d``. (PySlowFast's SubBatchNorm3d keeps them per sub-batch and adds them up later.)

    Raises:
        ValueError: in training, a batch that is no multiple of ``SUB_BATCH``.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, T, H, W) -> the same."""
        if not self.training:
            return super().forward(x)
        if len(x) % SUB_BATCH:
            raise ValueError(f"NORM: SubBN needs a multiple of {SUB_BATCH} clips per process, got {len(x)}")
        splits = len(x) // SUB_BATCH
        folded = x.unflatten(0, (splits, -1)).transpose(0, 1).flatten(1, 2)  # (8, splits * C, T, H, W)
        mean, var = (buffer.repeat(splits) for buffer in (self.running_mean, self.running_var))
        affine = self.weight.repeat(splits), self.bias.repeat(splits)
        out = F.batch_norm(folded, mean, var, *affine, training=True, momentum=1.0, eps=self.eps)
        means, variances = mean.view(splits, -1), var.view(splits, -1)
        self.running_mean.lerp_(means.mean(0), self.momentum)
        self.running_var.lerp_(variances.mean(0) + means.var(0, unbiased=False), self.momentum)
        self.num_batches_tracked += 1
        return out.unflatten(1, (splits, -1)).transpose(0, 1).flatten(0, 1)


class ChannelNorm3d(nn.LayerNorm):
    """Normalises the channels of (N, C, T, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


NORMS_3D = {
    "BN": nn.BatchNorm3d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm3d,
    "GN": partial(nn.GroupNorm, GROUPS),
    "LN": partial(ChannelNorm3d, eps=EPS),
    "SubBN": SubBatchNorm3d,
}


def get_norm(norm: str, channels: int, dim: int = 2) -> nn.Module | None:
    """Detectron2's ``get_norm`` in two or three dimensions.

    Args:
        norm: "" (none), "BN", "SyncBN", "FrozenBN", "GN", "LN" (over the channels of each position); for
            clips "SubBN" (see ``SubBatchNorm3d``), for images any name that Detectron2 knows.
        channels: C of the input.
        dim: 2 for (N, C, H, W), 3 for (N, C, T, H, W).

    Returns:
        The layer, or None for "".

    Raises:
        ValueError: GN on a channel count that 32 groups do not divide, or an unknown name.
    """
    if norm == "GN" and channels % GROUPS:
        raise ValueError(
            f"NORM: GN has {GROUPS} groups, which do not divide {channels} channels; "
            f"choose a multiple of {GROUPS} channels, or another NORM (LN has no groups)"
        )
    if not norm:
        return None
    if dim == 2 and norm == "LN":  # detectron2 0.6 does not know the name; upstream means the same
        return ChannelNorm(channels)
    try:
        return get_norm_2d(norm, channels) if dim == 2 else NORMS_3D[norm](channels)
    except KeyError as error:
        known = [name for name in NORMS_3D if dim == 3 or name != "SubBN"]
        raise ValueError(f"NORM: {norm!r} is unknown; choose one of {', '.join(known)}") from error


def norm_argument(norm: str) -> str | Callable[[int], nn.Module]:
    """What to pass as ``norm`` to a module of Detectron2, so that it builds its layers with ``get_norm``.

    Such a module takes a name or a callable, and its convolutions have a bias if it is "". LN becomes a
    subclass of ``nn.LayerNorm``, which SOLVER.WEIGHT_DECAY_NORM covers; upstream's own LN is not covered.
    """
    return partial(get_norm, norm) if norm else ""


def is_constant(norm: nn.Module | None) -> bool:
    """Whether a norm multiplies and adds constants: frozen, or batch normalisation by running statistics."""
    evaluated = isinstance(norm, _BatchNorm) and not norm.training and norm.running_var is not None
    return evaluated or isinstance(norm, FrozenBatchNorm2d)
