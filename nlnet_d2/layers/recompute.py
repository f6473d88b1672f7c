"""Activation checkpointing (arXiv 1604.06174): blocks whose activations the backward pass forms again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: torch.Tensor, forward: Callable | None = None) -> torch.Tensor:
    """``block(x)``, of which only ``x`` is kept for the backward pass.

    Gradients are the same, drop path and dropout included, and so are running statistics: the second pass
    does not move them.

    Args:
        forward: what computes it, if not ``block`` itself.
    """
    forward = forward or block
    if not torch.is_grad_enabled():
        return forward(x)
    moving = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    contexts = {"context_fn": partial(_contexts, moving)} if moving else {}  # its default cannot be compiled
    return checkpoint(forward, x, use_reentrant=False, **contexts)


def _contexts(norms: list[nn.Module]) -> tuple:
    """Of the first pass, and of the second."""
    return nullcontext(), _on_copies(norms)


@contextmanager
def _on_copies(norms: list[nn.Module]) -> Iterator[None]:
    """What the norms write into their buffers is lost."""
    kept = [(norm, dict(norm.named_buffers())) for norm in norms]
    for norm, buffers in kept:
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
