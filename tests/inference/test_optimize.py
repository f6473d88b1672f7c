"""A model optimised for inference gives the same results, and leaves the model it came from alone."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nlnet_d2 import add_nlnet_config, optimize_for_inference
from nlnet_d2.backbones.mvit import MViT
from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.backbones.resnet_v2 import ResNetV2
from nlnet_d2.backbones.video.resnet3d import ResNet3D
from nlnet_d2.backbones.video.slowfast import SlowFast
from nlnet_d2.backbones.vit import ViT
from nlnet_d2.backbones.vit_pyramid import SimpleFeaturePyramid
from nlnet_d2.config.zoo import find_config

BLOCKS = [
    {"NAME": "NonLocal", "AT": {"res4": [-2]}},
    {"NAME": "NonLocal", "AT": {"res3": [1]}, "MODE": "dot_product", "NORM": "FrozenBN"},
    {"NAME": "GlobalContext", "AT": {"res3": "all"}, "POSITION": "after_conv3", "FUSION": "both"},
    {"NAME": "SimplifiedNonLocal", "AT": {"res4": "all"}},
    {"NAME": "SqueezeExcitation", "AT": {"res5": "all"}, "POSITION": "after_conv1"},
]
THIN = {"depth": 14, "stem_channels": 4, "width": 8, "res2_channels": 32}
BACKBONES = {
    "resnet": lambda: ContextResNet(blocks=BLOCKS, norm="BN"),
    "frozen resnet": lambda: ContextResNet(blocks=BLOCKS, norm="FrozenBN"),
    "group norm": lambda: ContextResNet(depth=18, norm="GN"),
    "resnet v2": lambda: ResNetV2(blocks=BLOCKS),
    "vitdet": lambda: SimpleFeaturePyramid(
        ViT(embed_dim=48, depth=3, num_heads=3, window_size=3, global_block_indexes=[2])
    ),
    "vitdet, BN": lambda: SimpleFeaturePyramid(
        ViT(embed_dim=48, depth=1, num_heads=3, global_block_indexes=[0]), norm="BN"
    ),
    "mvit": lambda: MViT(embed_dim=16, depths=(1, 1, 2, 1)),
    "slowfast": lambda: SlowFast(depth=26, blocks=[{"NAME": "NonLocal", "AT": {"res4": [0]}}]),
}


def randomize(module: nn.Module) -> nn.Module:
    """Statistics and weights of norms with which a norm that is lost or applied twice shows."""
    for m in module.modules():
        if isinstance(m, (_BatchNorm, FrozenBatchNorm2d)):
            for tensor in (m.running_mean, m.bias.data):
                tensor.normal_(std=0.2)
            for tensor in (m.running_var, m.weight.data):
                tensor.uniform_(0.7, 1.3)
    return module.eval()


def maps(net: nn.Module, x: torch.Tensor) -> dict:
    with torch.no_grad():
        return net(x)


@pytest.mark.parametrize("name", BACKBONES)
def test_same_maps_and_an_untouched_original(name):
    net = randomize(BACKBONES[name]())
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    x = torch.randn(2, 3, *((8, 64, 64) if name == "slowfast" else (64, 96)))
    expected = maps(net, x)
    optimised = optimize_for_inference(net)
    for got in (maps(optimised, x), maps(optimised, x)):
        for key, value in expected.items():
            assert (got[key] - value).abs().max() < 1e-4 * value.abs().max(), key
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for p in optimised.parameters())


def test_what_is_folded():
    optimised = optimize_for_inference(randomize(ContextResNet(blocks=BLOCKS, norm="BN")))
    assert not any(isinstance(m, (_BatchNorm, FrozenBatchNorm2d)) for m in optimised.modules())
    convs = [m for m in optimised.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert convs and all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convs)
    kept = optimize_for_inference(ContextResNet(depth=18, norm="GN"))
    assert any(isinstance(m, nn.GroupNorm) for m in kept.modules())


@pytest.mark.parametrize("frames", [1, 8, 9])
def test_thin_stem_computes_two_frames_at_once(frames):
    net = randomize(ResNet3D(arch="fast", **THIN))
    clip = torch.randn(2, 3, frames, 32, 48)
    optimised = optimize_for_inference(net)
    again = optimize_for_inference(optimised)
    assert optimised.stem.conv1.weight.shape[0] == again.stem.conv1.weight.shape[0] == 8
    expected = maps(net, clip)["res5"]
    for faster in (optimised, again):
        torch.testing.assert_close(maps(faster, clip)["res5"], expected, rtol=1e-4, atol=1e-4)
        stem = faster.stem(clip)
        assert stem.shape[1:3] == (4, frames) and stem.stride(1) == 1


@pytest.mark.parametrize("options", [{"stem_channels": 16}, {"norm": "GN"}, {"norm": ""}])
def test_stem_that_stays(options):
    """It fills a vector, has a norm that does not fold, or none."""
    assert not optimize_for_inference(ResNet3D(arch="fast", **THIN | options)).stem.paired


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_clips_compiled_whole_with_the_weights_inside(backend):
    net = randomize(SlowFast(depth=14, width=16, stem_channels=16, res2_channels=32, beta_inv=4))
    clip = torch.randn(1, 3, 8, 64, 64)
    with torch._inductor.config.patch(freezing=True):
        got = maps(torch.compile(optimize_for_inference(net), backend=backend, fullgraph=True), clip)
    for key, value in maps(net, clip).items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-4)


def test_context_blocks_write_over_their_input():
    """Where they stand in a residual block; the input of the network stays as it is."""
    net = optimize_for_inference(randomize(ContextResNet(depth=18, blocks=[BLOCKS[-2]], norm="BN")))
    block, seen = net.res4[0].after_add[0], []
    block.register_forward_hook(lambda _, args, out: seen.append(args[0].data_ptr() == out.data_ptr()))
    x = torch.randn(1, 3, 64, 64)
    saved = x.clone()
    maps(net, x)
    assert seen == [True] and torch.equal(x, saved)
    assert not writes_in_place(ContextResNet(depth=18, blocks=[BLOCKS[-2]]))


def writes_in_place(net: nn.Module) -> bool:
    return any(getattr(m, "inplace", False) for m in net.modules() if not isinstance(m, nn.ReLU))


@pytest.mark.parametrize(
    "config", ["coco/mask_rcnn_nl_R50_FPN.yaml", "coco/mask_rcnn_gc_r16_R50_FPN_1x.yaml"]
)
def test_a_detector_finds_the_same(config):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.merge_from_file(str(find_config(config)))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    model = randomize(build_model(cfg))
    for name, parameter in model.backbone.named_parameters():
        if "lateral" in name:
            parameter.data.mul_(0.01)  # maps of the size that trained ones have
    image = [{"image": 255 * torch.rand(3, 96, 128), "height": 96, "width": 128}]
    with torch.no_grad():
        expected, got = (m(image)[0]["instances"] for m in (model, optimize_for_inference(model)))
    assert len(expected) == len(got) == 10
    torch.testing.assert_close(got.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(got.scores, expected.scores, rtol=1e-4, atol=1e-4)
    assert (got.pred_masks != expected.pred_masks).float().mean() < 1e-3
