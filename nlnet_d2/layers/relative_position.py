"""Decomposed relative positions (MViTv2, arXiv 2112.01526): one table of offsets per axis."""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nlnet_d2.layers.products import is_recorded


def relative_positions(table: torch.Tensor, q_size: int, k_size: int) -> torch.Tensor:
    """Embedding of every (query, key) offset along one axis.

    A table of another length than 2 * max(q_size, k_size) - 1 is interpolated linearly. The coordinates of
    the shorter side are stretched to those of the longer one. They are computed in float32 and cut, as in
    Detectron2: its rounding decides some entries, and the published weights were trained with it.

    Args:
        table: (L, d), the entry of offset 0 in the middle.

    Returns:
        (q_size, k_size, d)
    """
    length = 2 * max(q_size, k_size) - 1
    if table.shape[0] != length:
        table = F.interpolate(table.t()[None], size=length, mode="linear")[0].t()
    q_stretch, k_stretch = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    q_at = torch.arange(q_size, device=table.device)[:, None] * q_stretch
    k_at = torch.arange(k_size, device=table.device)[None, :] * k_stretch
    return table[((q_at - k_at) + (k_size - 1) * k_stretch).long()]


def decomposed_bias(
    q: torch.Tensor,
    table_h: torch.Tensor,
    table_w: torch.Tensor,
    q_hw: tuple[int, int],
    k_hw: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two terms that are added to the logits of query (h, w) and key (h', w'); q is not scaled here.

    Args:
        q: (N, heads, q_height * q_width, d).
        table_h, table_w: (L, d), see ``relative_positions``.
        q_hw, k_hw: height and width of the query map and of the key map.

    Returns:
        rel_h (N, heads, q_height, q_width, k_height), indexed by h', and
        rel_w (N, heads, q_height, q_width, k_width), indexed by w'.
    """
    arguments = (q, table_h, table_w, q_hw, k_hw)
    if not torch.is_grad_enabled() or is_recorded():
        return _products(*arguments)
    # Products keep their operands, here two rearranged copies of q, for the backward pass.
    return checkpoint(_products, *arguments, use_reentrant=False, preserve_rng_state=False)


def _products(q, table_h, table_w, q_hw, k_hw) -> tuple[torch.Tensor, torch.Tensor]:
    q = q.unflatten(2, q_hw)
    rel_h = torch.einsum("nahwc,hkc->nahwk", q, relative_positions(table_h, q_hw[0], k_hw[0]))
    rel_w = torch.einsum("nahwc,wkc->nahwk", q, relative_positions(table_w, q_hw[1], k_hw[1]))
    return rel_h, rel_w
