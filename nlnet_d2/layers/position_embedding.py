"""Absolute position embeddings, learnt at one size and used at any."""

import math

import torch
from torch.nn import functional as F


def resize_positions(positions: torch.Tensor, hw: tuple[int, int], class_token: bool) -> torch.Tensor:
    """Absolute positions for a map of another size, by bicubic interpolation (arXiv 2010.11929, section 3.2).

    Args:
        positions: (1, P, C), the positions of a square map row by row, after that of the class token if any.
        hw: height and width wanted.
        class_token: whether the first of the P positions belongs to a class token; it is dropped.

    Returns:
        (1, H, W, C)

    Raises:
        ValueError: the positions do not form a square.
    """
    grid = positions[:, 1:] if class_token else positions
    side = math.isqrt(grid.shape[1])
    if side * side != grid.shape[1]:
        raise ValueError(
            f"{grid.shape[1]} position embeddings {'after' if class_token else 'without'} a class token are "
            "not a square map, so they cannot be interpolated: check whether the checkpoint has a class token"
        )
    grid = grid.unflatten(1, (side, side))
    if (side, side) == tuple(hw):
        return grid
    resized = F.interpolate(grid.permute(0, 3, 1, 2), size=hw, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)
