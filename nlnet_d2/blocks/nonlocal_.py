"""Non-local block: "Non-local Neural Networks", Wang et al. 2018, arXiv 1711.07971.

Deliberately different from public code: the pairwise matrix f, (positions x positions), is never formed where
the result does not need it. Softmax goes through ``layers/attention.py``. The dot product is linear in
every one of its parts and is re-associated by shape (``choose_order``), which makes its cost linear in the
number of positions.
"""

import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nlnet_d2.blocks.base import BLOCKS, bottleneck_channels
from nlnet_d2.layers.attention import attend
from nlnet_d2.layers.attention_rows import flat_cells
from nlnet_d2.layers.norm import get_norm, is_constant
from nlnet_d2.layers.products import matmul
from nlnet_d2.layers.switch import Switch
from nlnet_d2.layers.watched import is_watched

CONVS = (nn.Conv2d, nn.Conv3d)
MODES = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")

# Orders of multiplication of the dot product: (theta phi^T) g; theta (phi^T g); or, since theta, phi and g
# are linear in x, first X X^T, then all weights, then x.
ORDERS = ("pairwise", "reassociated", "gram")
_orders = Switch("order", ORDERS)
use_order = _orders.use


def choose_order(x: torch.Tensor, keys: int, inner: int) -> str:
    """The order with the fewest multiply-adds for x (N, C, ...), ``keys`` positions j and C' = ``inner``.

    ``gram`` sums squares over all positions, for which half precision is too coarse. On the meta device,
    where costs are counted, the answer is always ``reassociated``.
    """
    if _orders.forced or x.is_meta:
        return _orders.forced or "reassociated"
    channels, positions = x.shape[1], x.shape[2:].numel()
    projections = 2 * (positions + keys) * channels * inner
    costs = {
        "pairwise": projections + 2 * positions * keys * inner,
        "reassociated": projections + (positions + keys) * inner**2,
        "gram": (positions + keys) * channels**2 + 2 * (channels + inner) * channels * inner,
    }
    if x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(x.device.type):
        del costs["gram"]
    least = min(*costs.values())  # PyTorch 2.6 compiles no minimum of a view
    return next(order for order, cost in costs.items() if cost == least)


class _Moments(torch.autograd.Function):
    """X XT and the sum over the positions, (N, C, M) -> (N, C, C), (N, C, 1), with one product backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return matmul(x, x.mT), x.sum(2, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_squares, d_sum):
        (x,) = ctx.saved_tensors
        return matmul(d_squares + d_squares.mT, x, d_sum)


def _matrix(conv: nn.Module, norm: nn.Module | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias, (C', C) and (C', 1), of a convolution of one position and a constant norm after it."""
    weight, bias = conv.weight.flatten(1), conv.bias
    if is_constant(norm):
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight, bias = scale[:, None] * weight, scale * (bias - norm.running_mean) + norm.bias
    return weight, bias[:, None]


