"""Weights of ViT and MViT: names, and positions, kernels and offsets of another size."""

import re

import pytest
import torch
from deterministic import make_state_dict, make_tensor, read_keys
from published_weights import assert_complete, detector, shapes

from nlnet_d2.backbones.vit import ViT
from nlnet_d2.checkpoint import load_weights
from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.convert import convert


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


def test_timm_vit_base():
    """All of the published list, for 224 px, starts a detector; what is new to it is as for MAE."""
    golden = read_keys("vit_base_patch16_224_keys")["keys"]
    model = detector(file="configs/coco/mask_rcnn_vitdet_b_100ep.yaml")
    report = convert(shapes(golden), model).report
    assert report.origin == "vit" and not report.unexpected and not report.mismatched
    assert set(report.dropped) == {"cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert len(report.used) == len(golden) - len(report.dropped)
    backbone = [name for name in report.missing if name.startswith("backbone.net.")]
    assert backbone and all("rel_pos_" in name for name in backbone)


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
    first = make_tensor("kernel.weight", (32, 3, 1, 1))
    kernel = (first + torch.arange(32.0)[:, None]).expand(32, 3, 32, 32)  # a ramp over a patch
    changes = {"pos_embed": torch.cat([token, grid.flatten(1, 2)], dim=1), "patch_embed.proj.weight": kernel}
    load_weights(model, timm_vit(model, **changes))
    assert torch.equal(model.pos_embed[:, :1], token)
    inner = model.pos_embed[0, 1:, 0].reshape(4, 4)[1:3, 1:3]  # away from the border bicubic keeps a plane
    assert torch.allclose(inner, torch.tensor([[22.5, 24.5], [38.5, 40.5]]), atol=0.5)
    expected = (first + torch.arange(0.5, 32, 2)[:, None]).expand(32, 3, 16, 16)
    assert torch.allclose(model.patch_embed.proj.weight[:, :, 1:-1], expected[:, :, 1:-1], atol=1e-4)
    without_token = tiny_vit(pretrain_use_cls_token=False)
    state = timm_vit(model, pos_embed=make_tensor("pos_embed", (1, 17, 32)))
    load_weights(without_token, state)
    assert torch.equal(without_token.pos_embed, state["pos_embed"][:, 1:])


def test_positions_that_are_no_square_map(tiny_vit):
    """Of a map of 4 x 6, say: 25 - 1 is no square, and neither is 24."""
    model = tiny_vit()
    state = timm_vit(model, pos_embed=make_tensor("pos_embed", (1, 24, 32)))
    with pytest.raises(CheckpointError, match="24 absolute positions are no square map .* be interpolated"):
        load_weights(model, state)


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
