"""Small parts of the transformers: normalisation, patches, schedules."""

import pytest
import torch

from nlnet_d2.layers.drop_path import linear_schedule
from nlnet_d2.layers.layer_norm import ChannelNorm, TokenNorm
from nlnet_d2.layers.mlp import Mlp, init_linear
from nlnet_d2.layers.patch_embed import PatchEmbed


def test_epsilon_of_the_papers():
    """Outputs cannot show it at usual scales: inputs as small as the epsilon can."""
    assert TokenNorm(8).eps == ChannelNorm(8).eps == 1e-6
    x = torch.randn(2, 8, 3, 3) * 1e-3
    var, mean = torch.var_mean(x, 1, keepdim=True, unbiased=False)
    torch.testing.assert_close(ChannelNorm(8)(x), (x - mean) / (var + 1e-6).sqrt())


@pytest.mark.parametrize("hw", [(32, 48), (33, 47), (1, 1)])
def test_patches_cover_the_image(hw):
    patches = PatchEmbed(6, 16, 16)
    tokens = patches(torch.randn(2, 3, *hw))
    assert tokens.shape == (2, -(-hw[0] // 16), -(-hw[1] // 16), 6)


def test_padding_of_an_image_is_zero():
    patches = PatchEmbed(6, 16, 16)
    x = torch.randn(1, 3, 20, 16)
    padded = torch.zeros(1, 3, 32, 16)
    padded[:, :, :20] = x
    assert torch.equal(patches(x), patches(padded))


def test_schedule():
    assert linear_schedule(0.2, 5) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert linear_schedule(0.5, 1) == [0]


def test_perceptron():
    mlp = Mlp(4, 6).apply(init_linear)
    assert mlp.fc1.weight.shape == (16, 4) and mlp(torch.randn(2, 3, 4)).shape == (2, 3, 6)
    assert mlp.fc2.weight.abs().max() <= 2 and not mlp.fc2.bias.any()
    assert abs(Mlp(64, 64).apply(init_linear).fc1.weight.std() - 0.02) < 2e-3
