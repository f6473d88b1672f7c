"""The transformer recipes of configs/coco build, with the parameters that were published."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from deterministic import read_keys

from nlnet_d2 import add_nlnet_config

COCO = Path(__file__).parents[2] / "configs" / "coco"
RECIPES = sorted([*COCO.glob("*vitdet*.yaml"), *COCO.glob("*mvitv2*.yaml")])
# Millions of parameters of the whole detector, as printed in the papers.
PUBLISHED = {
    "mask_rcnn_vitdet_b_100ep": 111,
    "mask_rcnn_vitdet_l_100ep": 331,
    "mask_rcnn_vitdet_h_75ep": 662,
    "cascade_mask_rcnn_vitdet_b_100ep": 141,
    "cascade_mask_rcnn_vitdet_l_100ep": 361,
    "cascade_mask_rcnn_vitdet_h_75ep": 692,
    "mask_rcnn_mvitv2_t_3x": 44,
    "mask_rcnn_mvitv2_s_3x": 54,
    "mask_rcnn_mvitv2_b_3x": 71,
    "mask_rcnn_mvitv2_l_3x": 238,
    "cascade_mask_rcnn_mvitv2_t_3x": 76,
    "cascade_mask_rcnn_mvitv2_s_3x": 87,
    "cascade_mask_rcnn_mvitv2_b_3x": 103,
    "cascade_mask_rcnn_mvitv2_l_3x": 270,
    "cascade_mask_rcnn_mvitv2_h_in21k_lsj_3x": 718,
}


def load(path: Path):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.merge_from_file(str(path), allow_unsafe=False)
    cfg.MODEL.DEVICE = "meta"
    return cfg


def build(path: Path):
    with torch.device("meta"):
        return build_model(load(path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_builds(path):
    model = build(path)
    if path.stem in PUBLISHED:
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        assert parameters == pytest.approx(PUBLISHED[path.stem], abs=1)


def test_every_published_row_has_its_recipe():
    assert set(PUBLISHED) <= {path.stem for path in RECIPES}


@pytest.mark.parametrize(
    "recipe, reference", [("mask_rcnn_vitdet_b_100ep", "vitdet_b"), ("mask_rcnn_mvitv2_t_3x", "mvitv2_t")]
)
def test_names_are_those_of_detectron2(recipe, reference):
    """Every name and shape of the whole Mask R-CNN, so that published detectors load."""
    case = read_keys(f"{reference}_keys")
    expected = case["full_model"]["keys"] | {
        f"backbone.{name}": shape for name, shape in case["keys"].items()
    }
    model = build(COCO / f"{recipe}.yaml")
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_schedule_ends_in_order(path):
    solver = load(path).SOLVER
    assert solver.OPTIMIZER == "AdamW" and solver.AMP.ENABLED
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        first, second = solver.STEPS
        assert 0.7 < first / solver.MAX_ITER < second / solver.MAX_ITER < 0.97
