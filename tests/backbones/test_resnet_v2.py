"""BiT's pre-activation ResNet, against timm's."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from deterministic import compare, golden_state_dict, make_input, make_tensor, read_keys
from torch.nn import functional as F

from nlnet_d2 import add_nlnet_config
from nlnet_d2.backbones.resnet_v2 import ResNetV2
from nlnet_d2.checkpoint import load_weights
from nlnet_d2.layers.standardized_conv import StandardizedConv2d

GOLDEN = "resnetv2_50x1_bit"
CLASSES = 1000
PUBLISHED = {  # parameters with a classifier of 1000 classes
    (50, 1): 25_549_352,
    (101, 1): 44_541_480,
    (50, 3): 217_319_080,
    (101, 3): 387_934_888,
    (152, 2): 236_335_208,
    (152, 4): 936_533_224,
}


def build(depth=50, width=1, **options):
    widths = {"stem_channels": 64 * width, "width_per_group": 64 * width, "res2_channels": 256 * width}
    return ResNetV2(depth=depth, **widths, **options)


@pytest.fixture(scope="module")
def parity():
    """timm's weights in our network: the network, and its maps and those of its stem."""
    case, model = read_keys(GOLDEN), build().eval()
    load_weights(model, golden_state_dict(case))
    seen = {}
    model.stem.register_forward_hook(lambda module, args, out: seen.update(stem=out))
    model.res5[2].register_forward_hook(lambda module, args, out: seen.update({"stages.3": out.clone()}))
    with torch.no_grad():
        maps = model(make_input(case["input"]["shape"]))
    return model, seen | {f"stages.{i}": maps[f"res{i + 2}"] for i in range(3)} | {"out": maps["res5"]}


@pytest.mark.parametrize("name", ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "out"])
def test_parity_with_timm(parity, name):
    compare(GOLDEN, name, parity[1][name])


@pytest.mark.parametrize(("depth", "width"), PUBLISHED)
def test_published_parameters(depth, width):
    with torch.device("meta"):
        model = build(depth, width)
    classifier = 2048 * width * CLASSES + CLASSES
    assert sum(p.numel() for p in model.parameters()) + classifier == PUBLISHED[depth, width]
    assert model.output_shape()["res5"].channels == 2048 * width


def test_kernels_are_standardized():
    """The formula of arXiv 1903.10520, and what follows: scale and mean of a kernel do not matter."""
    conv = StandardizedConv2d(4, 6, 3, padding=1, bias=False)
    weight, x = make_tensor("conv.weight", (6, 4, 3, 3)), make_tensor("x", (2, 4, 7, 8))
    var, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
    expected = F.conv2d(x, (weight - mean) / torch.sqrt(var + 1e-10), padding=1)
    with torch.no_grad():
        for kernels in (weight, 7 * weight - 3):
            conv.weight.copy_(kernels)
            torch.testing.assert_close(conv(x), expected)
        conv.fold()
        conv.fold()
        torch.testing.assert_close(conv(x), expected)
        torch.testing.assert_close(conv.weight.var(dim=(1, 2, 3), correction=0), torch.ones(6))


def test_gradients_of_standardized_kernels():
    """Mean and variance are functions of the kernel too."""
    conv = StandardizedConv2d(4, 6, 3, padding=1, bias=False).double()
    conv.weight.data = 3 * make_tensor("conv.weight", (6, 4, 3, 3)).double() + 1
    weight, x = conv.weight.detach().clone().requires_grad_(), make_tensor("x.weight", (2, 4, 7, 8)).double()
    var, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
    F.conv2d(x, (weight - mean) / torch.sqrt(var + 1e-10), padding=1).sin().sum().backward()
    conv(x).sin().sum().backward()
    torch.testing.assert_close(conv.weight.grad, weight.grad)


class Recorder(torch.nn.Module):
    """Stands in for a context block: adds a constant and notes the least value that it was given."""

    def forward(self, x):
        self.least, self.channels = x.min(), x.shape[1]
        return x + 1


@pytest.mark.parametrize("position", ["after_conv1", "after_conv2", "after_conv3", "after_add"])
@pytest.mark.parametrize("index", [0, 1])
def test_positions_mean_what_they_say(position, index):
    """Norm and ReLU before each convolution; a context block after conv1 and conv2 sees what follows them."""
    block = build(blocks=[{"NAME": "SqueezeExcitation", "AT": {"res3": "all"}, "POSITION": position}]).res3[
        index
    ]
    recorder = Recorder()
    setattr(block, position, recorder)
    x = make_tensor("x", (2, block.in_channels, 6, 8))
    with torch.no_grad():
        out = block(x)
        add = {position: 1.0}
        first = block.norm1(x).relu()
        h = block.norm2(block.conv1(first)).relu() + add.get("after_conv1", 0)
        h = block.norm3(block.conv2(h)).relu() + add.get("after_conv2", 0)
        h = block.conv3(h) + add.get("after_conv3", 0)
        expected = h + (block.shortcut(first) if index == 0 else x) + add.get("after_add", 0)
    torch.testing.assert_close(out, expected)
    inside = position in ("after_conv1", "after_conv2")
    assert (recorder.least >= 0) == inside and recorder.channels == (128 if inside else 512)


def test_blocks_start_as_the_identity_and_shift_no_names(parity):
    plain, x = parity[0], torch.randn(1, 3, 64, 64)
    model = build(blocks=[{"NAME": "NonLocal", "AT": {"res4": [-2]}}]).eval()
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and missing and all(name.startswith("res4.4.after_add.0.") for name in missing)
    with torch.no_grad():
        for expected, got in zip(plain(x).values(), model(x).values(), strict=True):
            assert torch.equal(got, expected)


def config(**resnets):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_v2_fpn_backbone"
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.OUT_FEATURES = "GN", ["res2", "res3", "res4", "res5"]
    for key, value in resnets.items():
        setattr(cfg.MODEL.RESNETS, key, value)
    cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES
    return cfg


def test_pyramid_trains():
    backbone = build_backbone(config())  # FREEZE_AT 2: stem and res2
    maps = backbone(torch.randn(1, 3, 64, 96))
    sizes = {"p2": (16, 24), "p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2)}
    assert {name: tuple(m.shape[2:]) for name, m in maps.items()} == sizes
    sum(m.square().mean() for m in maps.values()).backward()
    without = {name for name, p in backbone.bottom_up.named_parameters() if p.grad is None}
    assert without == {n for n in backbone.bottom_up.state_dict() if n.startswith(("stem.", "res2."))}


def test_stages_that_nobody_reads_are_left_out():
    bottom_up = build_backbone(config(OUT_FEATURES=["res3", "res4"])).bottom_up
    assert {name.split(".")[0] for name in bottom_up.state_dict()} == {"stem", "res2", "res3", "res4"}


def test_freezing_everything_freezes_the_last_norm():
    assert not any(p.requires_grad for p in build(freeze_at=5).parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DEPTH": 34}, "DEPTH 34: BiT has depths 50, 101 and 152"),
        ({"NORM": ""}, "NORM is empty"),
        ({"RES5_DILATION": 2}, "no grouped, dilated or deformable convolutions"),
        ({"DEFORM_ON_PER_STAGE": [False, True, True, True]}, "no grouped, dilated or deformable"),
        ({"WIDTH_PER_GROUP": 40}, "32 groups, which do not divide 40 channels"),
    ],
)
def test_errors_name_the_key(change, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(config(**change))
