"""Image to tokens: one strided convolution."""

import torch
from torch import nn
from torch.nn import functional as F


class PatchEmbed(nn.Module):
    """(N, C, H, W) -> (N, ceil(H / stride), ceil(W / stride), dim), channels last.

    An image that the stride does not divide is padded with zeros at the right and bottom.
    """

    def __init__(self, dim: int, kernel_size: int, stride: int, padding: int = 0, in_channels: int = 3):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size, stride, padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stride = self.proj.stride[0]
        # Not the remainder of a negative number, which PyTorch does not compile for several sizes.
        below, right = ((side + stride - 1) // stride * stride - side for side in x.shape[2:])
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        return self.proj(x).permute(0, 2, 3, 1).contiguous()  # or every sum and norm after it would copy
