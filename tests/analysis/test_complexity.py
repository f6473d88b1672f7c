"""Counts against published integers, other counters and hand calculations."""

import pytest
import torch
from detectron2 import model_zoo
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

from nlnet_d2.analysis.complexity import BOXES, DETECTIONS, build_on_meta, measure
from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.blocks.context import GlobalContext
from nlnet_d2.blocks.nonlocal_ import NonLocal


def on_meta(cls, *args, **kwargs):
    with torch.device("meta"):
        return cls(*args, **kwargs).eval()


def stock(name):
    return build_on_meta(model_zoo.get_config(name))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", 41_699_936),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", 44_343_216),
        ("COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml", 107_427_760),
        ("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml", 45_711_152),
    ],
)
def test_parameters_of_stock_models(name, params):
    assert sum(p.numel() for p in stock(name).parameters()) == params


@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian", "concatenation", "dot_product"])
@pytest.mark.parametrize("subsample", [1, 2])
def test_nonlocal_block_by_hand(mode, subsample):
    """800 x 1333 pixels at res4: 50 x 84 positions."""
    channels, inner, positions = 1024, 512, 50 * 84
    keys = positions // subsample**2
    cost = measure(on_meta(NonLocal, channels, mode=mode, subsample=subsample), (channels, 50, 84))
    conv = channels * inner
    convs = conv * (positions + keys)  # W_z and g
    convs += conv * (positions + keys) if mode != "gaussian" else 0  # theta and phi
    pairwise = {
        "embedded_gaussian": positions * keys * 2 * inner,
        "gaussian": positions * keys * (channels + inner),
        "concatenation": positions * keys * inner + (positions + keys) * inner,
        "dot_product": 2 * inner * inner * keys + inner * inner * (positions - keys),
    }
    assert cost.flops == convs + pairwise[mode]
    softmax = mode.endswith("gaussian")
    assert cost.attention_bytes == (4 * positions * keys if softmax else 0)


def test_nonlocal_block_of_the_papers():
    """8.8 G for the convolutions (what the published +9.3 G counts), 18.1 G for the attention; 70.6 MB."""
    cost = measure(on_meta(NonLocal, 1024), (1024, 50, 84))
    convs = sum(flops for name, (_, flops) in cost.modules.items())
    assert round(convs / 1e9, 1) == 8.8
    assert round((cost.flops - convs) / 1e9, 1) == 18.1
    assert round(cost.attention_bytes / 1e6, 1) == 70.6
    assert (
        round(measure(on_meta(NonLocal, 1024, subsample=2), (1024, 50, 84)).attention_bytes / 1e6, 1) == 17.6
    )


def test_gcnet_backbone_as_fvcore_counts_the_original():
    blocks = [{"NAME": "GlobalContext", "AT": dict.fromkeys(("res3", "res4", "res5"), "all")}]
    model = on_meta(ContextResNet, norm="BN", stride_in_1x1=False, blocks=blocks)
    cost = measure(model, (3, 800, 1216))
    assert cost.params == cost.backbone_params == 26_029_773
    assert (
        cost.flops == 79_303_200_768 + 60_313_600
    )  # its convolutions and matrix products, without its norms


def test_convolutions_and_linear_layers_as_fvcore_counts_them():
    layers = [
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(12, 6, 2, stride=2),
        nn.Flatten(),
        nn.Linear(6 * 10 * 14, 5),
    ]
    expected = FlopCountAnalysis(nn.Sequential(*layers), torch.zeros(1, 8, 10, 14)).total()
    assert measure(nn.Sequential(*layers).to("meta"), (8, 10, 14)).flops == expected


class Deformable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = DeformConv2d(8, 16, 3, padding=1, groups=2)

    def forward(self, x):
        return self.conv(x, x.new_zeros(len(x), 18, *x.shape[2:]))


class Attention(nn.Module):
    def forward(self, x):  # (1, L, D)
        heads = x.unflatten(2, (2, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads[:, :, ::2], heads[:, :, ::2])


def test_deformable_convolution_counts_as_a_convolution():
    plain = nn.Conv2d(8, 16, 3, padding=1, groups=2).to("meta")
    assert measure(on_meta(Deformable), (8, 6, 7)).flops == measure(plain, (8, 6, 7)).flops


def test_attention_is_two_matrix_products():
    cost = measure(on_meta(Attention), (10, 24))
    assert cost.flops == 2 * 10 * 5 * (12 + 12)  # heads, queries, keys, channels
    assert cost.attention_bytes == 4 * 2 * 10 * 5
    assert cost.activations == 10 * 24


def test_activations_are_the_outputs_of_convolutions_and_products():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1)).to("meta")
    assert measure(model, (3, 6, 7)).activations == (4 + 5) * 42


def test_detector_counts_heads_on_a_fixed_number_of_boxes():
    model = stock("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    cost = measure(model, (3, 256, 320))
    box = 256 * 49 * 1024 + 1024 * 1024
    assert cost.modules["roi_heads.box_head"][1] == BOXES * box
    conv = 4 * 256 * 256 * 9 * 196 + 256 * 256 * 4 * 196 + 256 * 80 * 784
    assert cost.modules["roi_heads.mask_head"][1] == DETECTIONS * conv
    parts = ("backbone", "proposal_generator", "roi_heads")
    assert sum(cost.modules[name][1] for name in parts) == cost.flops
    assert sum(cost.modules[name][0] for name in parts) == cost.params == 44_343_216
    assert cost.backbone_params == cost.modules["backbone.bottom_up"][0] == 25_557_032 - 2_049_000 - 53_120


def test_cascade_and_keypoint_heads():
    cascade = measure(stock("Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"), (3, 64, 64))
    single = measure(stock("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"), (3, 64, 64))
    heads = [cost.modules["roi_heads.box_head"][1] for cost in (cascade, single)]
    assert heads[0] == 3 * heads[1]
    keypoint = measure(stock("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml"), (3, 64, 64))
    conv = (256 + 7 * 512) * 512 * 9 * 196 + 512 * 17 * 16 * 196
    assert keypoint.modules["roi_heads.keypoint_head"][1] == DETECTIONS * conv


def test_a_dense_detector_counts_its_head_on_every_level():
    """RetinaNet on 256 x 256 pixels: 8 convolutions of 256 channels and two predictors on p3 to p7."""
    model = stock("COCO-Detection/retinanet_R_50_FPN_3x.yaml")
    cost = measure(model, (3, 256, 256))
    positions = sum((256 // stride) ** 2 for stride in (8, 16, 32, 64, 128))
    head = 9 * 256 * positions * (8 * 256 + 9 * 80 + 9 * 4)
    assert cost.modules["head"] == (sum(p.numel() for p in model.head.parameters()), head)
    assert cost.flops == head + cost.modules["backbone"][1]


def test_gc_costs_next_to_nothing():
    cost = measure(on_meta(GlobalContext, 1024), (1024, 50, 84))
    assert cost.flops == 2 * 1024 * 50 * 84 + 2 * 1024 * 64
