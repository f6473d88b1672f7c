"""Weights & Biases, played by a module of ours."""

import sys
from types import SimpleNamespace

from tiny_run import arguments

from nlnet_d2.engine.run import main

OPTIONS = ("DATASETS.TEST", "[]", "WANDB.PROJECT", "tiny")


class Run:
    def __init__(self, given):
        self.id, self.given, self.logged, self.finished = "abc", given, {}, False

    def log(self, numbers, step):
        self.logged[step] = numbers

    def finish(self):
        self.finished = True


def test_numbers_go_there_and_a_resumed_run_goes_on(tiny_data, tmp_path, monkeypatch):
    runs = []

    def init(**given):
        runs.append(Run(given))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for iterations, flags in (("2", ()), ("3", ("--resume",))):
        options = (*OPTIONS, "SOLVER.MAX_ITER", iterations)
        assert main(arguments(tiny_data, tmp_path, *options, flags=flags)) == 0
    first, second = runs
    assert first.given["project"] == "tiny" and first.given["config"]["SOLVER"]["MAX_ITER"] == 2
    assert first.given["id"] is None and second.given["id"] == "abc" and second.given["resume"] == "allow"
    assert first.finished and second.finished
    assert "total_loss" in first.logged[1] and max(second.logged) == 2


def test_without_the_package_the_error_says_how_to_get_it(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(arguments(tiny_data, tmp_path, *OPTIONS)) == 2
    assert "WANDB.PROJECT needs Weights & Biases: pip install wandb" in capsys.readouterr().err
