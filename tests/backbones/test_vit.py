"""Plain ViT, its pyramids: Detectron2's network, names included, for images of any size."""

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import ImageList
from deterministic import compare, read_keys
from golden_network import golden_network
from torch import nn

from nlnet_d2 import add_nlnet_config
from nlnet_d2.backbones.vit import ViT
from nlnet_d2.backbones.vit_pyramid import SimpleFeaturePyramid, rescale
from nlnet_d2.layers.attention import IMPLEMENTATIONS, use_attention

TINY = {
    "img_size": 128,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
    "window_size": 4,
    "global_block_indexes": [1, 3],
    "pretrain_img_size": 64,
}
SIZES = {"b": (768, 12, 12), "l": (1024, 24, 16), "h": (1280, 32, 16)}
OUTPUTS = ["p2", "p3", "p4", "p5", "p6"]


def tiny(square_pad=128, **changes) -> SimpleFeaturePyramid:
    torch.manual_seed(0)
    top = LastLevelMaxPool()
    return SimpleFeaturePyramid(ViT(**TINY | changes), out_channels=64, top_block=top, square_pad=square_pad)


def randomize(model: nn.Module) -> nn.Module:
    """Weights at which every part of the network shows in the output (positions start at zero)."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name or value.ndim == 1:
            value.data.add_(torch.randn(value.shape, generator=generator), alpha=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def golden():
    return golden_network("vitdet_tiny", tiny())


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_parity_with_detectron2(golden, name):
    model, image = golden
    maps = {}
    watched = ["net.patch_embed", "net.blocks.0", "net.blocks.1.attn", "net.blocks.1", "net.blocks.3"]
    hooks = [
        model.get_submodule(w).register_forward_hook(lambda _, __, out, w=w: maps.update({w: out}))
        for w in watched
    ]
    with torch.no_grad(), use_attention(name):
        maps |= model(image)
    for hook in hooks:
        hook.remove()
    for output in watched + OUTPUTS:
        compare("vitdet_tiny", output, maps[output], tol=1e-4)


@pytest.mark.parametrize(
    "size, backbone, pyramid",
    [("b", 85_889_024, 91_449_024), ("l", 303_432_704, 311_237_888), ("h", 631_116_800, 641_756_992)],
)
def test_published_sizes(size, backbone, pyramid):
    dim, depth, heads = SIZES[size]
    blocks = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    with torch.device("meta"):
        net = ViT(embed_dim=dim, depth=depth, num_heads=heads, global_block_indexes=blocks)
        whole = SimpleFeaturePyramid(net)
    assert sum(p.numel() for p in net.parameters()) == backbone
    assert sum(p.numel() for p in whole.parameters()) == pyramid


@pytest.mark.parametrize("hw", [(64, 64), (100, 210), (17, 300), (16, 16)])
def test_any_size(hw):
    """The maps cover the image, whatever the patches and windows do not divide."""
    net = randomize(ViT(**TINY))
    with torch.no_grad():
        features = net(torch.randn(1, 3, *hw))["last_feat"]
    assert features.shape == (1, 96, -(-hw[0] // 16), -(-hw[1] // 16))
    assert features.isfinite().all()


def test_output_shape_is_true():
    model = tiny(square_pad=0)
    maps = model(torch.randn(1, 3, 96, 160))
    assert list(maps) == list(model.output_shape()) == OUTPUTS
    for name, spec in model.output_shape().items():
        assert maps[name].shape == (1, spec.channels, -(-96 // spec.stride), -(-160 // spec.stride))


def test_one_window_is_the_whole_map():
    """Windowed and global attention are the same network where a window covers the map."""
    windowed, whole = (
        ViT(**TINY | {"window_size": 8, "global_block_indexes": g}) for g in ([], [0, 1, 2, 3])
    )
    whole.load_state_dict(randomize(windowed).state_dict())
    image = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(
            windowed(image)["last_feat"], whole.eval()(image)["last_feat"], rtol=1e-4, atol=1e-4
        )


def test_windows_do_not_see_each_other():
    net = randomize(ViT(**TINY | {"global_block_indexes": []}))
    image = torch.randn(1, 3, 128, 128)
    changed = image.clone()
    changed[..., 64:] += 1
    with torch.no_grad():
        before, after = net(image)["last_feat"], net(changed)["last_feat"]
    torch.testing.assert_close(before[..., :4], after[..., :4])
    assert (before[..., 4:] - after[..., 4:]).abs().max() > 0.1


def test_padding_contract():
    assert tiny(0).size_divisibility == 32 and tiny(0).padding_constraints == {"size_divisibility": 32}
    model = tiny(128)
    assert model.size_divisibility == 128
    assert "square_size" not in model.padding_constraints, "upstream crops to it"
    with pytest.raises(ValueError, match="larger than MODEL.FPN.SQUARE_PAD 128: the batch is 256 x 128"):
        model(ImageList.from_tensors([torch.zeros(3, 130, 100)], model.size_divisibility).tensor)
    with pytest.raises(ValueError, match="SQUARE_PAD 100 is not a multiple of 32"):
        tiny(100)


@pytest.mark.parametrize(
    "kind, convs",
    [
        ("naive", [(96, 96, 3, 3)]),
        ("basic", [(96, 96, 3, 3)] * 2),
        ("bottleneck", [(48, 96, 1, 1), (48, 48, 3, 3), (96, 48, 1, 1)]),
    ],
)
def test_conv_propagation(kind, convs):
    """Starts as the identity, then carries information across windows; names are Detectron2's."""
    net = ViT(**TINY | {"residual_block_indexes": [0], "residual_block": kind, "global_block_indexes": []})
    plain = ViT(**TINY | {"global_block_indexes": []})
    extra = {k: v.shape for k, v in net.state_dict().items() if k not in plain.state_dict()}
    shapes = {f"conv{i}.weight": shape for i, shape in enumerate(convs, start=1)}
    shapes |= {f"norm{i}.{p}": s[:1] for i, s in enumerate(convs, start=1) for p in ("weight", "bias")}
    assert extra == {f"blocks.0.residual.{name}": shape for name, shape in shapes.items()}

    plain.load_state_dict(net.state_dict(), strict=False)
    image = torch.randn(1, 3, 128, 128)
    torch.testing.assert_close(net.eval()(image)["last_feat"], plain.eval()(image)["last_feat"])
    last = getattr(net.blocks[0].residual, f"norm{len(convs)}")
    nn.init.ones_(last.weight)
    changed = image.clone()
    changed[..., 64:] += 1
    with torch.no_grad():
        difference = (net(image)["last_feat"] - net(changed)["last_feat"]).abs()
    assert difference[..., 3].max() > 1e-3, "in the window beside the changed one"


