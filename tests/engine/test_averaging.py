"""The moving average of the weights: its formula, its file, its evaluation beside that of the weights."""

import json
from types import SimpleNamespace

import torch
from tiny_run import arguments
from torch import nn

from nlnet_d2.engine.averaging import AverageWeights
from nlnet_d2.engine.run import main
from nlnet_d2.engine.trainer import Trainer

EMA = ("SOLVER.EMA.ENABLED", "True", "SOLVER.EMA.DECAY", "0.5")


def train(average, model, iterations):
    """Adds 1 to all weights in each iteration."""
    average.trainer = SimpleNamespace(iter=0, max_iter=100)
    average.before_train()
    for _ in range(iterations):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1
        model.running_mean += 1
        average.after_step()


def test_formula(tmp_path):
    model = nn.BatchNorm1d(3)
    average = AverageWeights(model, 0.9, str(tmp_path), period=1000)
    nn.init.constant_(model.weight, 5.0)  # weights that are loaded after the hook was built
    train(average, model, 2)
    torch.testing.assert_close(average.model.weight, torch.full((3,), 5 + 0.9 * 0.1 * 1 + 0.1 * 2))
    assert torch.equal(average.model.running_mean, model.running_mean), "buffers are copied"
    assert torch.equal(model.weight, torch.full((3,), 7.0)), "the training is left alone"


def test_its_state_goes_on(tmp_path):
    model = nn.BatchNorm1d(3)
    first, second = (AverageWeights(model, 0.9, str(tmp_path), period=1000) for _ in range(2))
    train(first, model, 3)
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        train(average, model, 1)
        nn.init.constant_(model.weight, 4.0), nn.init.constant_(model.bias, 3.0)
    assert torch.equal(first.model.bias, second.model.bias)


def test_no_average_in_the_checkpoint(tiny_data, tmp_path, monkeypatch):
    """Turned on for the rest of a run, it begins with the weights there."""
    options = ("SOLVER.MAX_ITER", "2")
    assert main(arguments(tiny_data, tmp_path, "DATASETS.TEST", "[]", *options)) == 0
    evaluated = []
    note = staticmethod(lambda cfg, model: evaluated.append(model.state_dict()) or {})
    monkeypatch.setattr(Trainer, "test", note)
    assert main(arguments(tiny_data, tmp_path, *EMA, *options, flags=("--resume",))) == 0
    plain, averaged = evaluated
    assert all(torch.equal(plain[key], averaged[key]) for key in plain)


def test_both_are_evaluated_and_written(tiny_data, tmp_path, monkeypatch):
    """What is evaluated as ``ema`` is the average, and model_ema.pth gives the same numbers later."""

    measured = []

    def measure(cfg, model):
        measured.append(sum(p.double().sum().item() for p in model.parameters()))
        return {"bbox": {"AP": measured[-1]}}

    monkeypatch.setattr(Trainer, "test", staticmethod(measure))
    best = ("TEST.EVAL_PERIOD", "2", "TEST.BEST_METRIC", "ema/bbox/AP")
    assert main(arguments(tiny_data, tmp_path, *EMA, *best)) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    final = next(row for row in reversed(rows) if "bbox/AP" in row)
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"model_0000001.pth", "model_0000003.pth", "model_final.pth"} | {
        "model_best.pth",
        "model_ema.pth",
    }
    best = max(row["ema/bbox/AP"] for row in rows if "ema/bbox/AP" in row)
    assert final["bbox/AP"] != final["ema/bbox/AP"]
    for name, expected in (
        ("final", final["bbox/AP"]),
        ("ema", final["ema/bbox/AP"]),
        ("best", best),
    ):
        weights = str(tmp_path / f"model_{name}.pth")
        assert main(arguments(tiny_data, tmp_path, "MODEL.WEIGHTS", weights, flags=("--eval-only",))) == 0
        assert measured[-1] == expected, name


def test_both_are_shown(tiny_data, tmp_path, capsys):
    assert main(arguments(tiny_data, tmp_path, *EMA, "SOLVER.MAX_ITER", "1")) == 0
    plain, averaged = capsys.readouterr().out.split("Evaluating the averaged weights")
    assert "copypaste: Task: segm" in plain and "copypaste: Task: segm" in averaged
    predictions = "inference/coco_instances_results.json"
    assert (tmp_path / predictions).exists() and (tmp_path / "ema" / predictions).exists()


def test_decay_is_a_share(tiny_data, tmp_path, capsys):
    assert main(arguments(tiny_data, tmp_path, *EMA, "SOLVER.EMA.DECAY", "1.5")) == 2
    assert "SOLVER.EMA.DECAY: Invalid decay value 1.5" in capsys.readouterr().err
