"""What a training step keeps, and the largest input that fits."""

import json

import pytest
import torch
from torch import nn

from nlnet_d2.analysis import memory
from nlnet_d2.analysis.memory import StepMemory, kept_bytes, step_memory
from nlnet_d2.analysis.zoo import read_config
from nlnet_d2.cli import analyze
from nlnet_d2.config.zoo import find_config
from nlnet_d2.layers.mlp import Mlp
from nlnet_d2.layers.products import use_onednn

SHAPES = "quickstart/mask_rcnn_vitdet_shapes.yaml"


class Toy(nn.Module):
    """Keeps its input, counted once, and the output of ``sigmoid``; no parameter counts."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(10, 10)

    def forward(self, x):
        return {"loss": (self.linear(x) + self.linear(x)).sigmoid().sum()}


def test_what_is_kept():
    x = torch.randn(7, 10)
    assert kept_bytes(Toy(), x) == 4 * 2 * 70


def test_the_largest_input():
    images = StepMemory(states=1000, fixed=0, slope=2)
    assert [images.largest(m) for m in (500, 1000 + 2 * 64 * 64, 2 * 96 * 96 + 999)] == [0, 64, 64]
    clips = StepMemory(states=0, fixed=100, slope=10, step=4, size=224)
    assert [clips.largest(m) for m in (50, 180, 260)] == [0, 8, 16]


def config(name, *options):
    cfg = read_config(find_config(name))
    cfg.merge_from_list(list(options))
    return cfg


def test_it_grows_as_measured():
    """The line through two sizes foretells a third; recomputing activations makes it flatter."""
    cfg = config(SHAPES, "MODEL.DEVICE", "cpu", "MODEL.FPN.SQUARE_PAD", 0)
    found = step_memory(cfg)
    model = memory.build_model(cfg).train()
    measured = kept_bytes(model, [memory._image(cfg, 512)])
    assert found.fixed + found.slope * 512**2 == pytest.approx(measured, rel=0.05)
    flatter = step_memory(config(SHAPES, "MODEL.BACKBONE.ACT_CHECKPOINT", True))
    assert flatter.slope < 0.8 * found.slope and flatter.states == found.states


class Perceptron(Mlp):
    def forward(self, x):
        return {"loss": super().forward(x).sum()}


@pytest.mark.parametrize("flag", [True, False])
def test_it_is_that_of_a_gpu_on_every_processor(flag):
    """With oneDNN a perceptron keeps x and the hidden numbers, on a GPU also their GELU."""
    with use_onednn(flag):
        assert kept_bytes(Perceptron(8, 8), torch.randn(5, 8)) == 4 * (5 * 8 + 2 * 5 * 32)


def test_clips_count_frames():
    small = ["MODEL.RESNETS.DEPTH", 26, "INPUT.CLIP.CROP_TRAIN", 64]
    found = step_memory(config("ava/slowfast_4x16_R50.yaml", *small))
    assert (found.step, found.size) == (8, 64)
    assert found.slope > 0 and found.largest(found.states + found.fixed + 16.5 * found.slope) == 16


def test_command(capsys):
    assert analyze.main(["--config-file", SHAPES, "--memory", "1", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["unit"] == "px of the side" and 0 < result["largest"]["1 GB"] < result["largest"]["4 GB"]
    assert all(side % 32 == 0 for side in result["largest"].values())


def test_command_says_the_same_each_time(monkeypatch, capsys):
    """Although what is kept depends on random weights."""
    monkeypatch.setattr(analyze, "step_memory", lambda cfg: StepMemory(0, 0, 1 + torch.rand(()).item()))
    outputs = []
    for _ in range(2):
        analyze.main(["--config-file", SHAPES, "--memory", "1"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
