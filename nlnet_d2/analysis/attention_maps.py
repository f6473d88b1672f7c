"""Where a network looks: rows of its attention maps during a forward pass, and how much the rows differ.

    points = torch.tensor([[0.5, 0.5]])  # y, x in fractions of the picture
    with record_attention(model.backbone, points) as maps:
        model(batch)
    maps["bottom_up.res4.4.after_add.0"]  # (N, Q, heads, H', W')

A module takes part by its method ``attention_rows(*inputs, points=points)``, which gives (N, Q, heads, ...)
over its map of keys, NaN out of reach (see ``layers/attention_rows.py``). Only the rows asked for are
computed. Outside the context nothing is attached to the network.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from nlnet_d2.blocks.context import ContextPooling


def attention_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Modules of a network that look at some positions more than at others, by name.

    Not those that average over all positions alike (squeeze-excitation).
    """
    found = {n: m for n, m in network.named_modules() if hasattr(m, "attention_rows")}
    return {n: m for n, m in found.items() if not (isinstance(m, ContextPooling) and m.conv_mask is None)}


@contextmanager
def record_attention(network: nn.Module, points: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    """Within the context, each forward pass leaves the attention of the queries at ``points``.

    Args:
        network: a backbone, or whatever takes the picture or clip; ``points`` refer to its input, padding
            included. For a head of a region, they refer to the region.
        points: (Q, 2): y, x, or for clips (Q, 3): time, y, x, in fractions 0..1.

    Yields:
        name of the module -> (N, Q, heads, H', W') or (N, Q, heads, T', H', W'), float32 on the CPU; of the
        last forward pass.

    Raises:
        ValueError: no module has attention, or points outside 0..1.
    """
    modules = attention_modules(network)
    if not modules:
        raise ValueError(f"{type(network).__name__} has no module with attention")
    if not ((points >= 0) & (points <= 1)).all():
        raise ValueError(f"points are fractions from 0 to 1, got {points.tolist()}")
    maps: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(partial(_keep_rows, maps, name, points))
        for name, module in modules.items()
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _keep_rows(maps: dict, name: str, points: torch.Tensor, module: nn.Module, inputs: tuple) -> None:
    """Forward pre-hook: before the module, for what follows may change its input in place."""
    x, *others = inputs
    rows = module.attention_rows(x, points.to(x.device), *others)
    maps[name] = rows.float().cpu()


def grid_points(sides: tuple[int, ...]) -> torch.Tensor:
    """Points spread evenly, as for ``record_attention``: the centres of the cells of a map of these sides."""
    axes = [(torch.arange(side) + 0.5) / side for side in sides]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


@dataclass(frozen=True)
class QueryDifference:
    """How much the attention maps of different queries differ: 0 says that all see the same.

    As in table 1 of GCNet (arXiv 1904.11492, section 3.2): the mean over all pairs of queries (i, j), also
    i = j, of a distance of their maps a_i, a_j; here over the recorded queries instead of all positions, over
    the heads, and, for attention in windows, over pairs of the same window.

    Attributes:
        cosine: (1 - cos(a_i, a_j)) / 2, from 0 to 0.5 for maps that are not negative.
        jensen_shannon: the divergence in nats, 1/2 sum_k a_ik log(2 a_ik / (a_ik + a_jk)) + 1/2 sum_k a_jk
            log(2 a_jk / (a_ik + a_jk)), from 0 to log 2; NaN for maps that are no distributions.
    """

    cosine: float
    jensen_shannon: float


@torch.no_grad()
def query_difference(rows: torch.Tensor) -> QueryDifference:
    """The difference of recorded rows (N, Q, heads, ...), see ``record_attention``.

    Raises:
        ValueError: there are fewer than two queries.
    """
    if rows.shape[1] < 2:
        raise ValueError("differences need two or more queries; grid_points spreads them over the picture")
    reach = ~rows.isnan().flatten(3)[:, :, 0]  # (N, Q, K)
    rows = rows.nan_to_num(0).flatten(3).transpose(1, 2).double()  # (N, heads, Q, K)
    comparable = (reach.unsqueeze(2) == reach.unsqueeze(1)).all(-1).unsqueeze(1)  # (N, 1, Q, Q)
    comparable = comparable.expand(-1, rows.shape[1], -1, -1)
    unit = nn.functional.normalize(rows, dim=-1)
    cosine = (1 - unit @ unit.transpose(-2, -1)) / 2
    divergence = torch.stack([_jensen_shannon(row.unsqueeze(2), rows) for row in rows.unbind(2)], 2)
    return QueryDifference(
        cosine=max(0.0, float(cosine[comparable].mean())),  # rounding may leave -1e-17
        jensen_shannon=max(0.0, float(divergence[comparable].mean())) if (rows >= 0).all() else math.nan,
    )


def _jensen_shannon(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Divergence over the last axis, (..., K) -> (...), of rows that are brought to sum to 1."""
    a, b = (t / t.sum(-1, keepdim=True) for t in (a, b))
    mean = (a + b) / 2
    terms = torch.special.xlogy(a, a / mean) + torch.special.xlogy(b, b / mean)
    return terms.nan_to_num(0).sum(-1) / 2