def _product(conv: nn.Module, x: torch.Tensor, norm: nn.Module | None = None) -> torch.Tensor:
    """A convolution of one position and its norm, (N, C, ...) -> (N, C', ...), without a copy of x.

    On the meta device, where the costs of modules are counted, the convolution itself.
    """
    if x.is_meta or is_watched(conv, *CONVS):
        x = conv(x)
    else:
        weight, bias = _matrix(conv, norm)
        x = matmul(weight, x.flatten(2), bias).unflatten(2, x.shape[2:])
        norm = None if is_constant(norm) else norm  # it is in the matrix
    return x if norm is None else norm(x)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(N, C, ...) -> (N, P, C)."""
    return x.flatten(2).transpose(1, 2)


@BLOCKS.register()
class NonLocal(nn.Module):
    """z_i = W_z y_i + x_i with y_i = 1/C(x) sum_j f(x_i, x_j) g(x_j) (eqs. 1 and 6).

    Args:
        channels: C of x.
        dim: 2 for x (N, C, H, W), 3 for x (N, C, T, H, W).
        mode: f and its normaliser C(x) (section 3.2), with theta, phi, g: C -> C' = C / reduction;
            "embedded_gaussian": exp(theta_i . phi_j), softmax over j;
            "gaussian": exp(x_i . x_j), softmax over j, no theta and phi;
            "dot_product": theta_i . phi_j, divided by the number of positions j;
            "concatenation": ReLU(w_f . [theta_i, phi_j]), divided by the number of positions j.
        reduction: C / C'.
        use_scale: multiply the logits of the embedded Gaussian by C'^-1/2, as the authors' code does; the
            paper's equation 4 has no such factor.
        subsample: window (and stride) of the max-pooling of keys and values (section 3.3, "subsampling
            trick"): one integer (over H and W only) or one per dimension of x; 1 for none.
        subsample_at: pool "before" phi and g (the authors' code) or "after" them (the paper's text). The
            results differ, for a maximum does not commute with a linear map.
        norm: normalisation after W_z, "" for none. It starts at zero, so that the block starts as the
            identity (section 4.1); under FrozenBN and without a norm W_z starts at zero instead, because the
            weight of a frozen norm would stay zero for ever.
    """

    def __init__(
        self,
        channels: int,
        *,
        dim: int = 2,
        mode: str = "embedded_gaussian",
        reduction: int = 2,
        use_scale: bool = True,
        subsample: int | list[int] = 1,
        subsample_at: str = "before",
        norm: str = "BN",
    ):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"MODE {mode!r} is unknown; choose one of {', '.join(MODES)}")
        if subsample_at not in ("before", "after"):
            raise ValueError(f"SUBSAMPLE_AT {subsample_at!r} is unknown; choose before or after")
        if isinstance(subsample, int):
            subsample = [1] * (dim - 2) + [subsample] * 2
        if len(subsample) != dim or min(subsample) < 1:
            raise ValueError(f"SUBSAMPLE {subsample} needs {dim} windows of at least 1")
        self.mode, self.window, self.subsample_at = mode, tuple(subsample), subsample_at
        inner = bottleneck_channels(channels, reduction)
        self.scale = inner**-0.5 if use_scale and mode == "embedded_gaussian" else 1.0

        conv = nn.Conv2d if dim == 2 else nn.Conv3d
        self.g = conv(channels, inner, 1)
        if mode != "gaussian":
            self.theta = conv(channels, inner, 1)
            self.phi = conv(channels, inner, 1)
        if mode == "concatenation":
            self.w_f = nn.Linear(2 * inner, 1, bias=False)
        self.out = conv(inner, channels, 1)  # W_z
        self.norm = get_norm(norm, channels, dim) or nn.Identity()
        self._init_weights(trainable_norm=norm not in ("", "FrozenBN"))

    def _init_weights(self, trainable_norm: bool) -> None:
        for layer in self.children():
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                nn.init.normal_(layer.weight, std=0.01)  # the authors' CONV_INIT_STD
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.norm.weight if trainable_norm else self.out.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W) or (N, C, T, H, W) -> the same shape."""
        order = self._order(x)
        if self.mode == "dot_product" and order == "gram":
            return x + self._gram(x)
        y = self._aggregate(*self._project(x), order).transpose(1, 2)  # (N, C', P)
        return x + _product(self.out, y.view(*y.shape[:2], *x.shape[2:]), self.norm)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """The matrix f / C(x) that ``forward`` applies without forming it: (N, P queries, M keys)."""
        theta, phi, _ = self._project(x)
        return self._pairwise(theta, phi)

    def attention_rows(self, x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """The rows of ``attention`` of the queries at ``points`` (see ``layers/attention_rows.py``).

        Returns:
            (N, Q, 1 head, H', W') or (N, Q, 1, T', H', W'), over the sub-sampled positions.
        """
        theta, phi, _ = self._project(x)
        rows = self._pairwise(theta[:, flat_cells(points, x.shape[2:])], phi)  # (N, Q, M)
        return rows.unflatten(2, self._subsample(x[:, :1]).shape[2:]).unsqueeze(2)

    def _order(self, x: torch.Tensor) -> str:
        """See ``choose_order``; no ``gram`` of what is not a matrix: a maximum over phi(x), an adapter."""
        keys = math.prod([max(size // w, 1) for size, w in zip(x.shape[2:], self.window, strict=True)])
        order = choose_order(x, keys, self.g.out_channels)
        if order != "gram" or self.mode != "dot_product":
            return order
        pooled_after = self.subsample_at == "after" and max(self.window) > 1
        watched = [is_watched(conv, *CONVS) for conv in (self.theta, self.phi, self.g, self.out)]
        return "reassociated" if pooled_after or any(watched) else order

    def _gram(self, x: torch.Tensor) -> torch.Tensor:
        """W_z y of the dot product, from the second moments of x: (N, C, H, W) -> (N, C, H, W)."""
        keys = (self._subsample(x) if self.subsample_at == "before" else x).flatten(2)  # (N, C, M)
        squares, sums = _Moments.apply(keys)
        (theta, b_theta), (phi, b_phi), (g, b_g) = map(_matrix, (self.theta, self.phi, self.g))
        w_z, b_z = _matrix(self.out, self.norm)
        g_x = matmul(g, squares, b_g @ sums.mT)  # the sum of g_j x_jT: (N, C', C)
        g_phi = matmul(
            g_x, phi.t(), (g @ sums + keys.shape[2] * b_g) @ b_phi.t()
        )  # of g_j phi_jT: (N, C', C')
        whole = matmul(w_z, g_phi / keys.shape[2])
        z = matmul(matmul(whole, theta), x.flatten(2), whole @ b_theta + b_z).view_as(x)
        return z if is_constant(self.norm) else self.norm(z)

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """theta (N, P, C'), phi and g (N, M, C'), with M sub-sampled positions."""
        before = self._subsample(x) if self.subsample_at == "before" else x
        after = self._subsample if self.subsample_at == "after" else (lambda features: features)
        theta = _rows(x if self.mode == "gaussian" else _product(self.theta, x))
        phi = _rows(after(before if self.mode == "gaussian" else _product(self.phi, before)))
        return theta, phi, _rows(after(_product(self.g, before)))

    def _subsample(self, x: torch.Tensor) -> torch.Tensor:
        window = [min(w, size) for w, size in zip(self.window, x.shape[2:], strict=True)]
        max_pool = F.max_pool2d if x.ndim == 4 else F.max_pool3d
        return x if max(window) == 1 else max_pool(x, window)

    def _aggregate(
        self, theta: torch.Tensor, phi: torch.Tensor, g: torch.Tensor, order: str = "reassociated"
    ) -> torch.Tensor:
        """y = f / C(x) g: (N, P, C')."""
        if self.mode.endswith("gaussian"):
            if self.scale == 1.0:
                theta = theta * theta.shape[-1] ** 0.5  # ``attend`` scales by C'^-1/2
            return attend(*(t.unsqueeze(1) for t in (theta, phi, g))).squeeze(1)  # one head
        if self.mode == "dot_product" and order == "reassociated":
            return matmul(theta, matmul(phi.mT, g / g.shape[1]))  # divided first: half precision
        return self._pairwise(theta, phi) @ g

    def _pairwise(self, theta: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
        """f / C(x), formed: (N, P, M)."""
        if self.mode == "concatenation":
            w_theta, w_phi = self.w_f.weight.chunk(2, dim=1)
            return F.relu(theta @ w_theta.t() + (phi @ w_phi.t()).transpose(1, 2)) / phi.shape[1]
        f = theta @ phi.transpose(1, 2)
        return f / phi.shape[1] if self.mode == "dot_product" else (f * self.scale).softmax(dim=-1)
