"""Rates of stochastic depth (arXiv 1603.09382); the layer itself is torchvision's ``StochasticDepth``."""


def linear_schedule(rate: float, depth: int) -> list[float]:
    """Drop rates that grow from 0 in the first block to ``rate`` in the last of ``depth`` blocks."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]
