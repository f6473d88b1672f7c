"""Published names onto our models: every tensor used, each where it belongs; what is refused or reported."""

import re

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from deterministic import compare, golden_state_dict, make_input, make_state_dict, make_tensor, read_keys
from safetensors.torch import save_file
from tiny_run import arguments
from torch.nn import functional as F
from torchvision.models import resnet18

import nlnet_d2
from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.backbones.video.resnet3d import ResNet3D
from nlnet_d2.backbones.video.slowfast import SlowFast
from nlnet_d2.backbones.vit import ViT
from nlnet_d2.blocks.context import GlobalContext
from nlnet_d2.blocks.nonlocal_ import NonLocal
from nlnet_d2.checkpoint import load_weights
from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.convert import convert
from nlnet_d2.checkpoint.load import require_backbone
from nlnet_d2.checkpoint.sources import SOURCES
from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.trainer import Trainer

GC = {"NAME": "GlobalContext", "AT": {"res3": "all", "res4": "all", "res5": "all"}, "POSITION": "after_conv3"}
FIVE_BLOCKS = [{"NAME": "NonLocal", "AT": {"res3": [1, 3], "res4": [1, 3, 5]}, "SUBSAMPLE": [1, 2, 2]}]
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


# One (published name, our name) per kind of layer, written out by hand: the tables are tested against these.
LANDS = {
    "resnet50_keys": {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_var": "stem.conv1.norm.running_var",
        "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "layer4.0.downsample.1.bias": "res5.0.shortcut.norm.bias",
        "layer3.5.bn2.running_mean": "res4.5.conv2.norm.running_mean",
    },
    "gcnet_r50_r16_c3-c5": {
        "layer2.3.context_block.channel_add_conv.1.weight": "res3.3.after_conv3.0.channel_add_conv.1.weight",
        "layer4.2.bn3.weight": "res5.2.conv3.norm.weight",
    },
    "ava_slowfast_32x2_r50_short": {
        "s1.pathway1_stem.conv.weight": "fast.stem.conv1.weight",
        "s1_fuse.bn.bias": "fuse.stem.norm.bias",
        "s4_fuse.conv_f2s.weight": "fuse.res4.weight",
        "s5.pathway0_res0.branch1_bn.weight": "slow.res5.0.shortcut.norm.weight",
        "s3.pathway1_res2.branch2.b.weight": "fast.res3.2.conv2.weight",
        "s3.pathway1_res2.branch2.c_bn.running_mean": "fast.res3.2.conv3.norm.running_mean",
    },
    "i3d_nln_8x8_r50": {
        "s1.pathway0_stem.bn.weight": "stem.conv1.norm.weight",
        "s4.pathway0_nonlocal5.conv_theta.bias": "res4.5.after_add.0.theta.bias",
        "s4.pathway0_nonlocal5.conv_phi.bias": "res4.5.after_add.0.phi.bias",
        "s4.pathway0_nonlocal5.conv_g.bias": "res4.5.after_add.0.g.bias",
        "s3.pathway0_nonlocal1.bn.running_var": "res3.1.after_add.0.norm.running_var",
        "s2.pathway0_res1.branch2.a.weight": "res2.1.conv1.weight",
    },
    "slow_8x8_r50": {"s5.pathway0_res2.branch2.c.weight": "res5.2.conv3.weight"},
    "slowfast_r50_detection_keys": {
        "model.blocks.0.multipathway_fusion.conv_fast_to_slow.weight": "fuse.stem.weight",
        "model.blocks.3.multipathway_fusion.norm.running_mean": "fuse.res4.norm.running_mean",
        "model.blocks.0.multipathway_blocks.1.conv.weight": "fast.stem.conv1.weight",
        "model.blocks.4.multipathway_blocks.0.res_blocks.0.branch1_norm.bias": (
            "slow.res5.0.shortcut.norm.bias"
        ),
        "model.blocks.2.multipathway_blocks.1.res_blocks.3.branch2.norm_b.weight": (
            "fast.res3.3.conv2.norm.weight"
        ),
    },
    "slowfast_r50_keys": {
        "blocks.1.multipathway_blocks.0.res_blocks.0.branch1_conv.weight": "slow.res2.0.shortcut.weight"
    },
    "slow_r50_detection_keys": {
        "model.blocks.0.norm.weight": "stem.conv1.norm.weight",
        "model.blocks.3.res_blocks.5.branch2.conv_a.weight": "res4.5.conv1.weight",
    },
}
MODELS = {
    "resnet50_keys": ("torchvision", lambda: ContextResNet(**TORCHVISION)),
    "gcnet_r50_r16_c3-c5": ("mmdet1", lambda: ContextResNet(blocks=[GC], **TORCHVISION)),
    "ava_slowfast_32x2_r50_short": ("pyslowfast", lambda: SlowFast(res5_stride=1, res5_dilation=2)),
    "i3d_nln_8x8_r50": ("pyslowfast-single", lambda: ResNet3D(arch="i3d", blocks=FIVE_BLOCKS)),
    "slow_8x8_r50": ("pyslowfast-single", lambda: ResNet3D(arch="slow")),
    "slowfast_r50_detection_keys": ("pytorchvideo", lambda: SlowFast(res5_stride=1, res5_dilation=2)),
    "slowfast_r50_keys": ("pytorchvideo", SlowFast),
    "slow_r50_detection_keys": ("pytorchvideo-single", lambda: ResNet3D(arch="slow")),
}


