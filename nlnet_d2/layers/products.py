"""Matrix products in float32 on processors for which PyTorch's choice is not the best.

PyTorch multiplies with MKL, which on AMD's processors does without AVX-512; oneDNN, which computes its
convolutions, is up to twice as fast there. The operator that ``torch.compile`` puts in place of linear
layers multiplies with oneDNN.
"""

from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nlnet_d2.layers.switch import Switch

# Of a sum to which oneDNN's product is added, formed at once: it is to stay in the cache.
ROWS = 2**8

_onednn = Switch("use of oneDNN", (True, False))
use_onednn = _onednn.use


@cache
def _are_both_there() -> bool:
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return libraries and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def _is_faster() -> bool:
    """Whether this processor is one of those."""
    about = Path("/proc/cpuinfo")
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not about.exists():
        return False
    return "AuthenticAMD" in about.read_text()


def is_recorded() -> bool:
    """Whether a compiler or tracer is watching, whose graph is to hold for other sizes and processors."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def prefers_onednn(x: torch.Tensor, vector: bool = False) -> bool:
    """Whether products of ``x`` go through oneDNN: float32 on such a CPU, outside of recorded graphs.

    ``vector``: of a matrix and a vector, which oneDNN shares out between the threads on any CPU.
    """
    if not x.is_cpu or x.dtype != torch.float32 or is_recorded():
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return _are_both_there() and (vector or _is_faster()) if _onednn.forced is None else _onednn.forced


def product(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None, then: str = "none"
) -> torch.Tensor:
    """a bT + bias by oneDNN, without gradients: (..., K), (N, K), (N,) -> (..., N).

    ``then``: a function of the result on the way to memory, "none" or "gelu".
    """
    a = plain(a) if a.ndim == 2 else a.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a, plain(b), bias, then, [None], "none")


def plain(matrices: torch.Tensor) -> torch.Tensor:
    """Rows, or columns, one after the other in memory: for anything else oneDNN has a very slow kernel."""
    return matrices if matrices.mT.is_contiguous() else matrices.contiguous()


def _product_over_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """aT b by oneDNN, which wants the wider matrix as the second: (R, M), (R, N) -> (M, N)."""
    return product(a.t(), b.t()) if a.shape[1] <= b.shape[1] else product(b.t(), a.t()).t()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return product(a, b.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        a, b = ctx.saved_tensors
        d_a = product(d_out, b) if ctx.needs_input_grad[0] else None
        return d_a, _product_over_rows(a, d_out) if ctx.needs_input_grad[1] else None


def matmul(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a b + bias for each of a batch, of one by the faster library: (B, M, K), (B, K, N) -> (B, M, N).

    a or b may be a matrix, the same for all of the batch; bias: what expands to the result.
    """
    count = (a if a.ndim == 3 else b).shape[0]
    if is_recorded() or count != 1 or not prefers_onednn(a, vector=1 in (a.shape[-2], b.shape[-1])):
        a, b = a.expand(count, -1, -1), b.expand(count, -1, -1)
        return torch.bmm(a, b) if bias is None else torch.baddbmm(bias, a, b)
    out = _Product.apply(*(t.flatten(0, -2) for t in (a, b)))
    if bias is not None:
        out += bias.squeeze(0)  # before it becomes a view: the gradient would take three copies
    return out.unsqueeze(0)


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, first: bool = False) -> None:
    """total += a b, or = for the ``first``, for each of a batch and without gradients.

    Shapes: (B, M, N), (B, M, K), (B, K, N).
    """
    if len(a) != 1 or not prefers_onednn(a):
        total.baddbmm_(a, b, beta=0 if first else 1)
        return
    a, b, total = a[0], b[0].t(), total[0]
    if len(a) > len(b):  # the wider is to be the second
        a, b, total = b, a, total.t()
    for rows, some in zip(total.split(ROWS), a.split(ROWS), strict=True):
        (rows.copy_ if first else rows.add_)(product(some, b))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, gelu):
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        return product(F.gelu(x) if gelu else x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        x, weight = ctx.saved_tensors
        d_out = d_out.contiguous()
        d_rows, d_x, d_weight = d_out.flatten(0, -2), None, None
        if ctx.needs_input_grad[1]:
            rows = (F.gelu(x) if ctx.gelu else x).flatten(0, -2)
            d_weight = _product_over_rows(d_rows, rows)
        if ctx.needs_input_grad[0]:
            d_x = product(d_out, weight.t())
            if ctx.gelu:
                torch.ops.aten.gelu_backward.grad_input(d_x, x, grad_input=d_x)
        return d_x, d_weight, d_rows.sum(0) if ctx.needs_input_grad[2] else None, None


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gelu: str = ""
) -> torch.Tensor:
    """``F.linear`` by the faster library: x (..., K), weight (N, K), bias (N,) -> (..., N).

    ``gelu``: "before", of GELU(x), which the backward pass forms again, since to keep it takes an eighth of
    ViT's memory; or "after", GELU of the result, which without gradients costs nothing.
    """
    if not prefers_onednn(x):
        x = F.linear(F.gelu(x) if gelu == "before" else x, weight, bias)
    elif gelu == "after" and not torch.is_grad_enabled():
        return product(x, weight, bias, "gelu")
    else:
        x = _Linear.apply(x, weight, bias, gelu == "before")
    return F.gelu(x) if gelu == "after" else x


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, x: torch.Tensor, gelu: str = "") -> torch.Tensor:
        return linear(x, self.weight, self.bias, gelu)
