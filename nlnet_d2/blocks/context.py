"""Blocks that add one context, the same for all positions: simplified non-local, global context, SE.

"GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", Cao et al. 2019, arXiv 1904.11492;
"Squeeze-and-Excitation Networks", Hu et al. 2018, arXiv 1709.01507. The names and the initial values
of the parameters of GlobalContext are those of the authors' code, so that its checkpoints fit.
"""

import torch
from torch import nn

from nlnet_d2.blocks.base import BLOCKS, bottleneck_channels
from nlnet_d2.layers.products import matmul

CONVS = {2: nn.Conv2d, 3: nn.Conv3d}
POOLINGS = ("att", "avg")
FUSIONS = ("add", "mul", "both")
BOTTLENECKS = ("linear", "relu", "ln_relu")


class ContextPooling(nn.Module):
    """Context modelling: x is pooled over its positions by one attention map per image, softmax_j(W_k x_j),
    or to its mean.

    ``inplace``: write the result over x, where nobody else needs x; see ``optimize_for_inference``.
    """

    inplace = False

    def __init__(self, channels: int, dim: int, pooling: str = "att"):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"POOLING {pooling!r} is unknown; choose one of {', '.join(POOLINGS)}")
        self.conv_mask = None
        if pooling == "att":
            self.conv_mask = CONVS[dim](channels, 1, 1)  # W_k
            nn.init.kaiming_normal_(self.conv_mask.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(self.conv_mask.bias)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Weights of the positions, the same for all queries: (N, 1, P)."""
        if self.conv_mask is None:
            positions = x.shape[2:].numel()
            return x.new_full((x.shape[0], 1, positions), 1 / positions)
        # Faster than a convolution to one channel.
        logits = matmul(self.conv_mask.weight.flatten(1), x.flatten(2), self.conv_mask.bias)
        return logits.softmax(dim=-1)

    def attention_rows(self, x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """``attention`` for each of the Q ``points``: (N, Q, 1 head, H, W) or (N, Q, 1, T, H, W)."""
        rows = self.attention(x).unflatten(2, x.shape[2:]).unsqueeze(1)
        return rows.expand(-1, len(points), *[-1] * (rows.ndim - 2))

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """sum_j attention_j x_j: (N, C, H, W) -> (N, C, 1, 1)."""
        if self.conv_mask is None:
            return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        context = matmul(x.flatten(2), self.attention(x).mT)  # (N, C, 1)
        return context.reshape(*x.shape[:2], *[1] * (x.ndim - 2))

    def add(self, x: torch.Tensor, term: torch.Tensor) -> torch.Tensor:
        return x.add_(term) if self.inplace else x + term

    def multiply(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return x.mul_(factor) if self.inplace else x * factor


@BLOCKS.register()
class SimplifiedNonLocal(ContextPooling):
    """z_i = x_i + W_v sum_j softmax_j(W_k x_j) x_j (GCNet, "Simplifying the Non-local Block").

    W_v is applied once, after the pooling. It starts at zero, and so the block as the identity.

    Args:
        channels: C of x.
        dim: 2 for x (N, C, H, W), 3 for x (N, C, T, H, W).
    """

    def __init__(self, channels: int, *, dim: int = 2):
        super().__init__(channels, dim)
        self.out = CONVS[dim](channels, channels, 1)  # W_v
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W) or (N, C, T, H, W) -> the same shape."""
        return self.add(x, self.out(self.pool(x)))


@BLOCKS.register()
class GlobalContext(ContextPooling):
    """z_i = x_i + W_v2 ReLU(LN(W_v1 sum_j softmax_j(W_k x_j) x_j)) (GCNet, "Global Context Block").

    The last convolution of a bottleneck starts at zero. Additive fusion so starts as the identity, but
    multiplicative fusion halves x, sigmoid(0) = 1/2: with pretrained weights, add.

    Args:
        channels: C of x.
        dim: 2 for x (N, C, H, W), 3 for x (N, C, T, H, W).
        reduction: r, C over the channels of the bottleneck.
        pooling: "att" for the attention-weighted sum over positions, "avg" for their mean.
        fusion: "add" the context to x, "mul": multiply x by its sigmoid, or "both": multiply, then add, each
            by a bottleneck of its own.
        bottleneck: what stands between its convolutions: "ln_relu", or for the ablation "relu" or nothing,
            "linear".
    """

    def __init__(
        self,
        channels: int,
        *,
        dim: int = 2,
        reduction: int = 16,
        pooling: str = "att",
        fusion: str = "add",
        bottleneck: str = "ln_relu",
    ):
        if fusion not in FUSIONS:
            raise ValueError(f"FUSION {fusion!r} is unknown; choose one of {', '.join(FUSIONS)}")
        if bottleneck not in BOTTLENECKS:
            raise ValueError(f"BOTTLENECK {bottleneck!r} is unknown; choose one of {', '.join(BOTTLENECKS)}")
        inner = bottleneck_channels(channels, reduction)
        super().__init__(channels, dim, pooling)
        shape = (channels, inner, dim, bottleneck)
        self.channel_add_conv = None if fusion == "mul" else self._bottleneck(*shape)
        self.channel_mul_conv = None if fusion == "add" else self._bottleneck(*shape)

    @staticmethod
    def _bottleneck(channels: int, inner: int, dim: int, bottleneck: str) -> nn.Sequential:
        norm = nn.LayerNorm([inner] + [1] * dim) if bottleneck == "ln_relu" else nn.Identity()
        activation = nn.Identity() if bottleneck == "linear" else nn.ReLU(inplace=True)
        conv1, conv2 = CONVS[dim](channels, inner, 1), CONVS[dim](inner, channels, 1)
        nn.init.zeros_(conv2.weight)
        nn.init.zeros_(conv2.bias)
        return nn.Sequential(conv1, norm, activation, conv2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W) or (N, C, T, H, W) -> the same shape."""
        context = self.pool(x)
        if self.channel_mul_conv is not None:
            x = self.multiply(x, self.channel_mul_conv(context).sigmoid())
        if self.channel_add_conv is not None:
            x = self.add(x, self.channel_add_conv(context))
        return x


@BLOCKS.register()
class SqueezeExcitation(ContextPooling):
    """z = x * sigmoid(W_2 ReLU(W_1 mean_j x_j)) (SE, section 3); it does not start as the identity.

    Args:
        channels: C of x.
        dim: 2 for x (N, C, H, W), 3 for x (N, C, T, H, W).
        reduction: r, C over the channels of the bottleneck.
    """

    def __init__(self, channels: int, *, dim: int = 2, reduction: int = 16):
        inner = bottleneck_channels(channels, reduction)
        super().__init__(channels, dim, pooling="avg")
        self.fc1 = CONVS[dim](channels, inner, 1)  # W_1
        self.fc2 = CONVS[dim](inner, channels, 1)  # W_2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W) or (N, C, T, H, W) -> the same shape."""
        return self.multiply(x, self.fc2(self.fc1(self.pool(x)).relu()).sigmoid())
