import itertools
import random

import numpy as np
import torch

from nlnet_d2.engine.seeding import combine, seed_all, seeded


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_draws_depend_on_the_counters_alone():
    seed_all(3, 0, 1, 5)
    expected = draw()
    draw()
    seed_all(3, 0, 1, 5)
    assert draw() == expected
    seed_all(3, 0, 1, 6)
    assert all(a != b for a, b in zip(draw(), expected, strict=True))


def test_a_block_gives_back_the_callers_generators():
    seed_all(1)
    expected = draw()
    seed_all(1)
    with seeded(2):
        inside = draw()
    assert draw() == expected
    with seeded(2):
        assert draw() == inside


def test_neighbouring_counters_give_unrelated_seeds():
    seeds = {combine(*counters) for counters in itertools.product((0, 1), (0, 1), (0, 1), range(50))}
    assert len(seeds) == 400
