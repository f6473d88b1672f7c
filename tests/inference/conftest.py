"""Random weights for the configs of ``tests/data/inference``."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from echo_models import TINY_ACTIONS, TINY_OBJECTS

import nlnet_d2
from nlnet_d2.inference.config import predict_config


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
def action_weights(weights_of) -> str:
    return weights_of(TINY_ACTIONS)


@pytest.fixture(scope="session")
def object_weights(weights_of) -> str:
    return weights_of(TINY_OBJECTS)
