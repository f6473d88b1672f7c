"""softmax(q kT / sqrt(d) + relative positions) v, in the ways of computing it that this package uses.

All give the same result. ``choose_attention`` decides; ``use_attention`` forces one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

# Largest piece of the bias that ``row_blocks`` builds at once, in numbers: it should stay in the cache.
BLOCK = 2**20


def attention_map(
    q: torch.Tensor, k: torch.Tensor, rel_h: torch.Tensor | None = None, rel_w: torch.Tensor | None = None
) -> torch.Tensor:
    """The softmax over the keys; arguments as in ``attend``.

    Returns:
        (N, heads, Lq, Lk), each row sums to 1.
    """
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if rel_h is not None:
        grid = logits.view(*rel_h.shape, rel_w.shape[-1])  # (N, heads, qh, qw, kh, kw)
        grid += rel_h.unsqueeze(-1)
        grid += rel_w.unsqueeze(-2)
    return logits.softmax(-1)


def explicit(q, k, v, rel_h=None, rel_w=None):
    """As the formula reads, the whole map in memory: the reference of the other two."""
    return attention_map(q, k, rel_h, rel_w) @ v


def row_blocks(q, k, v, rel_h=None, rel_w=None):
    """Fused attention, the bias built for a few maps, or a few rows of queries of one map, at a time.

    Autograd would keep every piece, and on a GPU the pieces are too small: for inference on a CPU.
    """
    if rel_h is None:
        return scaled_dot_product_attention(q, k, v)
    count, heads, height, width, _ = rel_h.shape
    rows = min(height, max(1, BLOCK // (heads * width * k.shape[2])))
    maps = max(1, BLOCK // (heads * height * width * k.shape[2]))
    q = q.unflatten(2, (height, width))
    out = torch.empty_like(q)
    for i in range(0, count, maps):
        here = slice(i, i + maps)
        for row in range(0, height, rows):
            block = (here, slice(None), slice(row, row + rows))
            bias = rel_h[block].unsqueeze(-1) + rel_w[block].unsqueeze(-2)  # (maps, heads, rows, qw, kh, kw)
            part = scaled_dot_product_attention(
                q[block].flatten(2, 3), k[here], v[here], attn_mask=bias.flatten(4).flatten(2, 3)
            )
            out[block] = part.unflatten(2, (-1, width))
    return out.flatten(2, 3)


def augmented(q, k, v, rel_h=None, rel_w=None):
    """Fused attention without a bias: the relative positions ride along as further channels of q and k.

    (q / sqrt(d), rel_h, rel_w) . (k, one-hot of h', one-hot of w') is the whole logit, so neither the map
    nor the bias exists in memory, forward or backward: the choice for training.
    """
    if rel_h is None:
        return scaled_dot_product_attention(q, k, v)
    height, width = rel_h.shape[-1], rel_w.shape[-1]
    one_hot_h = torch.eye(height, device=k.device, dtype=k.dtype).repeat_interleave(width, 0)
    one_hot_w = torch.eye(width, device=k.device, dtype=k.dtype).repeat(height, 1)
    where = torch.cat((one_hot_h, one_hot_w), 1).expand(*k.shape[:2], -1, -1)
    q = torch.cat((q * q.shape[-1] ** -0.5, rel_h.flatten(2, 3), rel_w.flatten(2, 3)), -1)
    out = scaled_dot_product_attention(q, torch.cat((k, where), -1), pad(v, (0, height + width)), scale=1.0)
    return out[..., : v.shape[-1]]


IMPLEMENTATIONS = {f.__name__: f for f in (explicit, row_blocks, augmented)}
_forced: str | None = None


@contextmanager
def use_attention(name: str) -> Iterator[None]:
    """Force one of ``IMPLEMENTATIONS`` within the context, for tests and measurements."""
    global _forced
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention {name!r} does not exist; choose one of {', '.join(IMPLEMENTATIONS)}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def choose_attention(q: torch.Tensor) -> str:
    """``row_blocks`` for inference on a CPU, as measured; in training and on GPUs ``augmented``: no loop."""
    return _forced or ("augmented" if torch.is_grad_enabled() or q.is_cuda else "row_blocks")


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rel_h: torch.Tensor | None = None,
    rel_w: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention with decomposed relative positions.

    Args:
        q: (N, heads, Lq, d).
        k, v: (N, heads, Lk, d).
        rel_h: (N, heads, q_height, q_width, k_height), or None; see ``relative_position.decomposed_bias``.
        rel_w: (N, heads, q_height, q_width, k_width), or None.

    Returns:
        (N, heads, Lq, d)
    """
    return IMPLEMENTATIONS[choose_attention(q)](q, k, v, rel_h, rel_w)
