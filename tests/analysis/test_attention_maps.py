"""Recorded attention is what the networks apply; without recording nothing is attached to them."""

import math

import pytest
import torch

from nlnet_d2.analysis.attention_maps import grid_points, query_difference, record_attention
from nlnet_d2.backbones.mvit import MViT
from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.backbones.video.resnet3d import ResNet3D
from nlnet_d2.backbones.video.slowfast import SlowFast
from nlnet_d2.backbones.vit import Attention, ViT
from nlnet_d2.blocks.context import GlobalContext, SimplifiedNonLocal
from nlnet_d2.blocks.nonlocal_ import MODES, NonLocal


def context_resnet(*blocks: dict) -> ContextResNet:
    return ContextResNet(depth=18, norm="GN", stem_channels=32, res2_channels=32, blocks=blocks)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("subsample", [1, 2])
def test_rows_of_non_local_blocks(mode, subsample):
    block, x = NonLocal(8, mode=mode, subsample=subsample), torch.randn(2, 8, 5, 6)
    rows = block.attention_rows(x, torch.tensor([[0.5, 0.9]]))
    assert rows.shape == (2, 1, 1, 5 // subsample, 6 // subsample)
    torch.testing.assert_close(rows.flatten(3)[:, 0, 0], block.attention(x)[:, 2 * 6 + 5])


def test_rows_of_clip_blocks():
    block, x = NonLocal(8, dim=3, subsample=2), torch.randn(1, 8, 4, 6, 6)
    rows = block.attention_rows(x, torch.tensor([[0.6, 0.2, 0.4]]))
    assert rows.shape == (1, 1, 1, 4, 3, 3)
    torch.testing.assert_close(rows.flatten(3)[:, 0, 0], block.attention(x)[:, 2 * 36 + 1 * 6 + 2])


@pytest.mark.filterwarnings("error:Converting a tensor with requires_grad")
@pytest.mark.parametrize("block", [SimplifiedNonLocal(8), GlobalContext(8, reduction=2)])
def test_context_blocks_look_the_same_from_everywhere(block):
    x = torch.randn(2, 8, 5, 6)
    rows = block.attention_rows(x, grid_points((2, 2)))
    assert rows.shape == (2, 4, 1, 5, 6)
    torch.testing.assert_close(rows[:, 3].flatten(2), block.attention(x))
    difference = query_difference(rows)
    assert difference.cosine == pytest.approx(0, abs=1e-7)
    assert difference.jensen_shannon == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("window", [0, 4])
def test_rows_of_vit_are_what_forward_applies(window):
    attention = Attention(16, num_heads=2, size=4)
    torch.nn.init.normal_(attention.rel_pos_h)
    x = torch.randn(1, 8, 8, 16)
    rows = attention.attention_rows(x, grid_points((8, 8)), window).nan_to_num(0)  # (1, 64, 2, 8, 8)
    values = attention.qkv(x)[..., 32:].flatten(1, 2).unflatten(-1, (2, 8))  # (1, 64, heads, 8)
    out = torch.einsum("nqhk,nkhc->nqhc", rows.flatten(3), values).flatten(2)
    torch.testing.assert_close(attention.proj(out).unflatten(1, (8, 8)), attention(x, window))


@pytest.mark.parametrize("number", range(4))
def test_rows_of_mvit_are_what_forward_applies(number):
    network = MViT(img_size=64, embed_dim=8, depths=(1, 2, 1, 0), window_size=8, kv_stride=4)
    attention = network.blocks[number].attn
    torch.nn.init.normal_(attention.rel_pos_w)
    side = attention.shape.size
    x = torch.randn(1, side, side, attention.shape.dim)
    q, _, v = attention._maps(x)
    rows = attention.attention_rows(x, grid_points(q.shape[1:3])).nan_to_num(0)
    values = v.flatten(1, 2).unflatten(-1, (attention.shape.heads, -1))
    out = torch.einsum("nqhk,nkhc->nqhc", rows.flatten(3), values).flatten(2) + q.flatten(1, 2)
    torch.testing.assert_close(attention.proj(out).unflatten(1, q.shape[1:3]), attention(x))


NETWORKS = {
    "context_resnet": lambda: context_resnet(
        {"NAME": "NonLocal", "AT": {"res4": [0]}, "NORM": "GN"},
        {"NAME": "GlobalContext", "AT": {"res5": [1]}},
    ),
    "vit": lambda: ViT(
        img_size=64, embed_dim=16, depth=2, num_heads=2, window_size=2, global_block_indexes=(1,)
    ),
    "mvit": lambda: MViT(img_size=64, embed_dim=8, depths=(1, 1, 1, 1), window_size=8),
    "slowfast": lambda: SlowFast(
        depth=14, stem_channels=16, width=16, res2_channels=32,
        blocks=[{"NAME": "NonLocal", "AT": {"res4": [0]}}],
    ),
    "i3d": lambda: ResNet3D(
        arch="i3d", depth=14, stem_channels=8, width=8, res2_channels=16,
        blocks=[{"NAME": "NonLocal", "AT": {"res3": [0]}}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_all_families(name):
    network = NETWORKS[name]().eval()
    clip = name in ("slowfast", "i3d")
    x = torch.randn(1, 3, 8, 64, 64) if clip else torch.randn(1, 3, 64, 96)
    points = grid_points((2, 2, 2) if clip else (2, 2))
    with torch.no_grad():
        before = network(x)
        with record_attention(network, points) as maps:
            during = network(x)
    assert all(torch.equal(before[key], during[key]) for key in before)
    assert maps
    for rows in maps.values():
        assert rows.shape[:2] == (1, len(points))
        assert rows.ndim == 3 + points.shape[1]
        torch.testing.assert_close(rows.nansum(tuple(range(3, rows.ndim))), torch.ones(rows.shape[:3]))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_squeeze_excitation_has_no_attention():
    network = context_resnet({"NAME": "SqueezeExcitation", "AT": {"res4": [0]}})
    with (
        pytest.raises(ValueError, match="no module with attention"),
        record_attention(network, grid_points((2, 2))),
    ):
        pass


def test_points_are_fractions():
    network = context_resnet({"NAME": "NonLocal", "AT": {"res4": [0]}})
    with (
        pytest.raises(ValueError, match="fractions"),
        record_attention(network, torch.tensor([[20.0, 30.0]])),
    ):
        pass


def test_hooks_go_after_an_error():
    network = context_resnet({"NAME": "NonLocal", "AT": {"res4": [0]}})
    with pytest.raises(RuntimeError), record_attention(network, grid_points((2, 2))):
        network(torch.zeros(1, 7, 64, 64))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_difference_as_gcnet_defines_it():
    """Two of four maps are alike, the others share no position: 10 of 16 pairs are as far as can be."""
    rows = torch.eye(4)[[0, 0, 1, 2]].view(1, 4, 1, 2, 2)
    difference = query_difference(rows)
    assert difference.cosine == pytest.approx(10 / 16 * 0.5)
    assert difference.jensen_shannon == pytest.approx(10 / 16 * math.log(2))


def test_difference_is_the_mean_over_heads():
    rows = torch.stack([torch.eye(4)[[0, 1]], torch.eye(4)[[3, 3]]], 1).view(1, 2, 2, 2, 2)
    assert query_difference(rows).cosine == pytest.approx((0.25 + 0) / 2)


def test_only_queries_of_one_window_are_compared():
    nan = math.nan
    rows = torch.tensor([[1, 0, nan, nan], [1, 0, nan, nan], [nan, nan, 1, 0]]).view(1, 3, 1, 1, 4)
    assert query_difference(rows).cosine == 0


def test_negative_maps_are_no_distributions():
    rows = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).view(1, 2, 1, 1, 2)
    difference = query_difference(rows)
    assert difference.cosine == pytest.approx(0.25)
    assert math.isnan(difference.jensen_shannon)


def test_one_query_has_nothing_to_differ_from():
    with pytest.raises(ValueError, match="two or more"):
        query_difference(torch.ones(1, 1, 1, 2, 2))
