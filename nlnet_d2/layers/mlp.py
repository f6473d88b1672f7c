"""The perceptron of transformer blocks (arXiv 1706.03762, section 3.3), and how linear layers start."""

import torch
from torch import nn
from torch.nn import functional as F

from nlnet_d2.layers.products import Linear
from nlnet_d2.layers.watched import is_watched


class Mlp(nn.Module):
    """(..., dim) -> (..., out_dim): linear, GELU, linear; the hidden width is 4 * dim."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.fc1 = Linear(dim, 4 * dim)
        self.fc2 = Linear(4 * dim, out_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if is_watched(self.fc1, Linear) or is_watched(self.fc2, Linear):
            return self.fc2(F.gelu(self.fc1(x)))
        if torch.is_grad_enabled():
            return self.fc2(self.fc1(x), gelu="before")
        return self.fc2(self.fc1(x, gelu="after"))


def init_linear(module: nn.Module) -> None:
    """Start a linear layer as ViT does; for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
