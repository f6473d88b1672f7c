"""Random numbers by counter: what is drawn for step or sample k depends on the seed and k alone.

So a resumed run draws what the uninterrupted one would have drawn, whatever was drawn before, in any number
of worker processes, and there is no generator state to save.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def combine(*counters: int) -> int:
    """A 63-bit seed from non-negative integers."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0]) >> 1


def seed_all(*counters: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch (all devices)."""
    seed = combine(*counters)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def seeded(*counters: int) -> Iterator[None]:
    """Seed the CPU generators for a block of code, then give the caller his own state back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed = combine(*counters)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