@pytest.mark.parametrize("case", MODELS)
def test_golden_key_lists(case):
    origin, build = MODELS[case]
    golden = read_keys(case)
    conversion = convert(golden_state_dict(golden), on_meta(build))
    assert_complete(conversion.report, origin)
    for theirs, ours in LANDS[case].items():
        assert torch.equal(conversion.state[ours], make_tensor(theirs, golden["keys"][theirs])), ours
    floating = [name for name in golden["keys"] if name not in golden["non_float_keys"]]
    assert len(conversion.report.used) + len(conversion.report.dropped) == len(floating)


def pytorchvideo_name(name):
    """pytorchvideo's name in C2D and I3D, written independently of the table: block 2 is a pooling."""
    letters = {"conv1": "a", "conv2": "b", "conv3": "c"}
    stages = {"res2": 1, "res3": 3, "res4": 4, "res5": 5}
    block, *layers = name.split(".")
    if block == "stem":
        return f"blocks.0.{'norm' if 'norm' in layers else 'conv'}.{layers[-1]}"
    where = f"blocks.{stages[block]}.res_blocks.{layers[0]}"
    kind = "norm" if "norm" in layers else "conv"
    if layers[1] == "shortcut":
        return f"{where}.branch1_{kind}.{layers[-1]}"
    return f"{where}.branch2.{kind}_{letters[layers[1]]}.{layers[-1]}"


