"""softmax(q kT / sqrt(d) + relative positions) v, in the ways of computing it that this package uses.

All give the same result. ``choose_attention`` decides; ``use_attention`` forces one.
"""

from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, scaled_dot_product_attention

from nlnet_d2.layers.products import add_product, is_recorded, matmul, plain, prefers_onednn
from nlnet_d2.layers.switch import Switch

# Numbers of the map that ``blocks`` forms at once, a few MB: they should stay in the cache. Of very large
# maps so many queries nevertheless, since products of few rows are slow; fewer where two parts are in memory.
BLOCK = 2**20
QUERIES = 384
QUERIES_BACKWARD = 256
# Channels of a head from which on ``blocks`` is faster than the fused kernel, too: those of non-local blocks.
WIDE = 2**8
# Maps of at most so many numbers (at most BLOCK) are kept for the backward pass, larger ones formed again.
KEEP = 2**16


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


def augmented(q, k, v, rel_h=None, rel_w=None):
    """Fused attention without a bias: the relative positions ride along as further channels of q and k.

    (q / sqrt(d), rel_h, rel_w) . (k, one-hot of h', one-hot of w') is the whole logit, so neither the map
    nor the bias exists in memory, forward or backward; but there are more products to form.
    """
    if rel_h is None:
        return _fused(q, k, v)
    height, width = rel_h.shape[-1], rel_w.shape[-1]
    one_hot_h = torch.eye(height, device=k.device, dtype=k.dtype).repeat_interleave(width, 0)
    one_hot_w = torch.eye(width, device=k.device, dtype=k.dtype).repeat(height, 1)
    where = torch.cat((one_hot_h, one_hot_w), 1).expand(*k.shape[:2], -1, -1)
    q = torch.cat((q * q.shape[-1] ** -0.5, rel_h.flatten(2, 3), rel_w.flatten(2, 3)), -1)
    out = scaled_dot_product_attention(q, torch.cat((k, where), -1), pad(v, (0, height + width)), scale=1.0)
    return out[..., : v.shape[-1]]


def blocks(q, k, v, rel_h=None, rel_w=None):
    """The formula for a few maps, or a few queries of one map, at a time, in place, in the cache.

    Without positions there is a fused kernel that does the same, but not with the fastest products.
    """
    if rel_h is None and not (q.shape[3] >= WIDE and _is_large(q, k) and prefers_onednn(q)):
        return _fused(q, k, v)
    if torch.is_grad_enabled():
        return _Blocks.apply(q, k, v, rel_h, rel_w)
    return _blocks_forward(q, k, v, rel_h, rel_w)


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """PyTorch's kernel, which wants the channels of a position side by side."""
    return scaled_dot_product_attention(*(t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v)))


