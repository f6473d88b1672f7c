"""The benchmarks compare what is equal, refuse what is not, and write rows of one form. No times here."""

import json
import os
from functools import partial
from pathlib import Path
from time import time

import numpy as np
import pytest
import torch

from nlnet_d2.benchmarks import report
from nlnet_d2.benchmarks.measure import Case, Goal, Pair, WrongNumbers, max_difference, measure, peak_bytes
from nlnet_d2.cli import benchmark

CPU = torch.device("cpu")
FIELDS = {"suite", "case", "alternative", "time_ratio", "memory_ratio", "max_abs_diff"}


def case(ours, other, **options) -> Case:
    return Case("sum, 3", "loop", lambda device: Pair(ours, other), work=3, unit="numbers", **options)


@pytest.fixture
def precision(suite):
    """Where maxima are pooled, one at which rounding does not decide which number gets the gradient."""
    torch.set_default_dtype(torch.float64 if suite == "mvit" else torch.float32)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("suite", benchmark.SUITES)
def test_every_case_of_a_suite_computes_the_same(suite, precision):
    """At tiny sizes: ``measure`` raises where the two sides differ."""
    for tiny in benchmark.SUITES[suite](True):
        row = measure(tiny, suite, CPU, rounds=1)
        assert row.keys() >= FIELDS and row["time_ratio"] > 0
        assert (row["max_abs_diff"] is None) == (tiny.tolerance is None)


@pytest.mark.parametrize("suite", benchmark.SUITES)
def test_cases_have_names_of_their_own(suite):
    for quick in (True, False):
        names = [(c.name, c.alternative) for c in benchmark.SUITES[suite](quick)]
        assert names and len(set(names)) == len(names)


@pytest.mark.parametrize(
    "wrong", [torch.tensor([1.0, 2.1]), torch.tensor([1.0]), torch.tensor([1.0, float("nan")])]
)
def test_a_fast_wrong_thing_is_refused(wrong):
    right = torch.tensor([1.0, 2.0])
    with pytest.raises(WrongNumbers, match="toy: sum, 3"):
        measure(case(lambda: wrong, lambda: right), "toy", CPU, rounds=1)


def test_differences_are_relative_to_each_array():
    """A wrong small gradient is not hidden by a large one; rounding errors of the large one are none."""
    assert max_difference([1.0, 1e-9], [1.0, 0.0], 1e-4, "toy") == 1e-9
    with pytest.raises(WrongNumbers):
        max_difference([1.0, 1e-4], [1.0, 2e-4], 1e-4, "toy")


def test_each_call_is_prepared_and_rounds_alternate():
    calls = []
    pair = Pair(lambda: calls.append("a") or 1.0, lambda: calls.append("b") or 1.0, lambda: calls.append("-"))
    measure(Case("sum, 3", "loop", lambda device: pair, 3, "numbers"), "toy", CPU, rounds=2)
    assert "".join(calls) == "-a-b" + "-a-b" * 2 + "-a-a-b-b"  # numbers, two rounds, memory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_peak_of_memory():
    """A temporary of 64 MiB counts although it is freed during the call, and memory held before does not."""
    held = np.ones(2**24)

    def temporary():
        np.ones(2**23).sum()
        return held[0]

    assert 0.9 < peak_bytes(temporary, CPU) / 2**26 < 1.2


def note_process(path: Path, device) -> Pair:
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return Pair(time, time)


def test_rows_measured_again_replace_the_old(tmp_path, monkeypatch):
    """And each case is the first that its process measures."""
    processes = tmp_path / "processes"
    toy = Case("clock, 1", "itself", partial(note_process, processes), 1, "calls", None, Goal(1e9))
    monkeypatch.setitem(benchmark.SUITES, "vit", lambda quick: [toy])
    paths = [tmp_path / name for name in ("rows.json", "page.md")]
    for _ in range(2):
        benchmark.main(["vit", "--json", str(paths[0]), "--markdown", str(paths[1]), "--rounds", "2"])
    (row,) = json.loads(paths[0].read_text())
    assert row["rounds"] == 2 and row["goal"] == [1e9, None] and row.keys() >= FIELDS
    assert len({*processes.read_text().split(), str(os.getpid())}) == 3
    page = paths[1].read_text()
    assert "**≥ 1e+09**" in page and "nlnet-d2 benchmark vit`" in page and "Not run" in page


def test_nothing_chosen(capsys):
    assert benchmark.main(["vit", "--quick", "--case", "no such case"]) == 2
    assert "no case of vit has 'no such case' in its name" in capsys.readouterr().err


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    row = measure(case(lambda: 1.0, lambda: 1.0), "toy", CPU, rounds=1)
    row["peak_bytes"] = [1, 2]
    with pytest.raises(ValueError, match="no case was measured at two sizes"):
        report.plot([row], tmp_path / "plot.png")
    report.plot([row, row | {"case": "sum, 4", "work": 4}], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
