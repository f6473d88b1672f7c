"""Every published row has its recipe, and its recipe the published number: a second copy, by source.

Box and mask AP (keypoint AP for keypoint_rcnn) on COCO val2017, typed from the sources and not from the
configs. Ablations whose table could not be read are recipes too, listed without a number.
"""

import re
from pathlib import Path

import pytest

from nlnet_d2.analysis import zoo

COCO = Path(__file__).parents[2] / "configs" / "coco"
NON_LOCAL = {  # arXiv 1711.07971, section 6
    "mask_rcnn_R50_FPN_msra_1x": "38.0 34.6",
    "mask_rcnn_nl_R50_FPN": "39.0 35.5",
    "mask_rcnn_R101_FPN_msra_1x": "39.5 36.0",
    "mask_rcnn_nl_R101_FPN": "40.8 37.1",
    "mask_rcnn_X152_FPN_1x": "44.1 39.7",
    "mask_rcnn_nl_X152_FPN": "45.0 40.3",
    "keypoint_rcnn_R101_FPN_1x": "65.1",
    "keypoint_rcnn_nl_head_R101_FPN_1x": "66.0",
    "keypoint_rcnn_nl_head_backbone_R101_FPN_1x": "66.5",
}
GCNET = {  # README of xvjiarui/GCNet: without blocks, r16, r4
    "mask_rcnn_{}R50_FPN_1x": "37.3 34.2, 38.5 35.1, 38.9 35.5",
    "mask_rcnn_{}R50_FPN_2x": "38.2 34.9, 39.7 36.1, 40.0 36.2",
    "mask_rcnn_{}R50_FPN_syncbn_1x": "37.2 33.8, 39.4 35.7, 39.9 36.2",
    "mask_rcnn_{}R50_FPN_syncbn_2x": "37.7 34.3, 39.7 36.0, 40.2 36.3",
    "mask_rcnn_{}R50_FPN_syncbn_4conv1fc_1x": "38.8 34.6, 41.0 36.5, 41.4 37.0",
    "mask_rcnn_{}R101_FPN_1x": "39.4 35.9, 40.8 37.0, 40.8 36.9",
    "mask_rcnn_{}R101_FPN_syncbn_1x": "39.8 36.0, 41.1 37.4, 41.7 37.6",
    "mask_rcnn_{}X101_32x4d_FPN_syncbn_1x": "41.2 37.3, 42.4 38.0, 42.9 38.5",
    "cascade_mask_rcnn_{}X101_32x4d_FPN_syncbn_1x": "44.7 38.3, 45.9 39.3, 46.5 39.7",
    "cascade_mask_rcnn_{}X101_32x4d_dcn_FPN_syncbn_1x": "47.1 40.4, 47.9 40.9, 47.9 40.8",
}
GCNET_ABLATIONS = (  # arXiv 1904.11492, tables 1 to 4: what differs from R50 with SyncBN
    "nl snl snl_all se_r16 gc_r16_one gc_r16_after_add gc_r8 gc_r32 gc_r16_c3 gc_r16_c4 gc_r16_c5 "
    "gc_r16_c4c5 gc_r16_avg_mul gc_r16_avg_add gc_r16_att_mul gc_r16_linear gc_r16_relu"
)
DETECTRON_GN = {  # Detectron, projects/GN
    "mask_rcnn_R50_FPN_msra_2x": "38.6 34.5",
    "mask_rcnn_R50_FPN_msra_3x": "38.9 34.3",
    "mask_rcnn_R50_FPN_msra_4conv1fc_2x": "38.8 34.4",
    "mask_rcnn_R101_FPN_msra_2x": "40.9 36.4",
    "mask_rcnn_R50_FPN_gn_2x": "40.3 35.7",
    "mask_rcnn_R101_FPN_gn_2x": "41.8 36.8",
    "mask_rcnn_R50_FPN_gn_3x": "40.8 36.1",
    "mask_rcnn_R101_FPN_gn_3x": "42.3 37.2",
    "mask_rcnn_R50_FPN_gn_scratch_3x": "39.5 35.2",
    "mask_rcnn_R101_FPN_gn_scratch_3x": "41.0 36.4",
}
RETHINKING = {  # arXiv 1811.08883
    "mask_rcnn_R50_FPN_gn_scratch_{}": {"2x": "36.8", "4x": "40.6", "5x": "40.7", "6x": "41.3 36.6"},
    "mask_rcnn_R50_FPN_gn_{}": {"4x": "40.9", "5x": "40.9", "6x": "41.1 36.4"},
    "mask_rcnn_R101_FPN_gn_scratch_{}": {
        "2x": "38.2",
        "4x": "41.8",
        "5x": "42.2",
        "6x": "42.7 37.6",
        "9x_ms": "45.0 39.5",
    },
    "mask_rcnn_R101_FPN_gn_{}": {"4x": "42.3", "5x": "41.9", "6x": "42.2"},
    "mask_rcnn_X152_FPN_gn_scratch_{}": {"9x_ms": "46.4 40.5"},
    "cascade_mask_rcnn_X152_FPN_gn_scratch_{}": {"9x_ms": "48.6 41.4"},
    "keypoint_rcnn_R50_FPN_gn_{}": {"2x": "65.5", "scratch_2x": "65.6"},
}
DETECTRON2 = {  # MODEL_ZOO of Detectron2
    "mask_rcnn_R50_FPN_msra_3x_ms": "41.0 37.2",
    "mask_rcnn_R50_FPN_gn_3x_ms": "42.6 38.6",
    "mask_rcnn_R50_FPN_syncbn_4conv1fc_3x_ms": "41.9 37.8",
    "mask_rcnn_R50_FPN_gn_scratch_3x_ms": "39.9 36.6",
    "mask_rcnn_R50_FPN_gn_scratch_9x_ms": "43.7 39.6",
    "mask_rcnn_R50_FPN_syncbn_scratch_9x_ms": "43.6 39.3",
    "cascade_mask_rcnn_X152_dcn_FPN_gn_head_IN5k": "50.2 44.0",
    "mask_rcnn_R50_FPN_syncbn_scratch_lsj_100ep": "44.6 40.3",
    "mask_rcnn_R50_FPN_syncbn_scratch_lsj_200ep": "46.3 41.7",
    "mask_rcnn_R50_FPN_syncbn_scratch_lsj_400ep": "47.4 42.5",
    "mask_rcnn_R101_FPN_syncbn_scratch_lsj_100ep": "46.4 41.6",
    "mask_rcnn_R101_FPN_syncbn_scratch_lsj_200ep": "48.0 43.1",
    "mask_rcnn_R101_FPN_syncbn_scratch_lsj_400ep": "48.9 43.7",
}
MMDETECTION = {"faster_rcnn_R50_FPN_gn_scratch_6x": "40.7"}


