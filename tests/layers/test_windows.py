import pytest
import torch

from nlnet_d2.benchmarks import literal
from nlnet_d2.layers.windows import window_partition, window_unpartition


@pytest.mark.parametrize("hw", [(8, 12), (7, 5), (3, 2), (4, 4), (1, 9)])
def test_round_trip(hw):
    x = torch.randn(2, *hw, 3)
    windows = window_partition(x, 4)
    assert windows.shape[1:] == (4, 4, 3)
    assert torch.equal(window_unpartition(windows, hw), x)


def test_order_and_padding():
    """Windows go row by row, image after image; what is added at the right and bottom is zero."""
    x = torch.arange(1.0, 31).view(2, 3, 5, 1)
    windows = window_partition(x, 3)
    assert windows.shape == (4, 3, 3, 1)
    assert windows[0, ..., 0].tolist() == [[1, 2, 3], [6, 7, 8], [11, 12, 13]]
    assert windows[1, ..., 0].tolist() == [[4, 5, 0], [9, 10, 0], [14, 15, 0]]
    assert windows[2, 0, 0, 0] == 16


@pytest.mark.parametrize("hw", [(8, 5), (7, 4), (3, 9)])
def test_gradients_are_those_of_the_literal_form(hw):
    x = torch.randn(2, *hw, 3, requires_grad=True)
    windows, expected = window_partition(x, 4), literal.cut(x, 4)
    assert torch.equal(windows, expected)
    weights = torch.randn_like(windows)
    got, wanted = (torch.autograd.grad((w * weights).sum(), x)[0] for w in (windows, expected))
    assert torch.equal(got, wanted)

    windows = torch.randn_like(windows, requires_grad=True)
    got, wanted = (function(windows, hw) for function in (window_unpartition, literal.paste))
    assert torch.equal(got, wanted)
    weights = torch.randn_like(got)
    got, wanted = (torch.autograd.grad((m * weights).sum(), windows)[0] for m in (got, wanted))
    assert torch.equal(got, wanted)
