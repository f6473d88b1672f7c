"""The ranks of the true positives beside those of a full sort."""

import numpy as np
import pytest

from nlnet_d2.evaluation.average_precision import ranks_of_hits

DISTRIBUTIONS = {
    "even": lambda rng, n: rng.random(n),
    "mostly small": lambda rng, n: rng.random(n) ** 20,
    "float32": lambda rng, n: rng.random(n, np.float32),
    "logits": lambda rng, n: 30 * rng.standard_normal(n),
    "many ties": lambda rng, n: rng.integers(0, 7, n) / 7,
    "all equal": lambda rng, n: np.full(n, 0.25),
    "one far away": lambda rng, n: np.where(np.arange(n) == n // 2, 1e12, rng.random(n)),
    "as small as can be": lambda rng, n: 5e-324 * rng.integers(0, 5, n),
}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 1.0], ids="{} true".format)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_ranks_are_those_of_a_full_sort(name, share):
    rng = np.random.default_rng(0)
    score, hit = DISTRIBUTIONS[name](rng, 5000), rng.random(5000) < share
    row = np.arange(len(score))
    orders = [np.lexsort((last, -score)) for last in (-row, hit, ~hit)]
    for ranks, order in zip(ranks_of_hits(score, hit), orders, strict=True):
        np.testing.assert_array_equal(ranks, np.flatnonzero(hit[order]))


def test_no_detections():
    assert [len(r) for r in ranks_of_hits(np.zeros(0), np.zeros(0, bool))] == [0, 0, 0]
