"""Rows of attention maps are those of the whole maps."""

import torch

from nlnet_d2.layers.attention import attention_map
from nlnet_d2.layers.attention_rows import cells, flat_cells, windowed_rows
from nlnet_d2.layers.windows import window_partition


def test_cells_of_points():
    points = torch.tensor([[0.0, 0.0], [0.49, 0.51], [1.0, 1.0]])
    assert cells(points, (4, 6)).tolist() == [[0, 0], [1, 3], [3, 5]]
    assert flat_cells(points, (4, 6)).tolist() == [0, 9, 23]


def test_cells_of_clips():
    assert flat_cells(torch.tensor([[0.5, 0.99, 0.0]]), (2, 3, 4)).tolist() == [1 * 12 + 2 * 4]


def test_one_window_is_the_whole_map():
    q, k = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 6, 8)
    rel_h, rel_w = torch.randn(2, 3, 4, 5, 2), torch.randn(2, 3, 4, 5, 3)
    points = torch.tensor([[0.3, 0.5], [0.99, 0.1]])
    rows = windowed_rows(q, k, (rel_h, rel_w), points, (4, 5), (2, 3), (4, 5), (2, 3))
    whole = attention_map(q, k, rel_h, rel_w)[:, :, [1 * 5 + 2, 3 * 5 + 0]]  # (2, 3, 2, 6)
    torch.testing.assert_close(rows, whole.transpose(1, 2).unflatten(-1, (2, 3)))


def test_windows_stand_where_they_were_cut():
    """A key is recognised by its value: only queries of its window see it, at its place of the map."""
    k_map = torch.zeros(1, 5, 7, 1)
    k_map[0, 4, 5] = 10.0  # in the window of rows 4.., columns 4..
    k = window_partition(k_map, 4).flatten(1, 2).unsqueeze(1)
    q = torch.ones_like(k)
    points = torch.tensor([[0.9, 0.9], [0.1, 0.9]])
    rows = windowed_rows(q, k, (), points, (4, 4), (4, 4), (5, 7), (5, 7))
    assert rows.shape == (1, 2, 1, 5, 7)
    assert rows[0, 0, 0, 4, 5] > 0.99
    assert rows[0, 0, 0].isnan().sum() == 35 - 3  # the window holds 1 x 3 positions that are no padding
    assert not rows[0, 1, 0, :4, 4:].isnan().any()
    assert rows[0, 1, 0, 4:].isnan().all()
