"""What holds for every transformer backbone, on the golden networks."""

import subprocess
import sys

import pytest
import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import ImageList
from deterministic import golden_state_dict, make_input, read_keys
from torch import nn

from nlnet_d2.backbones.mvit import MViT
from nlnet_d2.backbones.padding import SquarePadFPN
from nlnet_d2.backbones.vit import ViT
from nlnet_d2.backbones.vit_pyramid import SimpleFeaturePyramid

OUTPUTS = ["p2", "p3", "p4", "p5", "p6"]


def vitdet(**changes) -> SimpleFeaturePyramid:
    sizes = {"img_size": 128, "embed_dim": 96, "depth": 4, "num_heads": 3, "pretrain_img_size": 64}
    net = ViT(**sizes, window_size=4, global_block_indexes=[1, 3], drop_path_rate=0.0, **changes)
    return SimpleFeaturePyramid(net, out_channels=64, top_block=LastLevelMaxPool())


def mvitv2(**changes) -> SquarePadFPN:
    net = MViT(img_size=96, embed_dim=32, depths=(2, 2, 2, 1), window_size=12, drop_path_rate=0.0, **changes)
    return SquarePadFPN(net, list(net.output_shape()), out_channels=32, top_block=LastLevelMaxPool())


@pytest.fixture(params=[("vitdet_tiny", vitdet, 17), ("mvitv2_tiny", mvitv2, 39)], ids=["vitdet", "mvitv2"])
def network(request):
    """A function that builds the golden network with changes, its input, and how many layer norms it has."""
    name, build, norms = request.param
    case = read_keys(name)

    def make(**changes):
        model = build(**changes)
        model.load_state_dict(golden_state_dict(case))
        return model

    return make, make_input(case["input"]["shape"]), norms


def test_epsilon_everywhere(network):
    """1e-6, not torch's 1e-5, which the golden outputs cannot tell apart."""
    make, _, count = network
    norms = [m for m in make().modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == count and {m.eps for m in norms} == {1e-6}


def test_features_do_not_depend_on_the_padding_of_the_batch(network):
    """With SQUARE_PAD, to 1e-4 of their spread: matrix products of another batch size sum in another order.

    Without it they do: the padding is attended to, and the positions are stretched over it.
    """
    model = network[0]().eval()
    small, large = torch.randn(3, 64, 96), torch.randn(3, 128, 112)

    def features(*images):
        batch = ImageList.from_tensors(list(images), model.size_divisibility)
        with torch.no_grad():
            return {k: v[-1] for k, v in model(batch.tensor).items()}

    alone, together = features(small)["p2"], features(large, small)["p2"]
    height, width = alone.shape[1:]
    assert (alone - together[:, :height, :width]).abs().max() > 0.1 * alone.std()
    model.set_square_pad(128)
    alone, together = features(small), features(large, small)
    for name in OUTPUTS:
        assert (alone[name] - together[name]).abs().max() < 1e-4 * alone[name].std(), name


@pytest.mark.parametrize("train", [False, True])
def test_mixed_precision(network, train):
    """Under autocast the maps stay as close as bfloat16 allows, and gradients are finite and in float32."""
    make, image, _ = network
    model = make().eval()
    with torch.no_grad():
        expected = model(image)
    with torch.set_grad_enabled(train), torch.autocast("cpu", torch.bfloat16):
        got = model(image)
    for name in OUTPUTS:
        error = (got[name].float() - expected[name]).abs().max() / expected[name].std()
        assert error < 0.2, name
    if train:
        gradients = torch.autograd.grad(sum(v.float().sum() for v in got.values()), list(model.parameters()))
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


def test_channels_last(network):
    make, image, _ = network
    model = make().eval()
    with torch.no_grad():
        expected = model(image)
        got = model(image.contiguous(memory_format=torch.channels_last))
    for name in OUTPUTS:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-4)


def test_neither_timm_nor_fairscale():
    """Not even where they are installed, as upstream's classes import them when they are built."""
    script = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['timm', 'fairscale'])\n"  # importing them is an error now
        "import torch\n"
        "from nlnet_d2.backbones.mvit import MViT\n"
        "from nlnet_d2.backbones.vit import ViT\n"
        "with torch.device('meta'):\n"
        "    ViT(residual_block_indexes=[1], use_act_checkpoint=True), MViT(use_act_checkpoint=True)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
