"""The keypoint head with context blocks."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import KRCNNConvDeconvUpsampleHead, build_keypoint_head
from detectron2.structures import Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import nn

from nlnet_d2 import add_nlnet_config
from nlnet_d2.modeling.keypoint_head import ContextKeypointHead

SHAPE = ShapeSpec(channels=16, height=14, width=14)
EVERY_SECOND = {"NAME": "NonLocal", "AT": {"convs": [1, 3, 5, 7]}}


def head(blocks=(), cls=ContextKeypointHead, **kwargs):
    torch.manual_seed(0)
    extra = {"blocks": blocks} if cls is ContextKeypointHead else {}
    return cls(SHAPE, num_keypoints=17, conv_dims=[32] * 8, **extra, **kwargs)


def config(blocks):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NAME = "ContextKeypointHead"
    cfg.MODEL.ROI_KEYPOINT_HEAD.BLOCKS = blocks
    return cfg


def test_stock_weights_fit_and_the_blocks_change_nothing_at_first():
    stock, ours = head(cls=KRCNNConvDeconvUpsampleHead), head([EVERY_SECOND])
    missing, unexpected = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {f"conv_fcn_relu{i}" for i in (2, 4, 6, 8)}
    x = torch.randn(3, 16, 14, 14)
    assert torch.equal(ours.layers(x), stock.layers(x))


def test_blocks_stand_after_every_second_convolution():
    """The head runs its children in order."""
    children = head([EVERY_SECOND]).children()
    layers = [m for child in children for m in (child if isinstance(child, nn.Sequential) else [child])]
    pair = ["Conv2d", "ReLU", "Conv2d", "ReLU", "NonLocal"]
    assert [type(layer).__name__ for layer in layers] == pair * 4 + ["ConvTranspose2d"]


def test_two_blocks_after_one_convolution_run_in_order():
    blocks = [{"NAME": "GlobalContext", "AT": {"convs": [-1]}}, {"NAME": "NonLocal", "AT": {"convs": [7]}}]
    names = [type(m).__name__ for m in head(blocks).conv_fcn_relu8]
    assert names == ["ReLU", "GlobalContext", "NonLocal"]


def test_parameters_of_the_paper():
    """Four blocks at 512 channels."""
    cfg = config([EVERY_SECOND])
    shape = ShapeSpec(channels=256, height=14, width=14)
    with torch.device("meta"):
        ours = build_keypoint_head(cfg, shape)
        cfg.MODEL.ROI_KEYPOINT_HEAD.BLOCKS = []
        plain = build_keypoint_head(cfg, shape)
    counts = [sum(p.numel() for p in module.parameters()) for module in (ours, plain)]
    assert counts[0] - counts[1] == 4 * 526_592


@pytest.mark.parametrize("boxes", [2, 0])
def test_a_training_step(boxes):
    """Also without a single box, which happens in small batches."""
    model = head([EVERY_SECOND], loss_normalizer="visible")
    instances = Instances((64, 64))
    instances.proposal_boxes = Boxes(torch.tensor([[4.0, 4.0, 40.0, 60.0]] * boxes).reshape(-1, 4))
    instances.gt_keypoints = Keypoints(torch.full((boxes, 17, 3), 20.0))
    with EventStorage():
        losses = model(torch.randn(boxes, 16, 14, 14), [instances])
    losses["loss_keypoint"].backward()
    assert losses["loss_keypoint"].isfinite()
    assert all(p.grad is not None for p in model.parameters())
    if boxes:
        assert model.conv_fcn_relu8[1].norm.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"NAME": "NonLocal", "AT": {"convs": [8]}}, "convs has 8 places, -8 to 7; got 8"),
        ({"NAME": "NonLocal", "AT": {"res4": [0]}}, "there is no stage 'res4'; known: convs"),
        ({**EVERY_SECOND, "POSITION": "after_conv2"}, "a convolution of the head has no after_conv2"),
        ({**EVERY_SECOND, "REDUCTION": 600}, "NonLocal on 512 channels: REDUCTION 600"),
    ],
)
def test_bad_specs_name_the_key(entry, message):
    with pytest.raises(ValueError, match=message) as error:
        build_keypoint_head(config([EVERY_SECOND, entry]), SHAPE)
    assert str(error.value).startswith("MODEL.ROI_KEYPOINT_HEAD.BLOCKS: ")
