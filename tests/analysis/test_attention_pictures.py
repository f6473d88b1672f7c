"""Pictures of attention show what the weights say, at its place."""

import numpy as np
import pytest

from nlnet_d2.analysis.attention_maps import QueryDifference
from nlnet_d2.analysis.attention_pictures import (
    ARROW,
    ARROWS,
    QUERY,
    draw_arrows,
    draw_heat,
    draw_view,
    strongest_positions,
)
from nlnet_d2.analysis.attention_views import BlockView, View

SIDE = 200


def view_of(rows: np.ndarray, points, frames: int = 1, size=(40, 40), padded=(40, 40)) -> View:
    """``rows``: (Q, heads, *grid)."""
    block = BlockView("block", rows.astype(np.float32), QueryDifference(0.25, 0.5))
    return View(np.full((frames, *size, 3), 120, np.uint8), padded, np.array(points, float), [block])


def one_spot(*cell: int, grid=(4, 4)) -> np.ndarray:
    weights = np.zeros(grid)
    weights[cell] = 1
    return weights


def has_colour(picture: np.ndarray, colour) -> np.ndarray:
    return (np.abs(picture.astype(int) - colour) < 30).all(-1)


def test_heat_lies_where_the_weight_is():
    view = view_of(one_spot(3, 0)[None, None], [[5, 5]])
    brightness = draw_heat(view, view.blocks[0].rows[0, 0], view.points[0], SIDE).astype(int).sum(-1)
    assert brightness.shape == (SIDE, SIDE)
    assert brightness[175, 25] > brightness[175, 75] + 200
    assert brightness[175, 25] > brightness[125, 25] + 200


def test_a_map_without_preference_does_not_dazzle():
    uniform, spot = np.full((4, 4), 1 / 16), one_spot(3, 0)
    view = view_of(np.stack([uniform, spot])[:, None], [[5, 5], [5, 5]])
    even, peaked = (
        draw_heat(view, row[0], view.points[0], SIDE).astype(int).sum(-1) for row in view.blocks[0].rows
    )
    assert even[125:, :25].std() == 0 and even[175, 25] < peaked[175, 25] - 100


def test_padding_is_not_shown():
    """The map covers 80 x 80 pixels, of which the picture is the upper left quarter."""
    view = view_of(one_spot(1, 1)[None, None], [[5, 5]], padded=(80, 80))
    brightness = draw_heat(view, view.blocks[0].rows[0, 0], view.points[0], SIDE).astype(int).sum(-1)
    assert brightness[150, 150] > brightness[50, 150] + 200


def test_arrow_goes_from_the_query_to_the_weight():
    view = view_of(one_spot(3, 3)[None, None], [[5, 5]])
    picture = draw_arrows(view, view.blocks[0].rows[0, 0], view.points[0], SIDE)
    ys, xs = np.nonzero(has_colour(picture, ARROW))
    assert np.allclose(ys, xs, atol=12)  # along the diagonal
    assert 165 < xs.max() < 185  # the middle of the last cell
    ys, xs = np.nonzero(has_colour(picture, QUERY))
    assert abs(xs.mean() - 25) < 3
    assert abs(ys.mean() - 25) < 3


def test_arrows_cross_frames():
    weights = one_spot(0, 1, 1, grid=(2, 4, 4))
    view = view_of(weights[None, None], [[3, 20, 20]], frames=4)  # the query is in the second slice
    picture = draw_arrows(view, view.blocks[0].rows[0, 0], view.points[0], SIDE)
    assert picture.shape[1] > 2 * SIDE
    assert np.nonzero(has_colour(picture, QUERY))[1].min() > SIDE
    assert np.nonzero(has_colour(picture, ARROW))[1].min() < 90


def test_strongest_positions():
    weights = np.arange(64, dtype=float).reshape(1, 8, 8)
    weights[0, 7, 7] = np.nan  # out of reach
    found = strongest_positions(view_of(weights[None], [[0, 0]]), weights)
    assert len(found) == ARROWS
    assert found[:3] == [(0, 7, 6), (0, 7, 5), (0, 7, 4)]


def test_strongest_positions_are_in_the_picture():
    weights = np.arange(64, dtype=float).reshape(1, 8, 8)
    found = strongest_positions(view_of(weights[None], [[0, 0]], padded=(80, 80)), weights)
    assert found[0] == (0, 3, 3)
    assert len(found) == 16


@pytest.mark.parametrize("heads", [1, 3])
def test_view_has_a_panel_per_head(heads):
    rows = np.stack([one_spot(0, head) for head in range(heads)])[None]
    alone = draw_view(view_of(rows[:, :1], [[5, 5]]), 0)
    picture = draw_view(view_of(rows, [[5, 5]]), 0)
    assert picture.dtype == np.uint8
    assert (picture.shape[1] > alone.shape[1]) == (heads > 1)


def test_clips_with_heads_are_drawn():
    rows = np.random.default_rng(0).random((1, 2, 2, 4, 4))
    picture = draw_view(view_of(rows, [[1, 5, 5]], frames=2), 0)
    assert picture.std() > 10


def test_queries_of_one_block_differ_in_the_picture():
    rows = np.stack([one_spot(0, 0), one_spot(3, 3)])[:, None]
    view = view_of(rows, [[5, 5], [30, 30]])
    assert (draw_view(view, 0) != draw_view(view, 1)).any()
