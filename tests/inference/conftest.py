"""Configs of tiny networks, and their random weights."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from echo_models import CLASSES

import nlnet_d2
from nlnet_d2.inference.config import predict_config

CONFIGS = Path(__file__).parents[2] / "configs"
TINY_OBJECTS = f"""
_BASE_: {Path(__file__).parents[1]}/data/engine/tiny.yaml
DATASETS: {{TRAIN: [], TEST: []}}
"""
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
def tiny_objects(tmp_path_factory) -> str:
    """Config file of a Mask R-CNN with COCO's number of classes."""
    path = tmp_path_factory.mktemp("objects") / "objects.yaml"
    path.write_text(TINY_OBJECTS)
    return str(path)


@pytest.fixture(scope="session")
def object_weights(weights_of, tiny_objects) -> str:
    return weights_of(tiny_objects)
