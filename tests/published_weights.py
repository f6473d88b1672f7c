"""Shared by the tests of weights: models without memory, published names, what a complete load is."""

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import nlnet_d2
from nlnet_d2.checkpoint.convert import convert
from nlnet_d2.checkpoint.load import require_backbone

TORCHVISION = {"norm": "BN", "stride_in_1x1": False}
R18 = {"depth": 18, "stride_in_1x1": False}
NORM = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}


def on_meta(build, *args, **kwargs):
    with torch.device("meta"):
        return build(*args, **kwargs)


def shapes(keys):
    """Tensors of the given shapes that take no memory."""
    return {name: torch.zeros(()).expand(shape) for name, shape in keys.items()}


def assert_complete(report, origin):
    assert report.origin == origin
    assert report.used and not report.missing and not report.unexpected and not report.mismatched, report


def report_of_start(model, tensors, allow_missing=()):
    """As ``load_weights``, for models on the meta device."""
    conversion = convert(tensors, model)
    require_backbone(conversion, model, allow_missing)
    return conversion.report


def detector(overrides=(), file="configs/Base-RCNN-FPN.yaml"):
    cfg = get_cfg()
    nlnet_d2.add_nlnet_config(cfg)
    cfg.merge_from_file(file)
    cfg.merge_from_list(["MODEL.DEVICE", "meta", *overrides])
    return build_model(cfg)


def caffe2_name(name, norm="bn", statistics=True):
    """Caffe2's blob for a parameter of our ResNet, written independently of the table."""
    parts = name.split(".")
    last, letters = (
        parts[-1],
        {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"},
    )
    layer = "conv1" if parts[0] == "stem" else f"{parts[0]}_{parts[1]}_{letters[parts[2]]}"
    if "norm" not in parts:
        return f"{layer}_w"
    if parts[0] == "stem" and norm == "bn":
        layer = f"res_{layer}"
    short = {value: key for key, value in NORM.items()}[last]
    long = {"s": "gamma", "b": "beta", "rm": "running_mean", "riv": "running_var"}[short]
    return f"{layer}_{norm}_{short if norm == 'gn' or not statistics else long}"
