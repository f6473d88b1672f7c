"""Activation checkpointing, MODEL.BACKBONE.ACT_CHECKPOINT, in all backbones."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from nlnet_d2 import add_nlnet_config
from nlnet_d2.backbones.mvit import MViT
from nlnet_d2.backbones.resnet import ContextBottleneckBlock, ContextResNet
from nlnet_d2.backbones.resnet_v2 import ResNetV2
from nlnet_d2.backbones.video.resnet3d import ContextBottleneckBlock3d, ResNet3D
from nlnet_d2.backbones.video.slowfast import SlowFast
from nlnet_d2.backbones.vit import ViT

BLOCKS = [{"NAME": "NonLocal", "AT": {"res3": [-1]}, "NORM": "BN"}]
VIT = {"img_size": 64, "embed_dim": 48, "depth": 4, "num_heads": 3, "window_size": 2}
VIT["global_block_indexes"] = (1, 3)
NARROW = {"depth": 14, "stem_channels": 16, "width": 16, "res2_channels": 32}
IMAGE, CLIP, CLIPS = (2, 3, 64, 64), (2, 3, 8, 32, 32), (8, 3, 8, 32, 32)
NETWORKS = {
    "vit": (ViT, VIT | {"drop_path_rate": 0.5}, IMAGE),
    "mvit": (MViT, {"img_size": 64, "embed_dim": 32, "depths": (1, 2, 2, 1), "window_size": 8}, IMAGE),
    "resnet": (ContextResNet, {"depth": 50, "norm": "BN", "blocks": BLOCKS}, IMAGE),
    "resnet18": (ContextResNet, {"depth": 18, "norm": "GN"}, IMAGE),
    "resnet v2": (ResNetV2, {"blocks": BLOCKS}, IMAGE),
    "slow": (ResNet3D, NARROW | {"norm": "SubBN"}, CLIPS),
    "slowfast": (SlowFast, NARROW | {"blocks": BLOCKS}, CLIP),
}


@pytest.fixture(params=NETWORKS, ids=str)
def networks(request):
    """The same network twice, without and with recomputing, and its input."""
    build, options, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    plain, recomputing = build(**options), build(**options, use_act_checkpoint=True)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    recomputing.load_state_dict(plain.state_dict())
    return plain.train(), recomputing.train(), torch.randn(shape)


def test_same_gradients_and_statistics(networks):
    """Drop path and all: the same random numbers are drawn; and the norms count each batch once."""
    *pair, x = networks
    gradients = []
    for net in pair:
        torch.manual_seed(1)
        loss = sum(v.square().mean() for v in net(x).values())
        gradients.append(torch.autograd.grad(loss, list(net.parameters())))
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)
    for (name, expected), got in zip(pair[0].named_buffers(), pair[1].buffers(), strict=True):
        assert torch.equal(got, expected), name


def test_less_is_kept(networks):
    """Counted in numbers that autograd keeps: of a block, only its input."""

    def kept(net: nn.Module) -> int:
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(x)
        return sum(sizes)

    plain, recomputing, x = networks
    assert kept(recomputing) < kept(plain) / 2


def test_nothing_changes_without_gradients(networks):
    plain, recomputing, x = (copy.deepcopy(part) for part in networks)
    with torch.no_grad():
        expected, got = plain.eval()(x), recomputing.eval()(x)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "build, options",
    [
        (ViT, VIT | {"drop_path_rate": 0.0}),
        (MViT, NETWORKS["mvit"][1] | {"drop_path_rate": 0.0}),
        (ContextResNet, {"depth": 18, "norm": "GN"}),
        (ContextResNet, {"depth": 18, "norm": "BN"}),
    ],
)
def test_can_be_compiled(build, options):
    """With norms that keep statistics, which count once, and without."""
    torch._dynamo.reset()  # or the sizes of other tests would make even the first one variable
    torch.manual_seed(0)
    net = build(**options, use_act_checkpoint=True)
    compiled, x = copy.deepcopy(net), torch.randn(IMAGE, requires_grad=True)
    gradients = []
    for forward in (net, torch.compile(compiled, backend="aot_eager")):
        loss = sum(v[:, 0].square().mean() for v in forward(x).values())
        gradients += torch.autograd.grad(loss, x)
    expected, got = (gradient / gradients[0].abs().max() for gradient in gradients)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    for (name, expected), got in zip(net.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)


@pytest.mark.parametrize(
    "name, blocks",
    [
        ("build_vit_simple_pyramid_backbone", ViT),
        ("build_vit_fpn_backbone", ViT),
        ("build_mvit_fpn_backbone", MViT),
        ("build_context_resnet_fpn_backbone", ContextBottleneckBlock),
        ("ContextResNet", ContextBottleneckBlock),
        ("ResNet3D", ContextBottleneckBlock3d),
        ("SlowFast", ContextBottleneckBlock3d),
    ],
)
def test_one_key_for_all(name, blocks):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.ACT_CHECKPOINT = name, True
    cfg.MODEL.RESNETS.OUT_FEATURES = ["slow_res5"] if name == "SlowFast" else ["res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res4", "res5"]
    if blocks is ContextBottleneckBlock3d:
        cfg.MODEL.RESNETS.NORM = "BN"
    with torch.device("meta"):
        model = build_backbone(cfg, ShapeSpec(channels=3))
    found = [m.use_act_checkpoint for m in model.modules() if isinstance(m, blocks)]
    assert found and all(found)
