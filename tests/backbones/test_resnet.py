"""The context ResNet: Detectron2's own network, names included, with context blocks at their places."""

import re

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from deterministic import compare, golden_state_dict, make_input, make_tensor, read_keys

from nlnet_d2 import add_nlnet_config
from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.blocks import BLOCKS
from nlnet_d2.layers.norm import get_norm

IMAGE = ShapeSpec(channels=3)
NL = {"NAME": "NonLocal", "AT": {"res4": [-2]}}
VARIANTS = {
    "R18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
    "R34 GN": {"DEPTH": 34, "RES2_OUT_CHANNELS": 64, "NORM": "GN"},
    "R50": {"DEPTH": 50},
    "R50 torchvision": {"DEPTH": 50, "STRIDE_IN_1X1": False, "NORM": "SyncBN"},
    "R50 dilated": {"DEPTH": 50, "RES5_DILATION": 2},
    "X101": {"DEPTH": 101, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8, "STRIDE_IN_1X1": False},
    "R50 deformable": {"DEPTH": 50, "DEFORM_ON_PER_STAGE": [False, True, True, True]},
    "R50 modulated": {
        "DEPTH": 50,
        "DEFORM_ON_PER_STAGE": [False, False, True, True],
        "DEFORM_MODULATED": True,
    },
}


def config(**resnets):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in resnets.items():
        setattr(cfg.MODEL.RESNETS, key, value)
    return cfg


