"""The ways to compute attention agree with each other and with the formula, gradients too."""

import math

import pytest
import torch

from nlnet_d2.layers import attention
from nlnet_d2.layers.attention import IMPLEMENTATIONS, attend, attention_map, use_attention
from nlnet_d2.layers.products import use_onednn
from nlnet_d2.layers.relative_position import decomposed_bias

# maps, heads, query map, key map, channels of a head: windows, one large map, pooled keys
CASES = {
    "windows": (10, 2, (4, 4), (4, 4), 8),
    "oblong": (2, 3, (5, 9), (5, 9), 8),
    "pooled": (2, 2, (7, 6), (3, 5), 16),
    "one token": (1, 1, (1, 1), (1, 1), 4),
}


def make(case: str, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and the two tables, in double precision, all requiring gradients."""
    count, heads, q_hw, k_hw, dim = CASES[case]
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count, heads, math.prod(hw), dim) for hw in (q_hw, k_hw, k_hw)]
    shapes += [(2 * max(q, k) - 1, dim) for q, k in zip(q_hw, k_hw, strict=True)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def run(name: str, case: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    q, k, v, *tables = tensors
    _, _, q_hw, k_hw, _ = CASES[case]
    with use_attention(name):
        return attend(q, k, v, *decomposed_bias(q, *tables, q_hw, k_hw))


def by_loops(q, k, v, table_h, table_w, q_hw, k_hw):
    """The definition, one query and one key at a time; tables are indexed by stretched offsets."""
    out = torch.zeros_like(q)
    stretch = [(max(b / a, 1), max(a / b, 1)) for a, b in zip(q_hw, k_hw, strict=True)]
    for i in range(q.shape[2]):
        logits = []
        for j in range(k.shape[2]):
            at = divmod(i, q_hw[1]), divmod(j, k_hw[1])
            offset = [
                int((at[0][a] * s - at[1][a] * t) + (k_hw[a] - 1) * t) for a, (s, t) in enumerate(stretch)
            ]
            content = (q[:, :, i] * k[:, :, j]).sum(-1) / math.sqrt(q.shape[-1])
            logits.append(content + q[:, :, i] @ (table_h[offset[0]] + table_w[offset[1]]))
        out[:, :, i] = torch.einsum("nak,nakc->nac", torch.stack(logits, -1).softmax(-1), v)
    return out


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_follows_the_definition(name, case):
    tensors = make(case)
    with torch.no_grad():
        expected = by_loops(*tensors, *CASES[case][2:4])
        torch.testing.assert_close(run(name, case, tensors), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["blocks", "augmented"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_agree(name, case):
    tensors = make(case)
    reference = torch.autograd.grad(run("explicit", case, tensors).square().sum(), tensors)
    got = torch.autograd.grad(run(name, case, tensors).square().sum(), tensors)
    for a, b in zip(got, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("keep", [0, 10**6])
@pytest.mark.parametrize("block", [1, 200, 1000])
@pytest.mark.parametrize("case", CASES)
def test_the_size_of_the_pieces_does_not_matter(monkeypatch, block, keep, case):
    """Nor whether the map is kept for the backward pass."""
    monkeypatch.setattr(attention, "BLOCK", block)
    monkeypatch.setattr(attention, "QUERIES", 1)
    monkeypatch.setattr(attention, "QUERIES_BACKWARD", 1)
    monkeypatch.setattr(attention, "KEEP", keep)
    tensors = make(case)
    expected, got = run("explicit", case, tensors), run("blocks", case, tensors)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn(got.shape, dtype=got.dtype)
    gradients = (torch.autograd.grad(out, tensors, weights) for out in (got, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_gradients_through_onednn(monkeypatch):
    """In single precision, which it takes, and with pieces of one head, whose sums it cannot add."""
    monkeypatch.setattr(attention, "BLOCK", 200)
    monkeypatch.setattr(attention, "QUERIES", 1)
    monkeypatch.setattr(attention, "QUERIES_BACKWARD", 1)
    tensors = [t.detach().float().requires_grad_() for t in make("oblong")]
    expected = torch.autograd.grad(run("explicit", "oblong", tensors).square().sum(), tensors)
    with use_onednn(True):
        got = torch.autograd.grad(run("blocks", "oblong", tensors).square().sum(), tensors)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", [0, 10**6])
def test_gradients_of_blocks_against_differences(monkeypatch, keep):
    monkeypatch.setattr(attention, "BLOCK", 20)
    monkeypatch.setattr(attention, "KEEP", keep)
    monkeypatch.setattr(attention, "QUERIES", 1)
    monkeypatch.setattr(attention, "QUERIES_BACKWARD", 1)
    shapes = [(2, 2, 6, 3), (2, 2, 4, 3), (2, 2, 4, 3), (2, 2, 3, 2, 2), (2, 2, 3, 2, 2)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(attention.blocks, inputs)
    assert torch.autograd.gradcheck(attention._Blocks.apply, [*inputs[:3], None, None])


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_without_positions(name):
    q, k, v = (torch.randn(2, 3, n, 8, generator=torch.Generator().manual_seed(n)) for n in (6, 9, 9))
    with use_attention(name):
        torch.testing.assert_close(attend(q, k, v), (q @ k.mT / 8**0.5).softmax(-1) @ v)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_bfloat16(name):
    """All ways stay as close to the exact result as the number format allows."""
    tensors = make("oblong")
    with torch.no_grad():
        exact = run("explicit", "oblong", tensors)
        got = run(name, "oblong", [t.bfloat16() for t in tensors])
    assert got.dtype == torch.bfloat16
    assert (got - exact).abs().max() < 0.1 * exact.std()


def test_the_map_is_a_distribution():
    q, k, *_ = make("pooled")
    weights = attention_map(q, k)
    assert weights.shape == (2, 2, 42, 15)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_the_choice(monkeypatch):
    """By device and number format; forcing one holds within its context only."""
    used = []
    for name, function in IMPLEMENTATIONS.items():
        spy = lambda *args, name=name, function=function: used.append(name) or function(*args)  # noqa: E731
        monkeypatch.setitem(IMPLEMENTATIONS, name, spy)
    q = torch.randn(1, 1, 4, 8)
    attend(q, q, q)
    with use_attention("explicit"):
        attend(q, q, q)
    for other in (q.bfloat16(), q.to("meta")):
        attend(other, other, other)
    torch.compile(attend, backend="eager")(q, q, q)
    assert used == ["blocks", "explicit", "augmented", "explicit", "augmented"]


def test_unknown_attention():
    with (
        pytest.raises(ValueError, match="'flash' does not exist; choose one of explicit, blocks"),
        use_attention("flash"),
    ):
        pass
