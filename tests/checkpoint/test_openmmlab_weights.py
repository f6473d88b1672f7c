"""Weights of mmdetection, GCNet, mmaction2 and mmcv: names, order of the classes, and what they compute."""

import re

import pytest
import torch
from deterministic import compare, golden_state_dict, make_input, make_state_dict, make_tensor, read_keys
from published_weights import assert_complete, detector, on_meta, report_of_start
from torch.nn import functional as F

from nlnet_d2.backbones.video.resnet3d import ResNet3D
from nlnet_d2.backbones.video.slowfast import SlowFast
from nlnet_d2.blocks.context import GlobalContext
from nlnet_d2.blocks.nonlocal_ import NonLocal
from nlnet_d2.checkpoint import load_weights
from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.convert import convert


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
    """mmaction2's name of a parameter of our ResNet3D or SlowFast, written independently of the table."""
    name = name.replace("action_head.classifier", "roi_head.bbox_head.fc_cls")
    name = name.replace("backbone.slow.", "backbone.slow_path.").replace(
        "backbone.fast.", "backbone.fast_path."
    )
    name = name.replace("fuse.stem.", "slow_path.conv1_lateral.")
    for i in (2, 3, 4):
        name = name.replace(f"fuse.res{i}.", f"slow_path.layer{i - 1}_lateral.")
    stages = {"stem.": "", "res2.": "layer1.", "res3.": "layer2.", "res4.": "layer3.", "res5.": "layer4."}
    for ours, theirs in stages.items():
        name = name.replace(ours, theirs)
    name = name.replace("shortcut", "downsample")
    if "norm" in name:
        return name.replace(".norm.", ".bn.")
    return name if "fc_cls" in name else re.sub(r"\.weight$", ".conv.weight", name)


@pytest.mark.parametrize("fusion_norm", [True, False])
def test_mmaction_slowfast(fusion_norm):
    """Lateral connections with a norm and without; which of them the model has, must be known."""
    model = torch.nn.ModuleDict({"backbone": on_meta(SlowFast, fusion_norm=fusion_norm)})
    own = {k: list(v.shape) for k, v in model.state_dict().items() if "tracked" not in k}
    state = make_state_dict({mmaction_name(k): v for k, v in own.items()})
    assert "backbone.slow_path.conv1_lateral.conv.weight" in state and len(state) == len(own)
    assert ("backbone.slow_path.layer3_lateral.bn.bias" in state) == fusion_norm
    conversion = convert(state, model)
    assert_complete(conversion.report, "mmaction")
    for name, tensor in conversion.state.items():
        assert torch.equal(tensor, state[mmaction_name(name)]), name
    other = torch.nn.ModuleDict({"backbone": on_meta(SlowFast, fusion_norm=not fusion_norm)})
    with pytest.raises(CheckpointError, match=r"fuse\.(stem|res\*)\.norm[\s\S]*FUSION_NORM False"):
        report_of_start(other, state)


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
