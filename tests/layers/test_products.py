"""Products by oneDNN are those of PyTorch, gradients too, in whatever way the operands lie in memory."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from nlnet_d2.layers import attention, products
from nlnet_d2.layers.attention import attend
from nlnet_d2.layers.mlp import Mlp
from nlnet_d2.layers.products import Linear, add_product, linear, matmul, prefers_onednn, product, use_onednn


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (1, 2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", ["", "before", "after"])
def test_linear(shape, bias, gelu):
    layer, x = Linear(5, 4, bias=bias), torch.randn(shape, requires_grad=True)
    results = []
    for flag in (False, True):
        with use_onednn(flag):
            out = layer(x, gelu)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_gelu_before_and_after():
    layer, x = Linear(5, 4), torch.randn(3, 5)
    for flag in (False, True):
        for grad in (False, True):
            with use_onednn(flag), torch.set_grad_enabled(grad):
                before, after = layer(x, "before"), layer(x, "after")
            torch.testing.assert_close(before, F.linear(F.gelu(x), layer.weight, layer.bias))
            torch.testing.assert_close(after, F.gelu(F.linear(x, layer.weight, layer.bias)))


def test_perceptron_with_a_layer_in_the_place_of_its_own():
    """One that knows nothing of GELU, as adapters put there."""
    mlp, x = Mlp(6, 4), torch.randn(5, 6)
    expected = F.linear(F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight, mlp.fc2.bias)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(mlp(x), expected)
    mlp.fc2 = torch.nn.Sequential(mlp.fc2)
    torch.testing.assert_close(mlp(x), expected)


def test_gelu_is_not_kept():
    """The hidden numbers, the widest of the perceptron, are kept once."""
    mlp, x = Mlp(8, 8), torch.randn(5, 8)
    kept = []
    with use_onednn(True), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        mlp(x)
    assert sorted(tuple(t.shape) for t in kept) == [(5, 8), (5, 32), (8, 32), (32, 8)]


@pytest.mark.parametrize("gelu", [False, True])
def test_gradients_against_differences(monkeypatch, gelu):
    """In double precision, for which oneDNN has no kernel: what is checked are the formulas."""
    monkeypatch.setattr(products, "product", lambda a, b, bias=None: F.linear(a, b, bias))
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 5), (4, 5), (4,))]
    assert torch.autograd.gradcheck(products._Linear.apply, [*inputs, gelu])


def test_gradients_of_products_against_differences(monkeypatch):
    monkeypatch.setattr(products, "product", F.linear)
    for shapes in (((3, 5), (5, 4)), ((4, 5), (5, 3))):  # the wider operand first and second
        inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        assert torch.autograd.gradcheck(products._Product.apply, inputs)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("bias", [None, (4, 1), (1,), "each"])
@pytest.mark.parametrize("first_is_matrix", [True, False])
def test_matmul(count, bias, first_is_matrix):
    a = torch.randn(4, 5) if first_is_matrix else torch.randn(5, count, 4).permute(1, 2, 0)
    b = torch.randn(count, 6, 5).mT if first_is_matrix or bias == "each" else torch.randn(5, 6)
    inputs = [a, b] if bias is None else [a, b, torch.randn((count, 4, 1) if bias == "each" else bias)]
    results = []
    for flag in (False, True):
        leaves = [t.clone().requires_grad_() for t in inputs]
        with use_onednn(flag):
            out = matmul(*leaves)
            results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    expected = a @ b + (0 if bias is None else inputs[2])
    for got in (results[0][0], results[1][0]):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for got, other in zip(*results, strict=True):
        torch.testing.assert_close(got, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rows", [4, 7])
def test_add_product(monkeypatch, count, rows):
    """More and fewer rows than columns, and a sum that lies in memory as it is or transposed; in parts."""
    monkeypatch.setattr(products, "ROWS", 3)
    a, b = torch.randn(count, rows, 6), torch.randn(count, 6, 5)
    for flag in (False, True):
        for total in (torch.full((count, rows, 5), torch.nan), torch.full((count, 5, rows), torch.nan).mT):
            with use_onednn(flag):
                add_product(total, a, b, first=True)
                add_product(total, a, b)
            torch.testing.assert_close(total, 2 * (a @ b), rtol=1e-5, atol=1e-5)


def test_operands_in_any_layout():
    a, b = torch.randn(6, 3, 8).permute(1, 0, 2), torch.randn(8, 2, 7)[:, 0].t()
    for left in (a, a[..., ::2].repeat_interleave(2, -1), a.transpose(0, 1)):
        torch.testing.assert_close(product(left, b), left @ b.t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_positions", [True, False])
@pytest.mark.parametrize("block", [200, 3000])
def test_attention(monkeypatch, block, with_positions):
    """Pieces of one head and of several, multiplied by oneDNN, against PyTorch's products or fused kernel."""
    sizes = {"BLOCK": block, "QUERIES": 1, "QUERIES_BACKWARD": 1, "WIDE": 64 if with_positions else 8}
    for name, value in sizes.items():
        monkeypatch.setattr(attention, name, value)
    inputs = [torch.randn(2, 3, n, 8, requires_grad=True) for n in (40, 30, 30)]
    if with_positions:
        inputs += [torch.randn(2, 3, 8, 5, side, requires_grad=True) for side in (6, 5)]
    results = []
    for flag in (False, True):
        with use_onednn(flag):
            out = attend(*inputs)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_trace_of_a_product_decides_nothing_by_its_sizes():
    inputs = torch.randn(1, 5), torch.randn(1, 5, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(matmul, inputs)
    b = torch.randn(3, 5, 7)
    torch.testing.assert_close(traced(inputs[0], b), inputs[0] @ b)


def test_where_it_does_not_apply():
    x = torch.randn(2, 5)
    with use_onednn(True):
        assert prefers_onednn(x)
        assert not any(map(prefers_onednn, (x.double(), x.bfloat16(), x.to("meta"))))
        with torch.autocast("cpu"):
            assert not prefers_onednn(x)
            assert linear(x, torch.randn(3, 5)).dtype == torch.bfloat16
        weight = torch.randn(3, 5)
        compiled = torch.compile(lambda x: linear(x, weight), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), F.linear(x, weight))
    with use_onednn(False):
        assert not prefers_onednn(x) and not prefers_onednn(x, vector=True)
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    assert prefers_onednn(x, vector=True) == both and not prefers_onednn(x.double(), vector=True)