def test_all_parameters_learn():
    model = tiny(0, residual_block_indexes=[1]).train()
    sum(v.square().mean() for v in model(torch.randn(2, 3, 96, 128)).values()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not idle


def test_drop_path_grows_with_depth():
    net = ViT(**TINY | {"drop_path_rate": 0.3})
    assert [b.drop_path.p for b in net.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_drop_path_is_for_training():
    """Rates 0 and 1: in training the first of two blocks is always kept, the last always left out."""
    sizes = TINY | {"depth": 2, "global_block_indexes": [1]}
    net = ViT(**sizes, drop_path_rate=1.0, out_block_indexes=[0])
    image = torch.randn(1, 3, 64, 64)
    for training in (True, False):
        maps = net.train(training)(image)
        assert torch.equal(maps["block0"], maps["last_feat"]) == training


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("backend", "sizes"),
    [
        ("aot_eager", 1),
        pytest.param("aot_eager", 3, marks=pytest.mark.slow),
        pytest.param("inductor", 1, marks=pytest.mark.slow),
    ],
)
def test_compiled(backend, sizes, train):
    """torch.compile takes the backbone whole, from the second size on for all; maps and gradients agree."""
    torch._dynamo.reset()  # or the sizes of other tests would make even the first one variable
    net = randomize(ViT(**TINY | {"depth": 2, "global_block_indexes": [1]}))
    compiled, parameters = torch.compile(net, backend=backend, fullgraph=True), list(net.parameters())
    for hw in [(96, 112), (112, 64), (72, 200)][:sizes]:
        image = torch.randn(1, 3, *hw)
        with torch.set_grad_enabled(train):
            expected, got = net(image)["last_feat"], compiled(image)["last_feat"]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        if train:
            expected, got = (torch.autograd.grad(f.square().sum(), parameters) for f in (expected, got))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_lazy_and_yaml_build_the_same():
    """L(ViT)(...), plain Python and YAML in another project."""
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_vit_simple_pyramid_backbone"
    cfg.MODEL.FPN.NORM, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.SQUARE_PAD = "LN", 64, 128
    vit = cfg.MODEL.VIT
    vit.IMG_SIZE, vit.EMBED_DIM, vit.DEPTH, vit.NUM_HEADS = 128, 96, 4, 3
    vit.WINDOW_SIZE, vit.GLOBAL_BLOCKS, vit.PRETRAIN_IMG_SIZE = 4, [1, 3], 64
    lazy = L(SimpleFeaturePyramid)(
        net=L(ViT)(**TINY), out_channels=64, top_block=L(LastLevelMaxPool)(), square_pad=128
    )
    shapes = [
        {name: tuple(v.shape) for name, v in model.state_dict().items()}
        for model in (tiny(), instantiate(lazy), build_backbone(cfg, ShapeSpec(channels=3)))
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert shapes[0] == {k: tuple(v) for k, v in read_keys("vitdet_tiny")["keys"].items()}


def test_fpn_on_four_maps():
    """The earlier design (arXiv 2111.11429): one map after each quarter of the blocks."""
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_vit_fpn_backbone"
    cfg.MODEL.FPN.NORM = "LN"
    vit = cfg.MODEL.VIT
    vit.IMG_SIZE, vit.EMBED_DIM, vit.DEPTH, vit.NUM_HEADS = 128, 128, 8, 4
    vit.WINDOW_SIZE, vit.GLOBAL_BLOCKS = 4, [1, 3, 5, 7]
    model = build_backbone(cfg, ShapeSpec(channels=3))
    assert model.bottom_up.in_features == ("block1", "block3", "block5", "last_feat")
    specs = model.bottom_up.output_shape()
    assert [(s.channels, s.stride) for s in specs.values()] == [(32, 4), (64, 8), (128, 16), (128, 32)]
    maps = model(torch.randn(1, 3, 64, 96))
    assert {k: tuple(v.shape[2:]) for k, v in maps.items()} == {
        "p2": (16, 24),
        "p3": (8, 12),
        "p4": (4, 6),
        "p5": (2, 3),
        "p6": (1, 2),
    }
    sum(v.mean() for v in maps.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("patch, levels", [(8, "2345"), (16, "23456"), (32, "34567")])
def test_the_pyramid_follows_the_patches(patch, levels):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_vit_simple_pyramid_backbone"
    assert cfg.MODEL.FPN.NORM == "", "Detectron2's default works too"
    vit = cfg.MODEL.VIT
    vit.PATCH_SIZE, vit.EMBED_DIM, vit.DEPTH, vit.NUM_HEADS, vit.GLOBAL_BLOCKS = patch, 32, 1, 2, [0]
    model = build_backbone(cfg, ShapeSpec(channels=3))
    maps = model(torch.randn(1, 3, 128, 128))
    assert list(maps) == list(model.output_shape()) == [f"p{level}" for level in levels]
    assert [128 // v.shape[2] for v in maps.values()] == [s.stride for s in model.output_shape().values()]
    sum(v.mean() for v in maps.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"window_size": 9}, "WINDOW_SIZE 9 is larger than the map of IMG_SIZE / PATCH_SIZE = 8 x 8 patches"),
        ({"pretrain_img_size": 0}, "PRETRAIN_IMG_SIZE 0 is not a multiple of PATCH_SIZE 16"),
        ({"pretrain_img_size": 100}, "PRETRAIN_IMG_SIZE 100 is not a multiple of PATCH_SIZE 16"),
        ({"num_heads": 5}, "EMBED_DIM 96 is not a multiple of NUM_HEADS 5"),
        ({"global_block_indexes": [1, 4]}, "block 4 does not exist: DEPTH 4 has 0 to 3"),
        ({"residual_block": "big"}, "RESIDUAL_BLOCK 'big' is not one of naive, basic, bottleneck"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ValueError, match=message):
        ViT(**TINY | changes)


def test_a_pyramid_needs_powers_of_two():
    net = ViT(**TINY | {"patch_size": 14, "pretrain_img_size": 70})
    with pytest.raises(
        ValueError, match="strides 1, 2, 4, ..., not 3.5: set MODEL.VIT.PATCH_SIZE to 8, 16 or 32"
    ):
        SimpleFeaturePyramid(net)


def test_a_pyramid_on_quarters_needs_four_blocks():
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.VIT.DEPTH = "build_vit_fpn_backbone", 3
    with pytest.raises(ValueError, match="MODEL.VIT.DEPTH 3: .* each quarter of the blocks: 4 or more"):
        build_backbone(cfg, ShapeSpec(channels=3))


def test_unknown_scale():
    with pytest.raises(ValueError, match="scale factor 8 of the pyramid is not one of"):
        rescale(64, 8, "")
