"""MViTv2: Detectron2's network, names included, both ways to widen the channels."""

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from deterministic import compare, read_keys
from golden_network import golden_network
from torch import nn

from nlnet_d2 import add_nlnet_config
from nlnet_d2.backbones.mvit import MViT, block_shapes
from nlnet_d2.backbones.padding import SquarePadFPN
from nlnet_d2.layers.attention import IMPLEMENTATIONS, use_attention

TINY = {"img_size": 96, "embed_dim": 32, "depths": (2, 2, 2, 1), "window_size": 12}
SCALES = ["scale2", "scale3", "scale4", "scale5"]
OUTPUTS = ["p2", "p3", "p4", "p5", "p6"]


def tiny(**changes) -> MViT:
    torch.manual_seed(0)
    return MViT(**TINY | changes)


def with_fpn(net: MViT, square_pad: int = 0) -> SquarePadFPN:
    top = LastLevelMaxPool()
    return SquarePadFPN(net, SCALES, out_channels=32, top_block=top, square_pad=square_pad)


@pytest.fixture(scope="module")
def golden():
    return golden_network("mvitv2_tiny", with_fpn(tiny()))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_parity_with_detectron2(golden, name):
    model, image = golden
    with torch.no_grad(), use_attention(name):
        maps = {f"bottom_up.{k}": v for k, v in model.bottom_up(image).items()} | model(image)
    for output in [f"bottom_up.{s}" for s in SCALES] + OUTPUTS:
        compare("mvitv2_tiny", output, maps[output], tol=1e-4)


@pytest.mark.parametrize(
    "depths, parameters",
    [((1, 2, 5, 2), 23_405_664), ((1, 2, 11, 2), 34_102_560), ((2, 3, 16, 3), 50_705_088)],
    ids="TSB",
)
def test_published_sizes(depths, parameters):
    with torch.device("meta"):
        net = MViT(depths=depths)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_large_from_imagenet_widens_in_the_perceptron():
    """The public MViTv2-L classifier has 217,992,952 parameters, its final norm and head included."""
    with torch.device("meta"):
        net = MViT(embed_dim=144, num_heads=2, depths=(2, 6, 36, 4), expand_attn=False)
    trunk = sum(p.numel() for n, p in net.named_parameters() if not n.startswith("scale"))
    assert trunk + 2 * 1152 + 1152 * 1000 + 1000 == 217_992_952


@pytest.mark.parametrize("expand_attn", [True, False])
def test_channels_grow_where_said(expand_attn):
    net = tiny(expand_attn=expand_attn)
    first, last = net.blocks[2], net.blocks[1]  # of the second stage, of the first
    assert (first.proj is not None) == expand_attn and (last.proj is not None) != expand_attn
    assert last.mlp.fc2.out_features == (32 if expand_attn else 64)
    assert first.attn.qkv.in_features == (32 if expand_attn else 64)
    channels = [s.channels for s in net.output_shape().values()]
    assert channels == ([32, 64, 128, 256] if expand_attn else [64, 128, 256, 256])
    maps = net(torch.randn(1, 3, 64, 96))
    assert [maps[s].shape[1] for s in SCALES] == channels


def test_schedule_of_the_blocks():
    """Table 1 of the paper and section 4: MViTv2-T at 224 pixels."""
    shapes = block_shapes(224, 96, (1, 2, 5, 2), 1, 56, 4, expand_attn=True)
    assert [s.window for s in shapes] == [56, 56, 0, 28, 14, 14, 14, 0, 14, 0]
    assert [s.size for s in shapes] == [56, 56, 28, 28, 14, 14, 14, 14, 14, 7]
    assert [s.stride_q for s in shapes] == [1, 2, 1, 2, 1, 1, 1, 1, 2, 1]
    assert [s.stride_kv for s in shapes] == [4, 2, 4, 1, 1, 1, 1, 2, 1, 1]
    assert [s.heads for s in shapes] == [1, 2, 2, 4, 4, 4, 4, 4, 8, 8]
    assert [s.attn_dim for s in shapes] == [96, 192, 192] + [384] * 5 + [768] * 2


