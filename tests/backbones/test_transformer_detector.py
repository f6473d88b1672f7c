"""Whole detectors on transformers, from YAML: training step, inference on images of any size."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from nlnet_d2 import add_nlnet_config

QUICKSTART = ["mask_rcnn_vitdet_shapes", "mask_rcnn_mvitv2_shapes"]


def config(name: str, *options):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.merge_from_file(f"configs/quickstart/{name}.yaml", allow_unsafe=False)
    heads = ["MODEL.ROI_BOX_HEAD.NAME", "LayerNormBoxHead", "MODEL.ROI_MASK_HEAD.NAME", "LayerNormMaskHead"]
    norms = [
        "MODEL.ROI_BOX_HEAD.NUM_CONV",
        1,
        "MODEL.ROI_BOX_HEAD.NORM",
        "LN",
        "MODEL.ROI_MASK_HEAD.NORM",
        "LN",
    ]
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *heads, *norms, *options])
    return cfg


def sample(height: int, width: int, boxes: list[list[float]]) -> dict:
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    masks[:, 20:60, 20:60] = True
    instances.gt_masks = BitMasks(masks)
    return {"image": torch.rand(3, height, width) * 255, "instances": instances}


@pytest.mark.parametrize("name", QUICKSTART)
def test_training_step(name):
    """Images of unequal size, one of them without an object; every parameter gets a finite gradient."""
    torch.manual_seed(0)
    model = build_model(config(name)).train()
    batch = [sample(96, 160, [[20.0, 20, 60, 60]]), sample(150, 77, [])]
    with EventStorage():
        losses = model(batch)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    sum(losses.values()).backward()
    broken = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not broken


@pytest.mark.parametrize("name", QUICKSTART)
def test_heads_have_the_norm(name):
    heads = build_model(config(name, "MODEL.DEVICE", "meta")).roi_heads
    for norm in (heads.box_head.conv1.norm, heads.mask_head.mask_fcn1.norm):
        assert isinstance(norm, nn.LayerNorm) and norm.eps == 1e-6


@pytest.mark.parametrize("name", QUICKSTART)
@pytest.mark.parametrize("hw", [(97, 131), (300, 40), (160, 160)])
def test_default_predictor(name, hw):
    predictor = DefaultPredictor(config(name, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0))
    image = np.random.default_rng(0).integers(0, 255, (*hw, 3), dtype=np.uint8)
    instances = predictor(image)["instances"]
    assert len(instances) and instances.image_size == hw
    assert instances.pred_masks.shape[1:] == hw and instances.scores.isfinite().all()


def test_an_image_larger_than_the_square_is_refused():
    """Upstream crops it at the right and bottom and says nothing."""
    predictor = DefaultPredictor(config(QUICKSTART[0], "INPUT.MAX_SIZE_TEST", 400))
    with pytest.raises(
        ValueError, match="larger than MODEL.FPN.SQUARE_PAD 160: the batch is 160 x 320; lower"
    ):
        predictor(np.zeros((100, 200, 3), np.uint8))