def fill(model):
    """Deterministic weights; small offsets, so that the deformable convolutions sample between pixels."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(make_tensor(name, value.shape))
    return model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_blocks_it_is_the_stock_network(variant):
    cfg = config(**VARIANTS[variant])
    stock, ours = fill(build_resnet_backbone(cfg, IMAGE)), ContextResNet(cfg, IMAGE).eval()
    assert list(ours.state_dict()) == list(stock.state_dict())
    ours.load_state_dict(stock.state_dict())
    assert ours.output_shape() == stock.output_shape()
    if variant == "R50 modulated":
        return  # stock has no such operator on a CPU; see test_modulated_deformable_convolution
    x = torch.randn(1, 3, 75, 98, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, out = stock(x), ours(x)
    for stage, features in expected.items():
        torch.testing.assert_close(out[stage], features)
    frozen = {name for name, p in stock.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in ours.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("norm", ["", "GN"])
def test_without_blocks_it_is_the_stock_fpn(norm):
    cfg = config()
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.NORM = cfg.MODEL.RESNETS.OUT_FEATURES, norm
    stock = fill(build_resnet_fpn_backbone(cfg, IMAGE))
    cfg.MODEL.BACKBONE.NAME = "build_context_resnet_fpn_backbone"
    ours = build_backbone(cfg).eval()
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, features in stock(x).items():
            torch.testing.assert_close(ours(x)[name], features)


@pytest.mark.parametrize("variant", ["R18", "R50", "X101", "R50 deformable"])
@pytest.mark.parametrize("norm", ["GN", "BN", "SyncBN", "FrozenBN", "LN"])
def test_every_norm_after_every_convolution_of_backbone_and_pyramid(norm, variant):
    cfg = config(**VARIANTS[variant] | {"NORM": norm})
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_context_resnet_fpn_backbone", 0
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.NORM = cfg.MODEL.RESNETS.OUT_FEATURES, norm
    with torch.device("meta"):
        modules = dict(build_backbone(cfg).named_modules())
    convs = [m for name, m in modules.items() if hasattr(m, "norm") and not name.endswith("conv2_offset")]
    shortcuts = 3 if variant == "R18" else 4
    per_block, blocks = {"R18": (2, 8), "X101": (3, 33)}.get(variant, (3, 16))
    assert len(convs) == 1 + per_block * blocks + shortcuts + 8
    kind = type(get_norm(norm, 32))
    assert all(type(conv.norm) is kind and conv.bias is None for conv in convs)


def test_fpn_on_fewer_stages():
    cfg = config(OUT_FEATURES=["res2", "res3"])
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3"]
    cfg.MODEL.BACKBONE.NAME = "build_context_resnet_fpn_backbone"
    backbone = build_backbone(cfg)
    assert not hasattr(backbone.bottom_up, "res4")
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(m.shape[2:]) for name, m in maps.items()} == {
        "p2": (16, 24),
        "p3": (8, 12),
        "p4": (4, 6),
    }
    assert {name: s.stride for name, s in backbone.output_shape().items()} == {"p2": 4, "p3": 8, "p4": 16}


def test_blocks_add_keys_and_shift_none():
    cfg = config()
    plain = ContextResNet(cfg, IMAGE).state_dict()
    cfg.MODEL.CONTEXT.BLOCKS = [
        NL,
        {"NAME": "GlobalContext", "AT": {"res5": "all"}, "POSITION": "after_conv3"},
    ]
    keys = ContextResNet(cfg, IMAGE).state_dict()
    assert set(plain) <= set(keys)
    added = set(keys) - set(plain)
    assert {re.match(r"res\d\.\d+\.\w+\.\d", key)[0] for key in added} == {
        "res4.4.after_add.0",
        "res5.0.after_conv3.0",
        "res5.1.after_conv3.0",
        "res5.2.after_conv3.0",
    }
    assert "res4.4.after_add.0.theta.weight" in added


@pytest.mark.parametrize("name", sorted(name for name, _ in BLOCKS))
@pytest.mark.parametrize(
    ("depth", "position", "channels"),
    [
        (18, "after_conv1", 256),
        (18, "after_conv2", 256),
        (18, "after_add", 256),
        (50, "after_conv1", 256),
        (50, "after_conv2", 256),
        (50, "after_conv3", 1024),
        (50, "after_add", 1024),
    ],
)
def test_every_block_at_every_position(name, depth, position, channels):
    spec = {"NAME": name, "AT": {"res4": [0]}, "POSITION": position}
    model = ContextResNet(depth=depth, norm="GN", blocks=[spec], out_features=["res4"])
    seen = []
    (block,) = getattr(model.res4[0], position)
    block.register_forward_hook(lambda module, args, out: seen.append((args[0].shape[1], out.shape[1])))
    model(torch.randn(1, 3, 64, 64))["res4"].square().mean().backward()
    assert seen == [(channels, channels)]
    assert all(p.grad is not None for p in block.parameters())


class Recorder(torch.nn.Module):
    """Stands in for a context block: adds a constant and notes what it was given."""

    def __init__(self, number, notes):
        super().__init__()
        self.number, self.notes = number, notes

    def forward(self, x):
        self.notes.append((self.number, x.clone()))
        return x + self.number


@pytest.mark.parametrize("position", ["after_conv1", "after_conv2", "after_conv3", "after_add"])
def test_positions_mean_what_they_say(position):
    """After the ReLU of conv1 and conv2, before the addition after conv3, after the last ReLU otherwise."""
    spec = {"NAME": "SimplifiedNonLocal", "AT": {"res2": [1]}, "POSITION": position}
    model = fill(ContextResNet(norm="FrozenBN", blocks=[spec]))
    notes, block = [], model.res2[1]
    setattr(block, position, Recorder(1.0, notes))
    x = torch.randn(2, 256, 5, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = block(x)
        add = {position: 1.0}
        h = block.conv1(x).relu() + add.get("after_conv1", 0)
        h = block.conv2(h).relu() + add.get("after_conv2", 0)
        h = block.conv3(h) + add.get("after_conv3", 0)
        expected = (h + x).relu() + add.get("after_add", 0)
    torch.testing.assert_close(out, expected)
    assert (notes[0][1].min() >= 0) == (position != "after_conv3")


def test_two_blocks_at_one_place_run_in_order():
    specs = [NL, {"NAME": "SqueezeExcitation", "AT": {"res4": [4]}}]
    model = ContextResNet(blocks=specs)
    names = [type(block).__name__ for block in model.res4[4].after_add]
    assert names == ["NonLocal", "SqueezeExcitation"]
    names = [type(b).__name__ for b in ContextResNet(blocks=specs[::-1]).res4[4].after_add]
    assert names == ["SqueezeExcitation", "NonLocal"]


def test_identity_at_initialisation():
    specs = [NL, {"NAME": "GlobalContext", "AT": {"res3": "all", "res4": "all", "res5": "all"}}]
    plain, model = fill(ContextResNet()), ContextResNet(blocks=specs).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for stage, features in plain(x).items():
            assert torch.equal(model(x)[stage], features)


def test_parity_with_gcnet_backbone():
    """GCNet's ResNet-50 with r16 in c3-c5: all outputs, from its own weights."""
    golden = read_keys("gcnet_r50_r16_c3-c5")
    spec = {"NAME": "GlobalContext", "AT": dict.fromkeys(("res3", "res4", "res5"), "all")}
    model = ContextResNet(
        norm="BN", stride_in_1x1=False, blocks=[{**spec, "POSITION": "after_conv3", "REDUCTION": 16}]
    ).eval()
    assert sum(p.numel() for p in model.parameters()) == golden["params"] == 26_029_773
    state = {}
    for name, value in golden_state_dict(golden).items():
        name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
        name = re.sub(r"\.downsample\.(\d)", lambda m: ".shortcut" + (".norm" if m[1] == "1" else ""), name)
        name = re.sub(r"(^|\.)bn(\d)\.", r"\1conv\2.norm.", name).replace("context_block", "after_conv3.0")
        state[name if name.startswith("res") else f"stem.{name}"] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    seen = {}
    for path in ("res3.0.after_conv3", "res3.0", "res4.5", "res5.2.after_conv3"):
        model.get_submodule(path).register_forward_hook(
            lambda module, args, out, path=path: seen.update({path: out.clone()})  # later added to in place
        )
    with torch.no_grad():
        out = model(make_input(golden["input"]["shape"]))
    for i, features in enumerate(out.values()):
        compare("gcnet_r50_r16_c3-c5", f"out{i}", features, tol=1e-4)
    compare("gcnet_r50_r16_c3-c5", "layer2.0.context_block", seen["res3.0.after_conv3"], tol=1e-4)
    compare("gcnet_r50_r16_c3-c5", "layer2.0", seen["res3.0"], tol=1e-4)
    compare("gcnet_r50_r16_c3-c5", "layer3.5", seen["res4.5"], tol=1e-4)
    compare("gcnet_r50_r16_c3-c5", "layer4.2.context_block", seen["res5.2.after_conv3"], tol=1e-4)


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolution_trains_on_a_cpu(modulated):
    model = ContextResNet(
        norm="GN", deform_on_per_stage=[False, False, False, True], deform_modulated=modulated
    )
    model(torch.randn(1, 3, 64, 64))["res5"].square().mean().backward()
    assert model.res5[0].conv2_offset.weight.grad.abs().max() > 0


