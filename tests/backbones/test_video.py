"""C2D, I3D, Slow and SlowFast: published sizes, shapes, temporal reach, initialisation, gradients, errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nlnet_d2.backbones.resnet import STAGES
from nlnet_d2.backbones.video.conv3d import Conv3d
from nlnet_d2.backbones.video.resnet3d import DEPTHS, ContextBottleneckBlock3d, ResNet3D
from nlnet_d2.backbones.video.slowfast import FRAME_RULES, SlowFast, slow_frames
from nlnet_d2.layers.norm import FrozenBatchNorm3d

FIVE_BLOCKS = [{"NAME": "NonLocal", "AT": {"res3": [1, 3], "res4": [1, 3, 5]}, "SUBSAMPLE": [1, 2, 2]}]
AVA_BLOCKS = [
    {"NAME": "NonLocal", "AT": {"res4": [6, 13, 20]}, "MODE": "dot_product", "SUBSAMPLE": [2, 2, 2]}
]
DETECTION = {"res5_stride": 1, "res5_dilation": 2}
R101_50_50 = {"depth": 101, "fusion_kernel": 5, "temporal_blocks": (3, 4, 6, 3)}
FOUR_BY_16 = {"alpha": 8, "fusion_kernel": 5}
TINY = {"depth": 14, "stem_channels": 16, "width": 16, "res2_channels": 32}
TINY_SLOWFAST = TINY | {"beta_inv": 2}


def on_meta(build, *args, **kwargs):
    with torch.device("meta"):
        return build(*args, **kwargs)


def conv_flops(backbone: nn.Module, frames: int, height: int, width: int) -> int:
    """Multiply-adds of all convolutions for one clip."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(torch.empty(1, 3, frames, height, width, device="meta"))
    counts = {str(operator): n for operator, n in counter.get_flop_counts()["Global"].items()}
    return counts["aten.convolution"] // 2


