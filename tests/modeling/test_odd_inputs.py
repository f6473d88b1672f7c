"""Images without objects, of one pixel, none at all; detectors that find nothing: for each kind of head."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from tiny_run import CONFIG

from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.engine.config import argument_parser, load_config

NO_DATA = ("DATASETS.TRAIN", "[]", "DATASETS.TEST", "[]", "MODEL.DEVICE", "cpu")
KEYPOINTS = ("MODEL.MASK_ON", "False", "MODEL.KEYPOINT_ON", "True")
KEYPOINTS += ("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "[16, 16]")
KINDS = {
    "mask": (),
    "cascade": (
        "MODEL.ROI_HEADS.NAME",
        "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        "True",
    ),
    "keypoint": KEYPOINTS,
    "context keypoint": (
        *KEYPOINTS,
        *("MODEL.ROI_KEYPOINT_HEAD.NAME", "ContextKeypointHead"),
        *("MODEL.ROI_KEYPOINT_HEAD.BLOCKS", "[{'NAME': 'NonLocal', 'AT': {'convs': [1]}}]"),
    ),
}


def build(kind, *options):
    words = ["--config-file", str(CONFIG), *NO_DATA, *KINDS[kind], *options]
    return build_model(load_config(argument_parser().parse_args(words)))


def image(objects, size=(64, 64)):
    target = Instances(size)
    target.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 48.0]]).repeat(objects, 1))
    target.gt_classes = torch.zeros(objects, dtype=torch.long)
    target.gt_masks = PolygonMasks([[[8.0, 8.0, 40.0, 8.0, 40.0, 48.0]]] * objects)
    target.gt_keypoints = Keypoints(torch.full((objects, 17, 3), 20.0))
    return {"image": torch.randint(0, 256, (3, *size)).float(), "instances": target}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objects", [(0, 0), (0, 1)])
def test_training_on_images_without_objects(kind, objects):
    """Every parameter has a gradient, or processes that train together would wait for each other."""
    model = build(kind).train()
    with EventStorage():
        losses = model([image(count) for count in objects])
    assert all(loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 64, 64), (1, 3, 1, 1)])
def test_deformable_convolutions_of_no_images_and_of_one_pixel(shape, modulated):
    backbone = ContextResNet(deform_on_per_stage=[False, True, True, True], deform_modulated=modulated)
    maps = backbone(torch.zeros(shape))
    assert [tuple(x.shape[:2]) for x in maps.values()] == [(shape[0], 256 * 2**i) for i in range(4)]
    sum(x.sum() for x in maps.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (64, 48)])
def test_predictions_on_odd_images(kind, size):
    """With a threshold that nothing passes, and with one that everything does."""
    for threshold in ("1.0", "0.0"):
        model = build(kind, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", threshold).eval()
        with torch.no_grad():
            (found,) = model([{"image": image(0, size)["image"], "height": size[0], "width": size[1]}])
        instances = found["instances"]
        assert instances.image_size == size and (threshold == "0.0" or len(instances) == 0)
        assert instances.pred_boxes.tensor.isfinite().all()
        if "keypoint" in kind:
            assert instances.pred_keypoints.shape == (len(instances), 17, 3)
        else:
            assert instances.pred_masks.shape == (len(instances), *size)
