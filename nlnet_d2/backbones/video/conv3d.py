"""The convolution of the networks for clips, and their stem."""

import torch
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from nlnet_d2.layers.norm import GROUPS, get_norm

LANES = 16  # float32 numbers in a vector of AVX-512


class Conv3d(nn.Conv3d):
    """A convolution without bias, with its normalisation as child ``norm`` (as Detectron2's ``Conv2d``).

    Kernel (T, H, W), odd; stride and dilation act on H and W. Keeps T, and H and W up to the stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int],
        *,
        norm: str,
        stride: int = 1,
        temporal_stride: int = 1,
        dilation: int = 1,
    ):
        padding = (kernel[0] // 2, dilation * (kernel[1] // 2), dilation * (kernel[2] // 2))
        steps = (temporal_stride, stride, stride)
        super().__init__(
            in_channels, out_channels, kernel, steps, padding, (1, dilation, dilation), bias=False
        )
        self.norm = _norm(norm, out_channels)
        c2_msra_fill(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, T, H, W) -> (N, C', T, H / stride, W / stride)."""
        planar = x.is_cpu and x.is_contiguous(memory_format=torch.channels_last_3d) and not _fuses()
        x = self._planar(x) if planar else super().forward(x)
        return x if self.norm is None else self.norm(x)

    def _planar(self, x: torch.Tensor) -> torch.Tensor:
        """The same in two dimensions where the kernel has no more: views of a channels-last clip. oneDNN is
        faster there, and PyTorch leaves thin clips to a slow kernel of its own in three dimensions.
        """
        if self.kernel_size[0] == self.stride[0] == 1:  # frames (N * T, C, H, W)
            frames = x.transpose(1, 2)
            steps = self.stride[1:], self.padding[1:], self.dilation[1:]
            out = F.conv2d(frames.flatten(0, 1), self.weight.squeeze(2), self.bias, *steps)
            return out.unflatten(0, frames.shape[:2]).transpose(1, 2)
        if self.kernel_size[1:] == self.stride[1:] == (1, 1):  # (N, C, T, H * W)
            steps = (self.stride[0], 1), (self.padding[0], 0)
            out = F.conv2d(x.flatten(3), self.weight.squeeze(4), self.bias, *steps)
            # Unfolded with the channels last, so that a single clip is seen to have them there.
            return out.movedim(1, 3).unflatten(2, x.shape[3:]).movedim(4, 1)
        return super().forward(x)


def _fuses() -> bool:
    """Whether inductor compiles the weights in: oneDNN then computes clips of any shape, and in one go what
    follows a convolution, unless views stand between.
    """
    return torch.compiler.is_compiling() and torch._inductor.config.freezing


def _norm(norm: str, channels: int) -> nn.Module | None:
    """``get_norm`` for clips, but GN keeps two channels per group in the thin layers of a fast pathway."""
    if norm == "GN" and channels < 2 * GROUPS:
        return nn.GroupNorm(max(channels // 2, 1), channels)
    return get_norm(norm, channels, dim=3)


class Stem3d(nn.Module):
    """T x 7 x 7 convolution and 1 x 3 x 3 max-pooling, each of spatial stride 2."""

    paired = False  # whether conv1 computes two frames at once

    def __init__(self, in_channels: int, out_channels: int, temporal_kernel: int, norm: str):
        super().__init__()
        self.conv1 = Conv3d(in_channels, out_channels, (temporal_kernel, 7, 7), stride=2, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, T, H, W) -> (N, C, T, H / 4, W / 4)."""
        frames = x.shape[2]
        if self.paired and frames % 2:
            x = F.pad(x, (0, 0, 0, 0, 0, 1))
        x = F.max_pool3d(F.relu_(self.conv1(x)), (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        return _unpair(x)[:, :, :frames] if self.paired else x

    def pair_frames(self) -> None:
        """Compute frames 2 i and 2 i + 1 at once, as 2 C channels with a temporal stride of 2: for inference
        on a CPU, whose vectors the 8 channels of a fast pathway would leave half empty.

        Does nothing where the channels fill them, or while the norm is not folded into conv1.
        """
        conv = self.conv1
        if self.paired or conv.bias is None or 2 * conv.out_channels > LANES or not conv.weight.is_cpu:
            return
        first, second = (F.pad(conv.weight, (0, 0, 0, 0, *taps)) for taps in ((0, 1), (1, 0)))
        conv.weight = nn.Parameter(torch.cat([first, second]), requires_grad=False)
        conv.bias = nn.Parameter(conv.bias.repeat(2), requires_grad=False)
        conv.stride = (2, *conv.stride[1:])
        self.paired = True


def _unpair(x: torch.Tensor) -> torch.Tensor:
    """(N, 2 C, T / 2, H, W) -> (N, C, T, H, W), channels last."""
    pairs = x.movedim(1, -1).unflatten(-1, (2, -1))  # (N, T / 2, H, W, 2, C)
    return pairs.movedim(-2, 2).flatten(1, 2).movedim(-1, 1)