def test_modulated_deformable_convolution():
    """With offsets of zero, it is an ordinary convolution times the mask, sigmoid(0) = 1/2."""
    model = ContextResNet(deform_on_per_stage=[False, False, False, True], deform_modulated=True)
    block = model.res5[1].eval()
    x = torch.randn(1, 512, 5, 6)
    with torch.no_grad():
        expected = torch.nn.functional.conv2d(x, block.conv2.weight, padding=1) / 2
        torch.testing.assert_close(block._convolve("conv2", x), block.conv2.norm(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "MODEL.RESNETS.DEPTH 20 is unknown; choose one of"),
        ({"depth": 18, "num_groups": 32}, "R18 has no bottlenecks"),
        ({"depth": 34, "res2_channels": 256}, "RES2_OUT_CHANNELS 256, its default, is for bottlenecks"),
        ({"depth": 34, "deform_on_per_stage": [False, True, True, True]}, "R34 has no bottlenecks"),
        ({"depth": 18, "blocks": [{**NL, "POSITION": "after_conv3"}]}, "basic residual block has no conv3"),
        ({"blocks": [{**NL, "AT": {"res4": [6]}}]}, "res4 has 6 places"),
        ({"blocks": [{**NL, "AT": {"res1": [0]}}]}, "there is no stage 'res1'"),
        ({"blocks": [NL], "freeze_at": 4}, "Set FREEZE_AT to 3 or less"),
        (
            {"blocks": [{**NL, "REDUCTION": 2048}]},
            "on 1024 channels: REDUCTION 2048 leaves no channels",
        ),
        ({"blocks": [{**NL, "REDUCTION": "1/2"}]}, "MODEL.CONTEXT.BLOCKS: NonLocal on 1024 channels"),
        ({"norm": "GN", "width_per_group": 8}, "GN has 32 groups, which do not divide 8 channels"),
        ({"norm": "gn"}, "NORM: 'gn' is unknown; choose one of BN, "),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        ContextResNet(**options)


@pytest.mark.parametrize("name", ["build_context_resnet_fpn_backbone", "build_resnet_v2_fpn_backbone"])
@pytest.mark.parametrize("in_features", [[], ["res1", "res2"]])
def test_a_pyramid_on_maps_that_are_not_there(name, in_features):
    """Detectron2's default is an empty list."""
    cfg = config(NORM="GN")
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.IN_FEATURES = name, in_features
    with pytest.raises(
        ValueError, match=r"MODEL.FPN.IN_FEATURES \[.*\] does not .*MODEL.RESNETS.OUT_FEATURES"
    ):
        build_backbone(cfg)


def test_gn_that_does_not_divide_the_fpn_is_named():
    cfg = config()
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.NORM = cfg.MODEL.RESNETS.OUT_FEATURES, "GN"
    cfg.MODEL.FPN.OUT_CHANNELS = 100
    cfg.MODEL.BACKBONE.NAME = "build_context_resnet_fpn_backbone"
    with pytest.raises(ValueError, match="GN has 32 groups, which do not divide 100 channels"):
        build_backbone(cfg)


@pytest.mark.parametrize(
    ("options", "params"),
    [
        ({"depth": 50}, 25_557_032 - 2_049_000),
        ({"depth": 101}, 44_549_160 - 2_049_000),
        ({"depth": 50, "num_groups": 32, "width_per_group": 4}, 25_028_904 - 2_049_000),
        ({"depth": 101, "num_groups": 32, "width_per_group": 8}, 88_791_336 - 2_049_000),
        ({"depth": 101, "num_groups": 64, "width_per_group": 4}, 83_455_272 - 2_049_000),
    ],
)
def test_parameter_counts_are_torchvisions_without_the_classifier(options, params):
    with torch.device("meta"):
        model = ContextResNet(norm="BN", **options)
    assert sum(p.numel() for p in model.parameters()) == params