def _rows() -> list[tuple[str, str, str]]:
    """(recipe, its AP, a part of the name of its source)."""
    rows = [(name, ap, "1711.07971") for name, ap in NON_LOCAL.items()]
    for name, aps in GCNET.items():
        for block, ap in zip(("", "gc_r16_", "gc_r4_"), aps.split(", "), strict=True):
            rows.append((name.format(block), ap, "xvjiarui/GCNet"))
    rows += [(name, ap, "Detectron, projects/GN") for name, ap in DETECTRON_GN.items()]
    rows += [(n.format(x), ap, "1811.08883") for n, row in RETHINKING.items() for x, ap in row.items()]
    rows += [(name, ap, "MODEL_ZOO") for name, ap in DETECTRON2.items()]
    return rows + [(name, ap, "mmdetection") for name, ap in MMDETECTION.items()]


ROWS = _rows()
ABLATIONS = [f"mask_rcnn_{what}_R50_FPN_syncbn_1x" for what in GCNET_ABLATIONS.split()]


@pytest.mark.parametrize(("name", "ap", "source"), ROWS)
def test_number_and_source(name, ap, source):
    header = zoo.header(COCO / f"{name}.yaml")
    published = zoo.quoted("Published", header)
    kinds = ["keypoints"] if name.startswith("keypoint") else ["box", "mask"]
    expected = ", ".join(f"{kind} {value}" for kind, value in zip(kinds, ap.split(), strict=False))
    assert published.startswith(f"{expected} (") and source in published.split(")")[0]


@pytest.mark.parametrize("name", ABLATIONS)
def test_number_that_was_not_verified_is_not_printed(name):
    header = zoo.header(COCO / f"{name}.yaml")
    assert "arXiv 1904.11492) and not verified here" in header
    assert not zoo.quoted("Published", header)


def test_no_convolutional_recipe_is_left_out():
    """A new one needs its row here."""
    known = {name for name, _, _ in ROWS} | set(ABLATIONS)
    recipes = {path.stem for path in COCO.glob("*.yaml")}
    assert known == {name for name in recipes if not re.search("vit|_bit_", name)}
