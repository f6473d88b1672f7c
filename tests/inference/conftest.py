"""Models that answer from what they are shown, tiny networks with random weights, and alike configs."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

import nlnet_d2
from nlnet_d2.inference.config import predict_config

CONFIGS = Path(__file__).parents[2] / "configs"
TINY_OBJECTS = Path(__file__).parents[1] / "data" / "engine" / "tiny.yaml"
CLASSES = 3
TINY_ACTIONS = f"""
_BASE_: {CONFIGS}/ava/Base-Slow.yaml
MODEL:
  RESNETS: {{DEPTH: 14, STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 8, RES2_OUT_CHANNELS: 16}}
  ACTION_HEAD: {{NUM_CLASSES: {CLASSES}}}
DATASETS: {{TRAIN: [], TEST: []}}
INPUT:
  CLIP: {{NUM_FRAMES: 4, STRIDE: 2, SIZE_TEST: 48}}
"""


@pytest.fixture
def stock_cfg() -> CfgNode:
    cfg = get_cfg()
    nlnet_d2.add_nlnet_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory):
    """A function: config file and options -> file of random weights."""

    def save(config, *options) -> str:
        cfg = predict_config(str(config), options)
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("weights") / "model_final.pth"
        torch.save({"model": build_model(cfg).state_dict()}, path)
        return str(path)

    return save


@pytest.fixture(scope="session")
def tiny_actions(tmp_path_factory) -> str:
    """Config file of an action model; its people come from outside."""
    path = tmp_path_factory.mktemp("actions") / "actions.yaml"
    path.write_text(TINY_ACTIONS)
    return str(path)


@pytest.fixture(scope="session")
def action_weights(weights_of, tiny_actions) -> str:
    return weights_of(tiny_actions)


@pytest.fixture(scope="session")
def object_weights(weights_of) -> str:
    return weights_of(TINY_OBJECTS)


class Echo(nn.Module):
    """Objects: one, as large as the picture, its score the mean of the input's first channel."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, inputs):
        self.batches.append(inputs)
        results = []
        for x in inputs:
            found = Instances((x["height"], x["width"]))
            found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, x["width"], x["height"]]]))
            found.scores = x["image"][0].float().mean()[None] / 255
            found.pred_classes = torch.zeros(1, dtype=torch.long)
            results.append({"instances": found})
        return results


class EchoActions(nn.Module):
    """Actions of the boxes that are given, or of a person as large as the frame; class k scores k / 10."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, inputs):
        self.batches.append(inputs)
        return [{"instances": self._people(x)} for x in inputs]

    @staticmethod
    def _people(x):
        height, width = x["clip"].shape[2:]
        boxes = x.get("boxes", Boxes(torch.tensor([[0.0, 0.0, width, height]]))).clone()
        boxes.scale(x["width"] / width, x["height"] / height)
        scores = torch.arange(1, CLASSES + 1).expand(len(boxes), CLASSES) / 10
        return Instances((x["height"], x["width"]), pred_boxes=boxes, scores=scores)