def shake_norms(model: nn.Module) -> nn.Module:
    """Weights of norms away from zero, so that everything takes part."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm3d, nn.GroupNorm)):
            nn.init.normal_(module.weight, 1, 0.1)
    return model


# Totals with the classifier, facts of PySlowFast and pytorchvideo.
PARAMETERS = [
    (ResNet3D, {"arch": "c2d"}, 2048, 400, 24_327_632),
    (ResNet3D, {"arch": "i3d"}, 2048, 400, 28_043_472),
    (ResNet3D, {"arch": "slow"}, 2048, 400, 32_454_096),
    (ResNet3D, {"arch": "c2d", "blocks": FIVE_BLOCKS}, 2048, 400, 31_686_096),
    (ResNet3D, {"arch": "i3d", "blocks": FIVE_BLOCKS}, 2048, 400, 35_401_936),
    (ResNet3D, {"arch": "slow", "blocks": FIVE_BLOCKS}, 2048, 400, 39_812_560),
    (ResNet3D, {"arch": "slow", **DETECTION}, 2048, 80, 31_798_416),
    (SlowFast, FOUR_BY_16, 2304, 400, 34_480_216),
    (SlowFast, FOUR_BY_16 | {"blocks": FIVE_BLOCKS}, 2304, 400, 41_838_680),
    (SlowFast, {}, 2304, 400, 34_566_488),
    (SlowFast, DETECTION, 2304, 80, 33_828_888),
    (SlowFast, {"depth": 101, "fusion_kernel": 5}, 2304, 400, 62_826_968),
    (SlowFast, R101_50_50, 2304, 400, 53_774_808),
    (SlowFast, R101_50_50 | DETECTION | {"blocks": AVA_BLOCKS}, 2304, 80, 59_342_488),
]


@pytest.mark.parametrize(("build", "kwargs", "channels", "classes", "expected"), PARAMETERS)
def test_parameters(build, kwargs, channels, classes, expected):
    backbone = on_meta(build, **kwargs)
    assert sum(p.numel() for p in backbone.parameters()) + (channels + 1) * classes == expected


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_counts_the_layers(depth):
    """The stem, three of each residual block, the classifier."""
    backbone = on_meta(ResNet3D, depth=depth)
    assert 2 + 3 * sum(len(getattr(backbone, stage)) for stage in STAGES) == depth


GFLOPS = [
    (ResNet3D, {"arch": "c2d"}, (8, 256, 256), 2048 * 400, 25.5),
    (ResNet3D, {"arch": "i3d"}, (8, 256, 256), 2048 * 400, 37.1),
    (ResNet3D, {"arch": "slow"}, (4, 256, 256), 2048 * 400, 27.3),
    (ResNet3D, {"arch": "slow"}, (8, 256, 256), 2048 * 400, 54.5),
    (SlowFast, FOUR_BY_16, (32, 256, 256), 2304 * 400, 36.1),
    (SlowFast, {}, (32, 256, 256), 2304 * 400, 65.7),
    (SlowFast, {"depth": 101, "fusion_kernel": 5}, (32, 256, 256), 2304 * 400, 125.9),
    (SlowFast, DETECTION, (32, 256, 340), 2304 * 80, 132.1),
    (SlowFast, R101_50_50 | DETECTION, (32, 256, 456), 2304 * 80, 248.7),
]


@pytest.mark.parametrize(("build", "kwargs", "size", "head", "expected"), GFLOPS)
def test_flops(build, kwargs, size, head, expected):
    total = conv_flops(on_meta(build, **kwargs), *size) + head
    assert round(total / 1e9, 1) == expected


@pytest.mark.parametrize(("frames", "expected"), [(32, 146.6), (64, 296.3)])
def test_flops_of_the_non_local_models(frames, expected):
    """The published count forms theta^T phi, of 512 channels, which the block need not do."""
    backbone = on_meta(SlowFast, blocks=AVA_BLOCKS, **R101_50_50, **DETECTION)
    positions = frames // 4 * 16 * 16
    pairwise = 3 * 2 * positions * (positions // 8) * 512
    total = conv_flops(backbone, frames, 256, 256) + pairwise + 2304 * 80
    assert total / 1e9 == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("arch", ["c2d", "i3d", "slow", "fast"])
@pytest.mark.parametrize("detection", [False, True])
def test_shapes_of_resnet3d(arch, detection):
    backbone = on_meta(ResNet3D, arch=arch, out_features=STAGES, **(DETECTION if detection else {}))
    features = backbone(torch.empty(2, 3, 8, 64, 96, device="meta"))
    assert list(features) == list(STAGES) == list(backbone.output_shape())
    for name, shape in backbone.output_shape().items():
        expected = (2, shape.channels, 8 // shape.temporal_stride, 64 // shape.stride, 96 // shape.stride)
        assert features[name].shape == expected
    assert backbone.output_shape()["res5"].stride == (16 if detection else 32)
    assert backbone.output_shape()["res5"].temporal_stride == (2 if arch in ("c2d", "i3d") else 1)


@pytest.mark.parametrize(("alpha", "frames"), [(4, 32), (8, 32), (4, 64)])
def test_shapes_of_slowfast(alpha, frames):
    names = ["slow_res2", "fast_res4", "slow_res5", "fast_res5"]
    backbone = on_meta(SlowFast, alpha=alpha, out_features=names, **DETECTION)
    features = backbone(torch.empty(1, 3, frames, 64, 96, device="meta"))
    shapes = backbone.output_shape()
    assert set(features) == set(shapes) == set(names)
    for name, shape in shapes.items():
        steps = frames // shape.temporal_stride
        assert features[name].shape == (1, shape.channels, steps, 64 // shape.stride, 96 // shape.stride)
    assert [shapes[n].temporal_stride for n in names] == [alpha, 1, alpha, 1]
    assert [shapes[n].channels for n in names] == [256, 128, 2048, 256]


def test_any_size():
    """Neither side a multiple of the stride, and one step of the slow pathway."""
    backbone = SlowFast(**TINY_SLOWFAST, **DETECTION).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 4, 45, 37))
    assert features["slow_res5"].shape == (1, 256, 1, 3, 3)
    assert features["fast_res5"].shape == (1, 128, 4, 3, 3)


def test_slow_frames():
    assert slow_frames(32, 4) == [0, 4, 8, 13, 17, 22, 26, 31]
    assert slow_frames(32, 8) == [0, 10, 20, 31]
    assert slow_frames(32, 4, "nearest") == [0, 4, 8, 12, 16, 20, 24, 28]
    assert slow_frames(8, 8) == [0]
    for alpha in (2, 4, 8, 16):
        for frames in range(alpha, 129, alpha):
            assert (
                slow_frames(frames, alpha) == torch.linspace(0, frames - 1, frames // alpha).long().tolist()
            )


@pytest.mark.parametrize("rule", FRAME_RULES)
def test_slow_pathway_sees_only_its_frames(rule):
    backbone = shake_norms(SlowFast(frame_rule=rule, out_features=["slow_res2"], **TINY_SLOWFAST)).eval()
    for fuse in backbone.fuse.values():
        nn.init.zeros_(fuse.weight)
        nn.init.zeros_(fuse.norm.bias)
    clip = torch.randn(1, 3, 16, 32, 32, requires_grad=True)
    backbone(clip)["slow_res2"].sum().backward()
    seen = clip.grad.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist()
    assert seen == slow_frames(16, 4, rule)


@pytest.mark.parametrize(
    ("arch", "feature", "reach"),
    [("c2d", "res2", 0), ("slow", "res3", 0), ("slow", "res4", 1), ("fast", "res2", 3), ("i3d", "res2", 3)],
)
def test_temporal_reach(arch, feature, reach):
    """How many frames to either side a position sees, with one residual block per stage."""
    backbone = shake_norms(ResNet3D(arch=arch, out_features=[feature], **TINY)).eval()
    clip = torch.randn(1, 3, 9, 32, 32, requires_grad=True)
    backbone(clip)[feature][:, :, 4].sum().backward()
    seen = clip.grad.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist()
    assert seen == list(range(4 - reach, 5 + reach))


def test_temporal_kernels_of_deep_networks():
    def kernels(stage):
        return [block.conv1.kernel_size[0] for block in stage]

    slow = on_meta(ResNet3D, arch="slow", depth=101, temporal_blocks=(3, 4, 6, 3))
    assert kernels(slow.res2) + kernels(slow.res3) == [1] * 7
    assert kernels(slow.res4) == [3] * 6 + [1] * 17
    assert kernels(slow.res5) == [3] * 3
    i3d = on_meta(ResNet3D, arch="i3d")
    assert kernels(i3d.res4) == [3, 1, 3, 1, 3, 1]
    assert kernels(i3d.res5) == [1, 3, 1]


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", "LN"])
def test_a_residual_block_starts_as_its_shortcut(norm):
    block = ContextBottleneckBlock3d(64, 64, bottleneck_channels=64, temporal_kernel=3, norm=norm).eval()
    x = torch.randn(2, 64, 4, 5, 5)
    assert torch.equal(block(x), F.relu(x))


def test_a_frozen_norm_does_not_start_at_zero():
    block = ContextBottleneckBlock3d(64, 64, bottleneck_channels=64, temporal_kernel=3, norm="FrozenBN")
    x = torch.randn(2, 64, 4, 5, 5)
    assert not torch.allclose(block(x), F.relu(x), atol=1e-2)


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN", "GN", "LN"])
def test_gradients_reach_every_parameter(norm):
    blocks = [
        {"NAME": "NonLocal", "AT": {"res4": [0]}, "NORM": "" if norm == "FrozenBN" else "BN"},
        {"NAME": "GlobalContext", "AT": {"res3": [0]}, "POSITION": "after_conv3"},
    ]
    backbone = SlowFast(norm=norm, blocks=blocks, **TINY_SLOWFAST)
    for parameter in backbone.parameters():
        if not parameter.abs().max():  # starts at zero, and would keep back all that comes before it
            nn.init.normal_(parameter, std=0.5)
    features = backbone(torch.randn(2, 3, 8, 64, 64))
    sum(x.square().mean() for x in features.values()).backward()
    without = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().max()]
    # A bias before a norm (theta's too: softmax ignores what is the same for all keys) has no effect.
    assert [name for name in without if not name.endswith(".bias")] == []


def test_group_norm_in_thin_layers():
    """The fast pathway begins with 8 channels, which 32 groups do not divide."""
    backbone = on_meta(SlowFast, norm="GN")
    assert backbone.fast.stem.conv1.norm.num_groups == 4
    assert backbone.fast.res2[0].conv3.norm.num_groups == 16
    assert backbone.slow.res5[0].conv3.norm.num_groups == 32


def test_freeze():
    backbone = SlowFast(freeze_at=2, **TINY_SLOWFAST)
    trained = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"res3", "res4", "res5"}
    assert isinstance(backbone.fuse["res2"].norm, FrozenBatchNorm3d)
    assert isinstance(backbone.fuse["res3"].norm, nn.BatchNorm3d)
    assert isinstance(backbone.slow.stem.conv1.norm, FrozenBatchNorm3d)
    assert isinstance(backbone.slow.res3[0].conv1.norm, nn.BatchNorm3d)
    assert backbone.state_dict().keys() - SlowFast(**TINY_SLOWFAST).state_dict().keys() == set()
    assert all(p.requires_grad for p in on_meta(ResNet3D).parameters()), "nothing unless asked for"
    with pytest.raises(ValueError, match="FREEZE_AT=4 freezes"):
        ResNet3D(blocks=FIVE_BLOCKS, freeze_at=4)


@pytest.mark.parametrize(
    ("build", "kwargs", "message"),
    [
        (ResNet3D, {"arch": "c3d"}, "MODEL.VIDEO.ARCH 'c3d' .* did you mean .*c2d"),
        (ResNet3D, {"depth": 34}, "MODEL.RESNETS.DEPTH 34 .* known: 14, 26, 50"),
        (ResNet3D, {"out_features": ["slow_res5"]}, "OUT_FEATURES 'slow_res5' .* did you mean res5"),
        (SlowFast, {"out_features": ["res5"]}, "OUT_FEATURES 'res5' .* slow_res5"),
        (SlowFast, {"frame_rule": "stride"}, "MODEL.VIDEO.SLOW_FRAMES 'stride' .* linspace, nearest"),
        (ResNet3D, {"temporal_blocks": [3]}, r"MODEL.VIDEO.TEMPORAL_BLOCKS \[3\]"),
        (SlowFast, {"beta_inv": 7}, "MODEL.VIDEO.BETA_INV 7"),
        (SlowFast, {"blocks": [{"NAME": "NonLocal", "AT": {"res6": [0]}}]}, "there is no stage 'res6'"),
    ],
)
def test_errors(build, kwargs, message):
    with pytest.raises(ValueError, match=message):
        on_meta(build, **kwargs)


@pytest.mark.parametrize("frames", [2, 30])
def test_a_clip_that_does_not_fit_alpha(frames):
    with pytest.raises(ValueError, match=f"{frames} frames, which is no multiple of MODEL.VIDEO.ALPHA 4"):
        on_meta(SlowFast)(torch.empty(1, 3, frames, 32, 32, device="meta"))


@pytest.mark.parametrize("fusion_norm", [True, False])
def test_lateral_connections_may_be_bare_convolutions(fusion_norm):
    """Then, without a ReLU, the slow pathway sees negative numbers of the fast one."""
    model = SlowFast(depth=14, fusion_norm=fusion_norm).eval()
    seen = []
    model.slow.res2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 64:]))
    with torch.no_grad():
        model(torch.randn(1, 3, 8, 32, 32))
    assert (seen[0].min() < 0) == (not fusion_norm)
    assert any("fuse" in name and "norm" in name for name in model.state_dict()) == fusion_norm


@pytest.mark.parametrize(
    ("kernel", "steps"),
    [
        ((1, 3, 3), {}),
        ((1, 3, 3), {"stride": 2, "dilation": 2}),
        ((1, 1, 1), {"stride": 2}),
        ((3, 1, 1), {}),
        ((5, 1, 1), {"temporal_stride": 4}),
        ((3, 1, 1), {"stride": 2}),
        ((1, 1, 1), {"temporal_stride": 2}),
        ((5, 7, 7), {"stride": 2}),
    ],
)
def test_channels_last_clips(kernel, steps):
    """The same convolution, gradients included, and the map stays in that format."""
    torch.manual_seed(0)
    conv = Conv3d(4, 6, kernel, norm="", **steps)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        torch.manual_seed(1)
        clip = torch.randn(2, 4, 8, 12, 10).contiguous(memory_format=memory_format).requires_grad_()
        out = conv.to(memory_format=memory_format)(clip)
        assert out.is_contiguous(memory_format=memory_format)
        results.append((out, *torch.autograd.grad(out.square().sum(), (clip, conv.weight))))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_pathways_of_one_clip_join_in_their_format():
    """What PyTorch makes of maps whose strides leave the format open is not channels-last."""
    last = {"memory_format": torch.channels_last_3d}
    clip = torch.randn(1, 4, 8, 12, 10).contiguous(**last)
    convs = [Conv3d(4, 6, kernel, norm="").to(**last) for kernel in ((1, 3, 3), (3, 1, 1), (1, 1, 1))]
    assert torch.cat([conv(clip) for conv in convs], dim=1).is_contiguous(**last)


@pytest.mark.parametrize("freezing", [False, True])
def test_compiled_clips_are_planes_unless_weights_are_compiled_in(freezing):
    """With its weights a clip stays whole: views would hide what oneDNN computes in one go."""
    operators = []

    def backend(graph, _):
        operators.extend({node.target for node in graph.graph.nodes} & {torch.conv2d, torch.conv3d})
        return graph

    conv = Conv3d(4, 6, (1, 3, 3), norm="").to(memory_format=torch.channels_last_3d)
    clip = torch.randn(1, 4, 8, 12, 10).contiguous(memory_format=torch.channels_last_3d)
    with torch._inductor.config.patch(freezing=freezing), torch.no_grad():
        got = torch.compile(conv, backend=backend, fullgraph=True)(clip)
    assert operators == [torch.conv3d if freezing else torch.conv2d]
    torch.testing.assert_close(got, conv(clip))
