"""Single rows of attention maps: where chosen queries look, without the maps of all the others.

A query is chosen by a point of the picture or clip, in fractions of its extent, so that one point suits maps
of every resolution. What is out of a query's reach, behind the border of its window, is NaN.
"""

from collections.abc import Sequence
from math import prod

import torch

from nlnet_d2.layers.attention import attention_map


def cells(points: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """The cells of a map in which points lie.

    Args:
        points: (Q, D) in 0..1, in the order of the map's axes: y, x, or time, y, x.
        grid: its D sides.

    Returns:
        (Q, D) indices.
    """
    sides = torch.tensor(grid, device=points.device)
    return (points * sides).long().clamp(max=sides - 1)


def flat_cells(points: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """``cells`` as positions in the flattened map: (Q,)."""
    strides = torch.tensor([prod(grid[axis + 1 :]) for axis in range(len(grid))], device=points.device)
    return (cells(points, grid) * strides).sum(1)


def windowed_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: Sequence[torch.Tensor],
    points: torch.Tensor,
    q_hw: tuple[int, int],
    k_hw: tuple[int, int],
    q_map: tuple[int, int],
    k_map: tuple[int, int],
) -> torch.Tensor:
    """The rows of ``attention_map`` of some queries, each spread over the map of all keys.

    Args:
        q: (N * windows, heads, q_height * q_width, d), windows row by row, as for ``attend``.
        k: (N * windows, heads, k_height * k_width, d).
        positions: rel_h and rel_w as for ``attend``, or nothing.
        points: (Q, 2) as for ``cells``.
        q_hw, k_hw: sides of a window of queries and of keys; those of the whole map if there is one window.
        q_map, k_map: sides of the maps without the padding that fills up the windows. Weights of padding
            are left out, so that a row may sum to less than 1.

    Returns:
        (N, Q, heads, *k_map)
    """
    rows, columns = (-(-side // window) for side, window in zip(q_map, q_hw, strict=True))
    q, k, *positions = (t.unflatten(0, (-1, rows * columns)) for t in (q, k, *positions))
    count, heads = len(q), q.shape[2]
    maps = q.new_full((count, len(points), heads, rows * k_hw[0], columns * k_hw[1]), float("nan"))
    for i, (y, x) in enumerate(cells(points, q_map).tolist()):
        (window_y, y), (window_x, x) = divmod(y, q_hw[0]), divmod(x, q_hw[1])
        window = window_y * columns + window_x
        row = y * q_hw[1] + x
        bias = (t[:, window, :, y : y + 1, x : x + 1] for t in positions)
        weights = attention_map(q[:, window, :, row : row + 1], k[:, window], *bias)  # (N, heads, 1, Lk)
        top, left = window_y * k_hw[0], window_x * k_hw[1]
        maps[:, i, :, top : top + k_hw[0], left : left + k_hw[1]] = weights[:, :, 0].unflatten(-1, k_hw)
    return maps[..., : k_map[0], : k_map[1]]