@pytest.mark.parametrize("hw", [(64, 160), (50, 77), (33, 1), (7, 9)])
def test_any_size(hw):
    """The maps cover the image, whatever the strides and windows do not divide."""
    net = tiny().eval()
    with torch.no_grad():
        maps = net(torch.randn(2, 3, *hw))
    for name, spec in net.output_shape().items():
        expected = (2, spec.channels, -(-hw[0] // spec.stride), -(-hw[1] // spec.stride))
        assert maps[name].shape == expected and maps[name].isfinite().all(), name


def test_one_window_is_the_whole_map(golden):
    """A map that one window covers is attended to as a whole."""
    net = tiny(window_size=24).eval()
    net.load_state_dict({k[10:]: v for k, v in golden[0].state_dict().items() if k.startswith("bottom_up.")})
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        windowed = net(image)
        for block in net.blocks:
            object.__setattr__(block.attn.shape, "window", 0)
        for name, expected in net(image).items():
            torch.testing.assert_close(windowed[name], expected, rtol=1e-4, atol=1e-4)


def test_square_pad():
    model = with_fpn(tiny(), square_pad=96)
    assert model.size_divisibility == 96 and with_fpn(tiny()).size_divisibility == 32
    assert model(torch.randn(1, 3, 96, 96))["p2"].shape[2:] == (24, 24)
    with pytest.raises(ValueError, match="larger than MODEL.FPN.SQUARE_PAD 96: the batch is 192 x 96"):
        model(torch.randn(1, 3, 192, 96))


@pytest.mark.parametrize("expand_attn", [True, False])
def test_all_parameters_learn(expand_attn):
    net = tiny(expand_attn=expand_attn).train()
    for block in net.blocks:  # at zero, the positions get no gradient from one another
        nn.init.normal_(block.attn.rel_pos_h), nn.init.normal_(block.attn.rel_pos_w)
    sum(v.square().sum() for v in net(torch.randn(2, 3, 64, 96)).values()).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_drop_path_grows_with_depth():
    rates = [b.drop_path.p for b in tiny(drop_path_rate=0.3).blocks]
    assert rates == pytest.approx([0.05 * i for i in range(7)])


@pytest.mark.parametrize(
    ("backend", "sizes"),
    [
        ("aot_eager", 1),
        pytest.param("aot_eager", 3, marks=pytest.mark.slow),
        pytest.param("inductor", 1, marks=pytest.mark.slow),
    ],
)
def test_compiled(backend, sizes):
    """Whole, and from the second size on for all sizes."""
    torch._dynamo.reset()  # or the sizes of other tests would make even the first one variable
    net = tiny(depths=(1, 1, 1, 1)).eval()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    for hw in [(64, 96), (96, 64), (72, 200)][:sizes]:
        image = torch.randn(1, 3, *hw)
        with torch.no_grad():
            expected, got = net(image), compiled(image)
        for name in SCALES:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


def test_hooks_and_adapters_see_queries_keys_and_values():
    """Where their layer is watched or replaced, parts of its weight do not stand for it."""
    net, image = tiny(drop_path_rate=0.0).eval(), torch.randn(1, 3, 64, 96)
    expected, qkv, seen = net(image)["scale5"], net.blocks[1].attn.qkv, []
    handle = qkv.register_forward_hook(lambda layer, inputs, out: seen.append(out.shape))
    torch.testing.assert_close(net(image)["scale5"], expected)
    assert seen == [(1, 16, 24, 96)]
    handle.remove()
    net.blocks[1].attn.qkv = nn.Sequential(qkv, nn.Dropout(1.0))  # nothing passes
    assert not torch.allclose(net(image)["scale5"], expected)


def test_lazy_and_yaml_build_the_same():
    """L(MViT)(...), plain Python and YAML in another project."""
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_mvit_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    mvit = cfg.MODEL.MVIT
    mvit.IMG_SIZE, mvit.EMBED_DIM, mvit.DEPTHS, mvit.WINDOW_SIZE = 96, 32, [2, 2, 2, 1], 12
    lazy = L(SquarePadFPN)(
        bottom_up=L(MViT)(**TINY), in_features=SCALES, out_channels=32, top_block=L(LastLevelMaxPool)()
    )
    shapes = [
        {name: list(v.shape) for name, v in model.state_dict().items()}
        for model in (with_fpn(tiny()), instantiate(lazy), build_backbone(cfg, ShapeSpec(channels=3)))
    ]
    assert shapes[0] == shapes[1] == shapes[2] == read_keys("mvitv2_tiny")["keys"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"window_size": 48}, "windows of 48 are larger than the 24 x 24 map of stage 2"),
        ({"num_heads": 5}, "EMBED_DIM 32 is not a multiple of NUM_HEADS 5"),
        ({"window_size": 10}, "stage 2 pools queries by 1, keys and values by 4, which does not divide"),
        ({"window_size": 9, "kv_stride": 1}, "stage 3 pools queries by 2, .* by 1, which does not divide"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
