"""Published names of ResNets, for images and clips, onto our models: all used, each where it belongs."""

import numpy as np
import pytest
import torch
from deterministic import golden_state_dict, make_input, make_state_dict, make_tensor, read_keys
from published_weights import (
    TORCHVISION,
    assert_complete,
    caffe2_name,
    detector,
    on_meta,
    report_of_start,
    shapes,
)
from torch.nn import functional as F

from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.backbones.resnet_v2 import ResNetV2
from nlnet_d2.backbones.video.resnet3d import ResNet3D
from nlnet_d2.backbones.video.slowfast import SlowFast
from nlnet_d2.checkpoint import load_weights
from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.convert import convert
from nlnet_d2.checkpoint.read import read_tensors
from nlnet_d2.checkpoint.sources import SOURCES

GC = {"NAME": "GlobalContext", "AT": {"res3": "all", "res4": "all", "res5": "all"}, "POSITION": "after_conv3"}
FIVE_BLOCKS = [{"NAME": "NonLocal", "AT": {"res3": [1, 3], "res4": [1, 3, 5]}, "SUBSAMPLE": [1, 2, 2]}]
# One (published name, our name) per kind of layer, written out by hand: the tables are tested against these.
LANDS = {
    "resnet50_keys": {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_var": "stem.conv1.norm.running_var",
        "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "layer4.0.downsample.1.bias": "res5.0.shortcut.norm.bias",
        "layer3.5.bn2.running_mean": "res4.5.conv2.norm.running_mean",
    },
    "resnetv2_50x1_bit": {
        "stem.conv.weight": "stem.conv1.weight",
        "stages.0.blocks.0.downsample.conv.weight": "res2.0.shortcut.weight",
        "stages.2.blocks.5.norm3.bias": "res4.5.norm3.bias",
        "norm.weight": "res5.3.norm.weight",
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
    "resnetv2_50x1_bit": ("bit-timm", ResNetV2),
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


REFUSED = {
    "vit-hybrid": {
        "conv_root/kernel": [7, 7, 3, 64],
        "embedding/kernel": [1, 1, 1024, 768],
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel": [768, 12, 64],
    },
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


def bit_name(name):
    """Google's name in ``BiT-*.npz``, written independently of the table."""
    if name == "stem.conv1.weight":
        return "resnet/root_block/standardized_conv2d/kernel"
    stage, unit, layer, kind = name.replace("norm.", "last.").replace("shortcut.", "shortcut0.").split(".")
    part = {"weight": "gamma", "bias": "beta"}[kind]
    if layer == "last":
        return f"resnet/group_norm/{part}"
    where = f"resnet/block{int(stage[3]) - 1}/unit{int(unit) + 1:02d}"
    letter = "aabc"[int(layer[-1])]
    if layer.startswith("norm"):
        return f"{where}/{letter}/group_norm/{part}"
    return f"{where}/{letter}/{'proj/' * layer.startswith('shortcut')}standardized_conv2d/kernel"


@pytest.mark.parametrize("depth", [50, 152])
def test_bit_of_google(depth, tmp_path):
    """Kernels (H, W, I, O) and norms of the real layout, from a file, land where timm's names do."""
    model = on_meta(ResNetV2, depth=depth)
    ours = {name: make_tensor(name, value.shape[:1]) for name, value in model.state_dict().items()}
    for name, value in model.state_dict().items():
        if value.ndim == 4:
            ours[name] = torch.arange(value.numel(), dtype=torch.float32).view(value.shape)
    blobs = {bit_name(name): v.permute(2, 3, 1, 0) if v.ndim == 4 else v for name, v in ours.items()}
    assert "resnet/block1/unit01/a/proj/standardized_conv2d/kernel" in blobs and len(blobs) == len(ours)
    assert f"resnet/block3/unit{6 if depth == 50 else 36:02d}/c/group_norm/beta" in blobs
    blobs |= {
        "resnet/head/conv2d/kernel": torch.zeros(1, 1, 2048, 10),
        "resnet/head/conv2d/bias": torch.zeros(10),
    }
    np.savez(tmp_path / "BiT-M.npz", **{name: v.numpy() for name, v in blobs.items()})
    conversion = convert(read_tensors(tmp_path / "BiT-M.npz"), model)
    assert_complete(conversion.report, "bit")
    assert set(conversion.report.dropped) == {"resnet/head/conv2d/kernel", "resnet/head/conv2d/bias"}
    assert all(torch.equal(conversion.state[name], tensor) for name, tensor in ours.items())


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


@pytest.mark.parametrize("case", ["slowfast_r50_detection_keys", "slow_r50_detection_keys"])
def test_the_report_says_how_detectors_of_pytorchvideo_pool(case):
    """Their RoIAlign is torchvision's, by default not aligned; the weights fit either way."""
    conversion = convert(golden_state_dict(read_keys(case)), on_meta(MODELS[case][1]))
    assert "POOLER_TYPE ROIAlign in detection models" in str(conversion.report)


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
