"""What a run leaves about its start and its end."""

import json
import sys

import pytest
import torch

from nlnet_d2 import cli
from nlnet_d2.engine.launches import FILE, noted


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_start_and_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/train_net.py", "--config-file", "a b.yaml"])
    with noted(str(tmp_path)):
        (start,) = lines(tmp_path)  # there already, should the run be killed
    start, end = lines(tmp_path)
    assert start["command"] == "tools/train_net.py --config-file 'a b.yaml'"
    assert start["processes"] == 1
    assert torch.__version__.startswith(start["versions"]["torch"])
    assert end["outcome"] == "done"
    assert end["seconds"] >= 0
    assert start["started"] <= end["ended"]


def test_an_error_is_noted_and_passes(tmp_path):
    with pytest.raises(FloatingPointError), noted(str(tmp_path)):
        raise FloatingPointError("loss_cls is nan")
    with pytest.raises(KeyboardInterrupt), noted(str(tmp_path)):
        raise KeyboardInterrupt
    outcomes = [line["outcome"] for line in lines(tmp_path) if "outcome" in line]
    assert outcomes == ["FloatingPointError: loss_cls is nan", "KeyboardInterrupt"]


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("nlnet_d2.engine.launches.comm.is_main_process", lambda: False)
    with noted(str(tmp_path)):
        pass
    assert not (tmp_path / FILE).exists()


def test_the_command_of_the_package(tmp_path, monkeypatch):
    def trained(argv) -> int:
        with noted(str(tmp_path)):
            return 0

    monkeypatch.setattr(sys, "argv", ["/usr/bin/nlnet-d2", "train", "--config-file", "C"])
    monkeypatch.setattr("nlnet_d2.cli.train.main", trained)
    assert cli.main() == 0
    assert lines(tmp_path)[0]["command"] == "nlnet-d2 train --config-file C"