def _is_large(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether each map is worked on in several pieces."""
    return q.shape[2] * k.shape[2] > BLOCK


def _blocks_forward(q, k, v, rel_h, rel_w, kept: list[torch.Tensor] | None = None) -> torch.Tensor:
    """The parts of the map are appended to ``kept``."""
    out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)  # heads side by side
    if _is_large(q, k):
        k, v = plain(k), plain(v)  # several pieces read them
    q_rows, out_rows = (_grid(t, rel_h) for t in (q, out))
    for piece in _pieces(q_rows.shape, k.shape[2], QUERIES):
        part = _map_of(piece, q_rows, k, rel_h, rel_w)
        out_rows[piece] = matmul(part, _keys(v, piece)).view_as(out_rows[piece])
        if kept is not None:
            kept.append(part)
    return out


def _grid(t: torch.Tensor, rel_h: torch.Tensor | None) -> torch.Tensor:
    """(N, heads, Lq, d) -> (N, heads, qh, qw, d); without positions each query is a row."""
    return t.unsqueeze(3) if rel_h is None else t.unflatten(2, rel_h.shape[2:4])


def _pieces(shape: torch.Size, keys: int, queries: int) -> Iterator[tuple[slice, slice, slice]]:
    """Maps, heads and rows of queries (N, heads, qh, qw, d) whose parts have about ``BLOCK`` numbers each.

    ``queries`` may be worked on at once even where that are more numbers.
    """
    count, num_heads, height, width, _ = shape
    row = width * keys
    rows = min(height, max(1, queries // width, BLOCK // row))
    heads = min(num_heads, max(1, BLOCK // (row * rows)))
    maps = max(1, BLOCK // (row * height * num_heads))
    for n in range(0, count, maps):
        for head in range(0, num_heads, heads):
            for y in range(0, height, rows):
                yield slice(n, n + maps), slice(head, head + heads), slice(y, y + rows)


def _queries(t: torch.Tensor, piece: tuple) -> torch.Tensor:
    """Of a tensor of the queries: (maps * heads, rows * qw, d)."""
    return t[piece].flatten(2, 3).flatten(0, 1)


def _keys(t: torch.Tensor, piece: tuple) -> torch.Tensor:
    """Of a tensor of the keys: (maps * heads, ...); a view."""
    return t[piece[:2]].flatten(0, 1)


def _map_of(piece, q_rows, k, rel_h, rel_w) -> torch.Tensor:
    """The softmax over the keys for a piece: (maps * heads, rows * qw, Lk)."""
    q, k = _queries(q_rows, piece) * k.shape[-1] ** -0.5, _keys(k, piece)
    terms = () if rel_h is None else (rel_h[piece].unsqueeze(-1), rel_w[piece].unsqueeze(-2))
    shape = torch.broadcast_shapes(*(term.shape for term in terms))  # (maps, heads, rows, qw, kh, kw)
    if terms and (len(q) > 1 or not prefers_onednn(q)):
        logits = q.new_empty(*q.shape[:2], k.shape[1])
        torch.add(*terms, out=logits.view(shape))  # first: MKL is faster where it adds than where it writes
        logits.baddbmm_(q, k.mT)
    else:
        logits = matmul(q, k.mT)
        for term in terms:
            logits.view(shape).add_(term)
    return torch.softmax(logits, -1, out=logits)


class _Blocks(torch.autograd.Function):
    """``blocks`` with gradients: backward goes through the same pieces and adds up what they contribute."""

    @staticmethod
    def forward(ctx, q, k, v, rel_h, rel_w):
        kept = [] if q.shape[2] * k.shape[2] <= KEEP else None
        out = _blocks_forward(q, k, v, rel_h, rel_w, kept)
        ctx.save_for_backward(q, k, v, rel_h, rel_w, out, *(kept or ()))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        q, k, v, rel_h, rel_w, out, *kept = ctx.saved_tensors  # of q, k, v views: nothing twice
        if _is_large(q, k):
            k, v = plain(k), plain(v)  # several pieces read them
        q, out, d_out = (_grid(t, rel_h) for t in (q, out, d_out))
        scale = k.shape[-1] ** -0.5
        d_q = torch.empty_like(q)
        d_rel = [torch.empty_like(t) for t in (rel_h, rel_w) if t is not None]
        pieces = list(_pieces(q.shape, k.shape[2], QUERIES_BACKWARD))
        one_map_each = len(pieces) >= q.shape[:2].numel()
        transposed = one_map_each and prefers_onednn(q)  # the faster product
        d_k, d_v = (t.new_empty(t.mT.shape).mT if transposed else t.new_empty(t.shape) for t in (k, v))
        for i, piece in enumerate(pieces):
            part = kept[i] if kept else _map_of(piece, q, k, rel_h, rel_w)
            d_out_part, first = _queries(d_out, piece), piece[2].start == 0
            add_product(_keys(d_v, piece), part.mT, d_out_part, first)
            mean = (d_out_part * _queries(out, piece)).sum(-1, keepdim=True)
            d_logits = matmul(d_out_part, _keys(v, piece).mT, -mean).mul_(part)
            del part  # or it would still be there when the next is formed
            if d_rel:
                grid = d_logits.view(*rel_h[piece].shape, rel_w.shape[-1])  # (maps, heads, rows, qw, kh, kw)
                d_rel[0][piece], d_rel[1][piece] = grid.sum(-1), grid.sum(-2)
            add_product(_keys(d_k, piece), d_logits.mT, _queries(q, piece) * scale, first)
            d_q[piece] = matmul(d_logits, _keys(k, piece)).mul_(scale).view_as(d_q[piece])
            del d_logits
        return d_q.flatten(2, 3), d_k, d_v, *(d_rel or (None, None))


IMPLEMENTATIONS = {f.__name__: f for f in (explicit, blocks, augmented)}
_attention = Switch("attention", IMPLEMENTATIONS)
use_attention = _attention.use


def choose_attention(q: torch.Tensor) -> str:
    """On a CPU ``blocks``, the fastest as measured (nlnet-d2 benchmark blocks).

    ``augmented`` where its loop would hurt: on GPUs and in recorded graphs; and in half precision, in which
    the fused kernel sums in float32. ``explicit`` on the meta device, where the formula's cost is counted.
    """
    if _attention.forced or q.is_meta:
        return _attention.forced or "explicit"
    full_precision = q.dtype in (torch.float32, torch.float64)
    return "blocks" if q.is_cpu and full_precision and not is_recorded() else "augmented"


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