@pytest.mark.parametrize("arch", ["c2d", "i3d"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_pytorchvideo_with_a_pooling_among_its_blocks(arch, prefix):
    model = torch.nn.ModuleDict({"backbone": on_meta(ResNet3D, arch=arch), "action_head": torch.nn.Module()})
    model["action_head"].classifier = on_meta(torch.nn.Linear, 2048, 400)
    own = {k: v.shape for k, v in model["backbone"].state_dict().items() if "tracked" not in k}
    keys = {prefix + pytorchvideo_name(name): shape for name, shape in own.items()}
    assert f"{prefix}blocks.5.res_blocks.2.branch2.norm_c.bias" in keys and len(keys) == len(own)
    keys |= {f"{prefix}blocks.6.proj.weight": (400, 2048), f"{prefix}blocks.6.proj.bias": (400,)}
    conversion = convert(make_state_dict(keys), model)
    assert_complete(conversion.report, "pytorchvideo-pooled")
    for name, shape in own.items():
        expected = make_tensor(prefix + pytorchvideo_name(name), shape)
        assert torch.equal(conversion.state[f"backbone.{name}"], expected), name


REFUSED = {
    "bit": {"resnet/block1/unit01/a/standardized_conv2d/kernel": [1, 1, 64, 64]},
    "vit-jax": {"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel": [768, 12, 64]},
    "mvit-video": {
        "patch_embed.proj.weight": [96, 3, 3, 7, 7],
        "blocks.0.attn.pool_q.weight": [96, 1, 3, 3, 3],
        "pos_embed_temporal": [1, 8, 96],
    },
    "x3d": {
        "s1.pathway0_stem.conv_xy.weight": [24, 3, 1, 3, 3],
        "s1.pathway0_stem.conv.weight": [24, 1, 5, 1, 1],
    },
}
REFUSED_GOLDEN = {  # the first names and the last of each
    "bit-timm": "bit-timm",
    "convnext": "convnext",
    "botnet": "botnet",
    "halonet": "botnet",
    "mvit-v1": "mvit-video",
    "mvit-v2": "mvit-video",
    "s3d": "s3d",
}


@pytest.mark.parametrize("origin", [None, "by name"])
def test_known_networks_without_a_place_here_are_named(origin):
    golden = read_keys("refused_keys")
    cases = [*REFUSED.items(), *((name, golden[case]) for case, name in REFUSED_GOLDEN.items())]
    assert {name for name, _ in cases} == {source.name for source in SOURCES.values() if source.refused}
    for name, keys in cases:
        with pytest.raises(CheckpointError, match=f"weights of origin {name}: .*no backbone here is one"):
            convert(shapes(keys), on_meta(ContextResNet), name if origin else None)


@pytest.mark.parametrize("case", ["ava_slowfast_32x2_r50_short", "i3d_nln_8x8_r50", "slow_8x8_r50"])
def test_caffe2_names_of_the_same_network(case):
    """The blobs give what the PyTorch names give: golden["caffe2_names"] says which blob is which key."""
    golden = read_keys(case)
    tensors, model = golden_state_dict(golden), on_meta(MODELS[case][1])
    blobs = {blob: tensors[key].numpy() for blob, key in golden["caffe2_names"].items() if key}
    state = blobs | {"lr": np.ones(1), "model_iter": np.ones(1), "conv1_w_momentum": np.ones(3)}
    conversion = convert({name: torch.from_numpy(blob) for name, blob in state.items()}, model)
    assert_complete(conversion.report, "caffe2-video" + "-single" * ("fast" not in model._modules))
    expected = convert(tensors, model).state
    assert conversion.state.keys() == expected.keys()
    assert all(torch.equal(conversion.state[name], tensor) for name, tensor in expected.items())


def test_rank_of_caffe2_classifiers():
    """video-nonlocal-net keeps its classifier as a convolution."""
    model = torch.nn.ModuleDict({"backbone": ResNet3D(depth=14), "action_head": torch.nn.ModuleDict()})
    model["action_head"]["classifier"] = torch.nn.Linear(2048, 80)
    state = {"conv1_w": torch.ones(64, 3, 1, 7, 7), "pred_w": make_tensor("pred_w", (80, 2048, 1, 1, 1))}
    load_weights(
        model, state | {"pred_b": torch.ones(80)}, "caffe2-video-single", allow_missing=["backbone.*"]
    )
    assert torch.equal(model["action_head"]["classifier"].weight, state["pred_w"].flatten(1))


@pytest.mark.parametrize("case", ["vitdet_b_keys", "mvitv2_t_keys"])
def test_detectron2_transformers(case):
    """The whole detectors of the model zoo have our names."""
    config = {"vitdet_b_keys": "mask_rcnn_vitdet_b_100ep", "mvitv2_t_keys": "mask_rcnn_mvitv2_t_3x"}[case]
    golden = read_keys(case)
    backbone = {f"backbone.{name}": shape for name, shape in golden["keys"].items()}
    model = detector(file=f"configs/coco/{config}.yaml")
    assert_complete(convert(shapes(golden["full_model"]["keys"] | backbone), model).report, "native")
    assert_complete(convert(shapes(golden["keys"]), model.backbone).report, "native")


def test_mae():
    golden = read_keys("mae_vit_base_patch16_keys")
    model = detector(file="configs/coco/mask_rcnn_vitdet_b_100ep.yaml")
    conversion = convert(shapes(golden["keys_encoder"] | golden["keys_decoder"]), model)
    report = conversion.report
    assert report.origin == "vit" and not report.unexpected and not report.mismatched
    assert len(report.used) == len(golden["keys_encoder"]) - 3  # cls_token, norm.weight, norm.bias
    assert set(report.dropped) == {"cls_token", "norm.weight", "norm.bias", *golden["keys_decoder"]}
    new = re.compile(r"rel_pos_[hw]$|^backbone\.simfp|^roi_heads|^proposal_generator")
    assert all(new.search(name) for name in report.missing)


@pytest.fixture(scope="module")
def tiny_vit():
    kwargs = {"embed_dim": 32, "depth": 2, "num_heads": 2, "global_block_indexes": [1], "window_size": 4}
    return lambda **changes: ViT(**({"img_size": 128, "pretrain_img_size": 64} | kwargs | changes))


def timm_vit(model, **changes):
    """Weights under timm's names for a model of ours."""
    state = {k: make_tensor(k, v.shape) for k, v in model.state_dict().items() if "rel_pos" not in k}
    extras = {"cls_token": (1, 1, 32), "norm.weight": (32,), "head.weight": (10, 32), "head.bias": (10,)}
    return state | make_state_dict(extras) | changes


def test_timm_vit_of_the_same_size(tiny_vit):
    model = tiny_vit()
    state = timm_vit(model)
    report = load_weights(model, state)
    assert report.origin == "vit" and len(report.dropped) == 4
    assert torch.equal(model.pos_embed, state["pos_embed"])
    assert torch.equal(model.blocks[1].attn.qkv.weight, state["blocks.1.attn.qkv.weight"])


def test_vit_of_another_size(tiny_vit):
    """Positions are interpolated, the class token's is kept or dropped, patches are resampled."""
    model = tiny_vit()
    grid = torch.arange(64.0).reshape(8, 8)[None, :, :, None].expand(1, 8, 8, 32)  # a plane: 8 y + x
    token = torch.full((1, 1, 32), 100.0)
    kernel = make_tensor("kernel.weight", (32, 3, 1, 1)).expand(32, 3, 14, 14)  # constant over a patch
    changes = {"pos_embed": torch.cat([token, grid.flatten(1, 2)], dim=1), "patch_embed.proj.weight": kernel}
    load_weights(model, timm_vit(model, **changes))
    assert torch.equal(model.pos_embed[:, :1], token)
    inner = model.pos_embed[0, 1:, 0].reshape(4, 4)[1:3, 1:3]  # away from the border bicubic keeps a plane
    assert torch.allclose(inner, torch.tensor([[22.5, 24.5], [38.5, 40.5]]), atol=0.5)
    assert torch.allclose(
        model.patch_embed.proj.weight, kernel[:, :, :1, :1].expand(32, 3, 16, 16), atol=1e-5
    )
    without_token = tiny_vit(pretrain_use_cls_token=False)
    state = timm_vit(model, pos_embed=make_tensor("pos_embed", (1, 17, 32)))
    load_weights(without_token, state)
    assert torch.equal(without_token.pos_embed, state["pos_embed"][:, 1:])


def test_relative_positions_of_another_size(tiny_vit):
    """A window of 4 has 7 offsets, one of 7 has 13: linear, the ends and the middle stay."""
    model, larger = tiny_vit(), tiny_vit(window_size=7)
    table = torch.arange(7.0)[:, None].expand(7, 16)
    state = model.state_dict() | {"blocks.0.attn.rel_pos_h": table}
    assert_complete(load_weights(larger, state), "native")
    found = larger.blocks[0].attn.rel_pos_h[:, 0].detach()
    assert found.shape == (13,) and found[6].item() == pytest.approx(3) and (found.diff() >= 0).all()


def test_mvit_checkpoints_of_images():
    """The classifier's names are ours but for its head; kernels may still have a time of one frame."""
    golden = read_keys("mvitv2_t_keys")["keys"]
    trunk = {
        k.removeprefix("bottom_up."): v
        for k, v in golden.items()
        if re.match(r"bottom_up\.(patch|blocks)", k)
    }
    pools = [name for name in trunk if "pool_" in name]
    trunk |= {name: [*trunk[name][:2], 1, *trunk[name][2:]] for name in pools}
    extras = {"norm.weight": [768], "head.projection.weight": [1000, 768], "cls_token": [1, 1, 96]}
    model = detector(file="configs/coco/mask_rcnn_mvitv2_t_3x.yaml")
    report = convert(shapes(trunk | extras), model).report
    assert report.origin == "mvit" and not report.unexpected and not report.mismatched
    assert set(report.dropped) == set(extras) and len(report.used) == len(trunk)
    assert not [n for n in report.missing if re.match(r"backbone\.bottom_up\.(blocks|patch)", n)]


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


def caffe2_blobs(model, **kwargs):
    own = {k: v for k, v in model.state_dict().items() if "tracked" not in k and "after_" not in k}
    return {caffe2_name(k, **kwargs): make_tensor(k, v.shape) for k, v in own.items()}


def test_msra_resnet():
    model = ContextResNet(depth=50)
    extras = {"fc1000_w": torch.ones(1000, 2048), "fc1000_b": torch.ones(1000), "conv1_b": torch.ones(64)}
    report = load_weights(model, {"blobs": caffe2_blobs(model) | extras})
    assert_complete(report, "caffe2")
    assert set(report.dropped) == set(extras) and not report.filled
    assert all(torch.equal(v, make_tensor(k, v.shape)) for k, v in model.state_dict().items())


def test_group_norm_of_caffe2():
    model = ContextResNet(depth=50, norm="GN", stride_in_1x1=False)
    assert_complete(load_weights(model, caffe2_blobs(model, norm="gn")), "caffe2-gn")
    assert all(torch.equal(v, make_tensor(k, v.shape)) for k, v in model.state_dict().items())


def test_statistics_fused_into_the_norm():
    """Detectron's own ImageNet files: x * s + b, exactly."""
    model = ContextResNet(depth=50)
    blobs = caffe2_blobs(model, statistics=False)
    blobs = {name: blob for name, blob in blobs.items() if not name.endswith(("_rm", "_riv"))}
    report = load_weights(model, blobs)
    assert_complete(report, "caffe2")
    assert len(report.filled) == 2 * 53 and "fused into the scale" in str(report)
    norm, x = model.stem.conv1.norm, torch.randn(1, 64, 2, 2)
    expected = x * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert torch.allclose(norm(x), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("encoder", ["encoder_q", "base_encoder"])
def test_moco(encoder):
    golden = read_keys("resnet50_keys")
    trunk = {k: v for k, v in golden["keys"].items() if not k.startswith("fc.")}
    state = {f"module.{encoder}.{k}": make_tensor(k, v) for k, v in trunk.items()}
    state |= {f"module.encoder_k.{k}": torch.zeros(v) for k, v in trunk.items()}
    state |= {f"module.{encoder}.fc.0.weight": torch.ones(2, 2), "module.queue": torch.ones(2, 3)}
    model = ContextResNet(**TORCHVISION)
    assert_complete(load_weights(model, {"state_dict": state, "epoch": 200}), "moco")
    expected = make_tensor("layer4.2.bn3.weight", (2048,))
    assert torch.equal(model.res5[2].conv3.norm.weight, expected)


def test_resnext_into_a_detector():
    overrides = ["MODEL.RESNETS.DEPTH", "101", "MODEL.RESNETS.NUM_GROUPS", "32"]
    model = detector(
        [*overrides, "MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.RESNETS.STRIDE_IN_1X1", "False"]
    )
    report = convert(shapes(read_keys("resnext101_32x8d_keys")["keys"]), model).report
    assert report.origin == "torchvision" and not report.unexpected and not report.mismatched
    assert not [name for name in report.missing if name.startswith("backbone.bottom_up.")]
    assert set(report.dropped) == {"fc.weight", "fc.bias"}


def test_inflation_for_clips():
    """A clip that stands still gives what its frame gives."""
    published = golden_state_dict(read_keys("resnet50_keys"))
    conversion = convert(published, on_meta(ResNet3D, arch="i3d"))
    assert_complete(conversion.report, "torchvision")
    assert torch.equal(
        conversion.state["res3.0.conv2.weight"], published["layer2.0.conv2.weight"][:, :, None]
    )
    image, kernel = make_input((1, 3, 16, 16)), conversion.state["stem.conv1.weight"]
    assert kernel.shape == (64, 3, 5, 7, 7)
    found = F.conv3d(image[:, :, None].expand(-1, -1, 5, -1, -1), kernel)[:, :, 0]
    assert torch.allclose(found, F.conv2d(image, published["conv1.weight"]), atol=1e-4)
    with pytest.raises(CheckpointError, match="have another shape there: slow.res2"):  # 80 channels enter it
        report_of_start(on_meta(SlowFast), published)


def mmdet_names(model, mmdet1):
    """mmdetection's names of a stock Mask R-CNN, written out: {theirs: ours}."""
    head = "" if mmdet1 else "roi_head."
    layers = {
        "rpn_head.rpn_conv": "proposal_generator.rpn_head.conv",
        "rpn_head.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
        "rpn_head.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
        f"{head}bbox_head.shared_fcs.0": "roi_heads.box_head.fc1",
        f"{head}bbox_head.shared_fcs.1": "roi_heads.box_head.fc2",
        f"{head}bbox_head.fc_cls": "roi_heads.box_predictor.cls_score",
        f"{head}bbox_head.fc_reg": "roi_heads.box_predictor.bbox_pred",
        f"{head}mask_head.upsample": "roi_heads.mask_head.deconv",
        f"{head}mask_head.conv_logits": "roi_heads.mask_head.predictor",
    }
    layers |= {f"neck.lateral_convs.{i}.conv": f"backbone.fpn_lateral{i + 2}" for i in range(4)}
    layers |= {f"neck.fpn_convs.{i}.conv": f"backbone.fpn_output{i + 2}" for i in range(4)}
    layers |= {f"{head}mask_head.convs.{i}.conv": f"roi_heads.mask_head.mask_fcn{i + 1}" for i in range(4)}
    return {f"{theirs}.{p}": f"{ours}.{p}" for theirs, ours in layers.items() for p in ("weight", "bias")}


@pytest.mark.parametrize("mmdet1", [True, False])
def test_mmdetection(mmdet1):
    """Version 1 counts the background as class 0, Detectron2 as the last."""
    model = detector(["MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.MASK_ON", "True"])
    own, names = model.state_dict(), mmdet_names(model, mmdet1)
    keys = {theirs: list(own[ours].shape) for theirs, ours in names.items()}
    if mmdet1:
        for theirs, extra in (("bbox_head.fc_reg", 4), ("mask_head.conv_logits", 1)):
            for p in ("weight", "bias"):
                keys[f"{theirs}.{p}"][0] += extra
    resnet = {f"backbone.{k}": v for k, v in read_keys("resnet50_keys")["keys"].items() if "fc." not in k}
    conversion = convert(make_state_dict(keys | resnet), model)
    assert_complete(conversion.report, "mmdet1" if mmdet1 else "mmdet")
    first = 1 if mmdet1 else 0
    scores = make_tensor(next(k for k in keys if k.endswith("fc_cls.bias")), (8,))
    found = conversion.state["roi_heads.box_predictor.cls_score.bias"]
    assert torch.equal(found, torch.cat([scores[first : first + 7], scores[:1] if mmdet1 else scores[7:]]))
    boxes = make_tensor(next(k for k in keys if k.endswith("fc_reg.bias")), (28 + 4 * first,))
    assert torch.equal(conversion.state["roi_heads.box_predictor.bbox_pred.bias"], boxes[4 * first :])
    masks = make_tensor(next(k for k in keys if k.endswith("conv_logits.bias")), (7 + first,))
    assert torch.equal(conversion.state["roi_heads.mask_head.predictor.bias"], masks[first:])


def mmdet_layers(state, mmdet1):
    """What mmdetection's box and mask heads compute from pooled maps, (R, 256, 7, 7) and (R, 256, 14, 14):
    scores and box deltas of the K classes, mask logits of the K classes."""
    head, classes = "" if mmdet1 else "roi_head.", slice(1, None) if mmdet1 else slice(None)

    def layer(function, name, x, **kwargs):
        return function(x, state[f"{head}{name}.weight"], state[f"{head}{name}.bias"], **kwargs)

    def boxes(x):
        for i in range(2):
            x = layer(F.linear, f"bbox_head.shared_fcs.{i}", x.flatten(1)).relu()
        scores = layer(F.linear, "bbox_head.fc_cls", x).softmax(dim=1)
        scores = scores[:, 1:] if mmdet1 else scores[:, :-1]
        return scores, layer(F.linear, "bbox_head.fc_reg", x).unflatten(1, (-1, 4))[:, classes]

    def masks(x):
        for i in range(4):
            x = layer(F.conv2d, f"mask_head.convs.{i}.conv", x, padding=1).relu()
        x = layer(F.conv_transpose2d, "mask_head.upsample", x, stride=2).relu()
        return layer(F.conv2d, "mask_head.conv_logits", x)[:, classes]

    return boxes, masks


@pytest.mark.parametrize("mmdet1", [True, False])
def test_mmdetection_heads_compute_the_same(mmdet1):
    options = ["MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.MASK_ON", "True", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"]
    model = detector(["MODEL.RESNETS.DEPTH", "50", *options, "MODEL.DEVICE", "cpu"]).eval()
    own = model.state_dict()
    keys = {theirs: list(own[ours].shape) for theirs, ours in mmdet_names(model, mmdet1).items()}
    if mmdet1:
        for name, extra in (("bbox_head.fc_reg", 4), ("mask_head.conv_logits", 1)):
            keys[f"{name}.weight"][0] += extra
            keys[f"{name}.bias"][0] += extra
    state = make_state_dict(keys)
    resnet = {f"backbone.{k}": v for k, v in read_keys("resnet50_keys")["keys"].items() if "fc." not in k}
    load_weights(model, state | make_state_dict(resnet))
    boxes, masks = mmdet_layers(state, mmdet1)
    heads, small, large = model.roi_heads, make_input((2, 256, 7, 7)), make_input((2, 256, 14, 14))
    with torch.no_grad():
        scores, deltas = heads.box_predictor(heads.box_head(small))
        torch.testing.assert_close(scores.softmax(dim=1)[:, :3], boxes(small)[0])
        torch.testing.assert_close(deltas.unflatten(1, (3, 4)), boxes(small)[1])
        logits = heads.mask_head.layers(large)
    torch.testing.assert_close(logits, masks(large))


def mmaction_name(name):
    """mmaction2's name of a parameter of our ResNet3D, written independently of the table."""
    name = name.replace("action_head.classifier", "roi_head.bbox_head.fc_cls")
    stages = {"stem.": "", "res2.": "layer1.", "res3.": "layer2.", "res4.": "layer3.", "res5.": "layer4."}
    for ours, theirs in stages.items():
        name = name.replace(ours, theirs)
    name = name.replace("shortcut", "downsample")
    if "norm" in name:
        return name.replace(".norm.", ".bn.")
    return name if "fc_cls" in name else re.sub(r"\.weight$", ".conv.weight", name)


def test_mmaction():
    """81 classes, of which class 0 is the background."""
    backbone, head = on_meta(ResNet3D, arch="slow"), torch.nn.Module()
    head.classifier = on_meta(torch.nn.Linear, 2048, 80)
    model = torch.nn.ModuleDict({"backbone": backbone, "action_head": head})
    own = {k: list(v.shape) for k, v in model.state_dict().items() if "tracked" not in k}
    keys = {mmaction_name(k): v for k, v in own.items()}
    for p in ("weight", "bias"):
        keys[f"roi_head.bbox_head.fc_cls.{p}"][0] = 81
    assert "backbone.layer3.0.downsample.bn.weight" in keys and "backbone.conv1.conv.weight" in keys
    conversion = convert(make_state_dict(keys), model)
    assert_complete(conversion.report, "mmaction")
    bias = make_tensor("roi_head.bbox_head.fc_cls.bias", (81,))
    assert torch.equal(conversion.state["action_head.classifier.bias"], bias[1:])
    name = "backbone.layer3.0.downsample.bn.weight"
    assert torch.equal(conversion.state["backbone.res4.0.shortcut.norm.weight"], make_tensor(name, (1024,)))


MMCV = {
    "mmcv_nonlocal2d_embedded_gaussian_sub1": {"subsample": 2},
    "mmcv_nonlocal2d_embedded_gaussian_sub1_noscale_bn": {"subsample": 2, "use_scale": False, "reduction": 4},
    "mmcv_nonlocal2d_gaussian_sub1": {"subsample": 2, "mode": "gaussian"},
    "mmcv_nonlocal2d_dot_product_sub0": {"mode": "dot_product"},
    "mmcv_nonlocal2d_concatenation_sub1": {"mode": "concatenation", "subsample": 2},
    "mmcv_nonlocal3d_embedded_gaussian_sub1": {"subsample": 2, "dim": 3},
    "gcnet_nonlocal2d_dot_product": {"mode": "dot_product"},
    "gcnet_nonlocal2d_embedded_gaussian_scale0": {"use_scale": False},
}


@pytest.mark.parametrize("case", MMCV)
def test_non_local_blocks_of_mmcv(case):
    """Alone, without a prefix; the origin does not matter where GCNet and mmcv compute the same."""
    golden = read_keys(case)
    norm = "BN" if case.endswith("bn") else ""
    block = NonLocal(64, **{"subsample_at": "after", "norm": norm, **MMCV[case]}).eval()
    assert_complete(load_weights(block, golden_state_dict(golden)), "mmcv")
    with torch.no_grad():
        compare(case, "out", block(make_input(golden["input"]["shape"])), tol=1e-4)


@pytest.mark.parametrize(
    ("case", "origin"),
    [
        ("gcnet_nonlocal2d_embedded_gaussian_scale1", "gcnet"),
        ("mmcv_nonlocal2d_embedded_gaussian_sub0", "mmcv"),
    ],
)
def test_scaled_logits_are_ambiguous(case, origin):
    """GCNet multiplies by sqrt(C') what mmcv divides by it, under the same names: the user has to say."""
    golden, block = read_keys(case), NonLocal(64, norm="").eval()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    with pytest.raises(CheckpointError, match="ambiguous origin, the names fit mmcv, gcnet"):
        load_weights(block, golden_state_dict(golden))
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert_complete(load_weights(block, golden_state_dict(golden), origin), origin)
    with torch.no_grad():
        compare(case, "out", block(make_input(golden["input"]["shape"])), tol=1e-4)


def test_context_block_alone():
    golden, block = read_keys("context_block_att_add"), GlobalContext(64, reduction=4).eval()
    assert_complete(load_weights(block, golden_state_dict(golden)), "native")
    with torch.no_grad():
        compare("context_block_att_add", "out", block(make_input(golden["input"]["shape"])), tol=1e-4)


def test_new_context_blocks_may_be_missing():
    """A file of ImageNet has none; they start as they are."""
    block = {"NAME": "NonLocal", "AT": {"res4": [-2]}}
    model = ContextResNet(blocks=[block], norm="BN", **R18)
    report = load_weights(model, resnet18().state_dict())
    assert report.missing and all(name.startswith("res4.0.after_add.0.") for name in report.missing)
    half = {name: tensor for name, tensor in model.state_dict().items() if "after_add.0.g." not in name}
    with pytest.raises(
        CheckpointError, match=r"2 tensors .* missing in the file.* res4\.\*\.after_add\.\*\.g\.\*"
    ):
        load_weights(model, half)
    with pytest.raises(CheckpointError, match=r"that the model's has not: res4\.\*\.after_add"):
        load_weights(ContextResNet(norm="BN", **R18), model.state_dict())


def test_parts_that_a_trained_detector_lacks_must_be_allowed():
    """They are new to a backbone of ImageNet; a detector was trained without them, or they got lost."""
    plain, block = detector(), "[{'NAME': 'NonLocal', 'AT': {'res4': [-2]}}]"
    model = detector(["MODEL.CONTEXT.BLOCKS", block])
    published = shapes({k: v.shape for k, v in plain.state_dict().items()})
    with pytest.raises(
        CheckpointError, match=r"missing in the file.* backbone\.bottom_up\.res4\.\*\.after_add"
    ):
        report_of_start(model, published)
    report_of_start(model, published, allow_missing=["*.after_add.*"])
    with pytest.raises(CheckpointError, match="missing in the file"):  # the model is the backbone alone
        report_of_start(model.backbone.bottom_up, published)
    trunk = {name: tensor for name, tensor in published.items() if name.startswith("backbone.bottom_up.")}
    report_of_start(model, trunk)
    report_of_start(model.backbone.bottom_up, trunk)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip(tmp_path, suffix):
    model = ResNet3D(depth=14, arch="slow")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / f"native{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    other = ResNet3D(depth=14, arch="slow")
    assert_complete(load_weights(other, path), "native")
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_part_of_a_detector():
    """A bare backbone takes its part, and says what it left."""
    model = detector()
    conversion = convert(shapes({k: v.shape for k, v in model.state_dict().items()}), on_meta(ContextResNet))
    assert_complete(conversion.report, "native")
    assert set(conversion.report.dropped.values()) == {"outside backbone.bottom_up, which the model is"}


def test_incomplete_backbone_is_refused_and_unchanged():
    published, model = resnet18().state_dict(), ContextResNet(norm="BN", **R18)
    del published["layer3.1.conv2.weight"]
    published["layer2.1.bn1.bias"] = torch.ones(3)
    before = model.stem.conv1.weight.clone()
    with pytest.raises(CheckpointError, match="2 tensors of the backbone are missing") as error:
        load_weights(model, published)
    assert "there: res4.*.conv2.*, res3.*.conv1.norm.*" in str(error.value)
    assert torch.equal(model.stem.conv1.weight, before)
    report = load_weights(model, published, allow_missing=["res4.1.conv2.weight", "res3.1.*"])
    assert report.missing == ["res4.1.conv2.weight"]
    assert [str(m) for m in report.mismatched] == ["res3.1.conv1.norm.bias (3,) -> (128,)"]
    with pytest.raises(CheckpointError, match="do not match: 2 tensors"):
        report.require_complete()
    report.require_complete(allow_missing=["res4.*", "res3.1.*"])


def test_other_classes_are_reported_not_refused():
    model, other = detector(["MODEL.ROI_HEADS.NUM_CLASSES", "3"]), detector()
    report = convert(shapes({k: v.shape for k, v in other.state_dict().items()}), model).report
    assert {m.name.split(".")[1] for m in report.mismatched} == {"box_predictor"} and not report.missing
    for name in ("cls_score", "bbox_pred"):
        assert f"roi_heads.box_predictor.{name}.bias" in str(report)


def test_batch_norm_weights_in_a_group_norm_model():
    """The scales would fit and mean something else."""
    published, model = resnet18().state_dict(), on_meta(ContextResNet, norm="GN", **R18)
    with pytest.raises(CheckpointError, match=r"the model's has not: stem.conv1.norm.\*"):
        report_of_start(model, published)
    own = on_meta(ContextResNet, norm="GN").state_dict()
    group_norm = shapes({caffe2_name(k, norm="gn"): v.shape for k, v in own.items()})
    with pytest.raises(CheckpointError, match=r"there: stem.conv1.norm.\*"):
        report_of_start(on_meta(ContextResNet, norm="BN"), group_norm)


def test_a_deeper_network_is_another_one():
    """All tensors of R50 are in a file of R101, and mean something else."""
    overrides = ["MODEL.RESNETS.NUM_GROUPS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"]
    deeper = shapes(read_keys("resnext101_32x8d_keys")["keys"])
    with pytest.raises(CheckpointError, match="the file's backbone has .* depth, norm or blocks differ"):
        report_of_start(detector(overrides), deeper)
    report_of_start(detector(overrides), deeper, allow_missing=["backbone.bottom_up.res4.*"])


def test_unknown_heads_of_a_classifier_are_reported(caplog):
    state = resnet18().state_dict() | {"extra_head.weight": torch.ones(3)}
    report = load_weights(ContextResNet(norm="BN", **R18), state)
    assert report.unexpected == ["extra_head.weight"]
    assert [record.levelname for record in caplog.records if "extra_head" in record.message] == ["WARNING"]


def test_pyramid_and_heads_are_new_to_a_converted_backbone():
    """What the converter wrote for an ImageNet file loads by itself into the detector it was written for."""
    model = detector(["MODEL.CONTEXT.BLOCKS", "[{'NAME': 'NonLocal', 'AT': {'res4': [-2]}}]"])
    keys = {k: v.shape for k, v in model.state_dict().items()}
    trunk = {k: v for k, v in keys.items() if k.startswith("backbone.bottom_up.") and "after_add" not in k}
    report = report_of_start(model, shapes(trunk))
    assert report.origin == "native" and len(report.used) == len(trunk)
    bare = {k.removeprefix("backbone.bottom_up."): v for k, v in trunk.items()} | {
        "stem.fc.weight": (1000, 2048)
    }
    report = report_of_start(model, shapes(bare))
    assert len(report.used) == len(trunk) and list(report.dropped) == ["stem.fc.weight"]


def test_what_fits_nothing():
    model = ContextResNet()
    with pytest.raises(CheckpointError, match="names of no known origin: encoder"):
        load_weights(model, {"encoder.0.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match="not one tensor of origin vit fits"):
        load_weights(model, {"blocks.0.norm1.weight": torch.ones(3)}, origin="vit")
    with pytest.raises(CheckpointError, match="origin 'caffe' is unknown; choose one of native"):
        load_weights(model, {"a": torch.ones(3)}, origin="caffe")


def test_numbers_that_are_not_finite():
    model = ContextResNet(norm="BN", **R18)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["res3.0.conv1.weight"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="res3.0.conv1.weight is not finite"):
        load_weights(model, state)


def test_two_tensors_for_one_parameter():
    state = {"g.conv.weight": torch.ones(2, 4, 1, 1), "g.0.conv.weight": torch.ones(2, 4, 1, 1)}
    with pytest.raises(CheckpointError, match="are the same parameter"):
        load_weights(NonLocal(4), state, origin="mmcv")


def test_errors_name_the_file(tmp_path):
    torch.save({"encoder.weight": torch.ones(3)}, tmp_path / "strange.pth")
    with pytest.raises(CheckpointError, match="strange.pth: names of no known origin"):
        load_weights(ContextResNet(), tmp_path / "strange.pth")


def test_recognition_is_by_one_table_only():
    """Each list of published names fits exactly one origin (mmcv and GCNet apart, see above)."""
    for case, (origin, _) in MODELS.items():
        tensors = shapes(read_keys(case)["keys"])
        assert [s.name for s in SOURCES.values() if s.recognises(tensors)] == [origin], case
    for case, key in (("mae_vit_base_patch16_keys", "keys_encoder"), ("vit_base_patch16_224_keys", "keys")):
        tensors = shapes(read_keys(case)[key])
        assert [s.name for s in SOURCES.values() if s.recognises(tensors)] == ["vit"]
    for origin, stem in (("caffe2", (64, 3, 7, 7)), ("caffe2-video-single", (64, 3, 5, 7, 7))):
        tensors = shapes({"conv1_w": stem, "res2_0_branch2a_w": (64, 64, *(1 for _ in stem[2:]))})
        assert [s.name for s in SOURCES.values() if s.recognises(tensors)] == [origin]


def test_report_is_a_table():
    report = load_weights(ContextResNet(norm="BN", **R18), resnet18().state_dict())
    lines = str(report).splitlines()
    assert lines[0].startswith("weights of origin torchvision, trained with INPUT.FORMAT RGB")
    assert re.match(r"used\s+120", lines[3]) and re.match(r"left out\s+2\s+classifier", lines[-1])


def test_the_config_may_allow_it(tiny_data, tmp_path):
    """What load_weights refuses at the start of a training, MODEL.WEIGHTS_ALLOW_MISSING lets pass."""

    def trainer(*options):
        args = arguments(tiny_data, tmp_path / "run", "MODEL.DEVICE", "cpu", *options)
        return Trainer(load_config(argument_parser().parse_args(args)))

    state = trainer().model.state_dict()
    lacking = next(name for name in state if name.startswith("backbone.") and name.endswith(".weight"))
    torch.save({name: tensor for name, tensor in state.items() if name != lacking}, tmp_path / "w.pth")
    options = ["MODEL.WEIGHTS", str(tmp_path / "w.pth")]
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS_ALLOW_MISSING"):
        trainer(*options).resume_or_load(resume=False)
    allowing = trainer(*options, "MODEL.WEIGHTS_ALLOW_MISSING", f"['{lacking}']")
    allowing.resume_or_load(resume=False)
    loaded = allowing.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items() if name != lacking)
