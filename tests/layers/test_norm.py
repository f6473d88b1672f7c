"""Normalisation by name, in two and three dimensions."""

import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn

from nlnet_d2.layers.norm import get_norm, is_constant, norm_argument

NAMES = ["BN", "SyncBN", "FrozenBN", "GN", "LN"]


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_is_normalised_as_an_image_of_all_its_frames(name):
    """The statistics of a clip are those of its frames side by side; LN has them per position."""
    clip = torch.randn(2, 64, 3, 4, 5) * 3 + 1
    image = clip.flatten(2, 3)  # (N, C, T * H, W)
    norms = [get_norm(name, 64, dim) for dim in (2, 3)]
    for norm in norms:
        for key, value in norm.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.linspace(0.5, 2, 64) if "bias" not in key else torch.linspace(-1, 1, 64))
    for training in (True, False):
        out2, out3 = (n.train(training)(x) for n, x in zip(norms, (image, clip), strict=True))
        torch.testing.assert_close(out3.flatten(2, 3), out2)


def test_ln_normalises_the_channels_of_each_position():
    for shape in [(2, 8, 3, 4), (2, 8, 2, 3, 4)]:
        out = get_norm("LN", 8, len(shape) - 2)(torch.randn(shape) * 4 + 2)
        torch.testing.assert_close(out.mean(1), torch.zeros_like(out[:, 0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(out.var(1, unbiased=False), torch.ones_like(out[:, 0]), atol=1e-4, rtol=0)
        assert isinstance(
            get_norm("LN", 8, len(shape) - 2), nn.LayerNorm
        )  # SOLVER.WEIGHT_DECAY_NORM knows it


def test_sub_batches_are_normalised_on_their_own():
    """The output is that of BN on each 8 clips, the statistics are those of all."""
    clips = torch.randn(16, 4, 2, 3, 3) * 2
    clips[8:] += 5
    norm, plain = get_norm("SubBN", 4, 3), get_norm("BN", 4, 3)
    norm.load_state_dict(plain.state_dict())
    out = norm(clips)
    torch.testing.assert_close(out, torch.cat([get_norm("BN", 4, 3)(half) for half in clips.split(8)]))
    plain(clips)
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var, rtol=0.01, atol=0)  # but for Bessel
    norm.running_mean.copy_(plain.running_mean)
    norm.running_var.copy_(plain.running_var)
    torch.testing.assert_close(norm.eval()(clips), plain.eval()(clips))
    with pytest.raises(ValueError, match="SubBN needs a multiple of 8 clips per process, got 12"):
        norm.train()(clips[:12])


def test_frozen_norms_have_no_parameters():
    for dim in (2, 3):
        norm = get_norm("FrozenBN", 8, dim)
        assert not list(norm.parameters())
        assert {"weight", "bias", "running_mean", "running_var"} <= set(norm.state_dict())


@pytest.mark.parametrize("dim", [2, 3])
def test_errors_name_the_norm_and_the_remedy(dim):
    with pytest.raises(ValueError, match="GN has 32 groups, which do not divide 48 channels; choose"):
        get_norm("GN", 48, dim)
    with pytest.raises(ValueError, match="NORM: 'BatchNorm' is unknown; choose one of BN, SyncBN"):
        get_norm("BatchNorm", 64, dim)
    assert get_norm("", 64, dim) is None


def test_norm_argument_is_accepted_by_detectron2():
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead

    shape = ShapeSpec(channels=64, height=7, width=7)
    head = FastRCNNConvFCHead(shape, conv_dims=[64], fc_dims=[8], conv_norm=norm_argument("LN"))
    assert isinstance(head.conv1, Conv2d) and isinstance(head.conv1.norm, nn.LayerNorm)
    assert head.conv1.bias is None
    head = FastRCNNConvFCHead(shape, conv_dims=[64], fc_dims=[8], conv_norm=norm_argument(""))
    assert head.conv1.norm is None and head.conv1.bias is not None
    with pytest.raises(ValueError, match="which do not divide 48 channels"):
        FastRCNNConvFCHead(shape, conv_dims=[48], fc_dims=[8], conv_norm=norm_argument("GN"))


@pytest.mark.parametrize("dim", [2, 3])
def test_norms_that_are_constant(dim):
    norms = {name: get_norm(name, 32, dim) for name in NAMES}
    assert [name for name, norm in norms.items() if is_constant(norm)] == ["FrozenBN"]
    assert [n for n, norm in norms.items() if is_constant(norm.eval())] == ["BN", "SyncBN", "FrozenBN"]
    assert not is_constant(nn.BatchNorm2d(4, track_running_stats=False).eval())
    assert not is_constant(None)
