"""SNL, GC and SE against their equations, the reference code, and each other."""

import pytest
import torch
from deterministic import compare, golden_state_dict, make_input, read_keys
from torch.nn import functional as F

from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.blocks.context import GlobalContext, SimplifiedNonLocal, SqueezeExcitation
from nlnet_d2.blocks.nonlocal_ import NonLocal

CASES = ["att_add", "att_mul", "att_add_mul", "avg_add", "avg_mul", "avg_add_mul"]
FUSION = {"add": "add", "mul": "mul", "add_mul": "both"}
C3_C5 = {"res3": "all", "res4": "all", "res5": "all"}


def randomize(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double()


def matrix(conv):
    return conv.weight.flatten(1), conv.bias


def attention_pooled(block, x):
    """sum_j softmax(W_k x_j) x_j, (N, C), one position at a time."""
    weight, bias = matrix(block.conv_mask)
    pooled = []
    for image in x.flatten(2):  # (C, P)
        logits = torch.stack([weight[0] @ x_j + bias[0] for x_j in image.t()])
        alpha = logits.exp() / logits.exp().sum()
        pooled.append(sum(a * x_j for a, x_j in zip(alpha, image.t(), strict=True)))
    return torch.stack(pooled)


def per_channel(context, x):
    return context.reshape(*context.shape, *[1] * (x.ndim - 2))


SIZES = [(4, 5), (1, 1), (2, 3, 5)]


@pytest.mark.parametrize("size", SIZES)
def test_simplified_nonlocal(size):
    block = randomize(SimplifiedNonLocal(6, dim=len(size)))
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = x + per_channel(F.linear(attention_pooled(block, x), *matrix(block.out)), x)
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pooling", ["att", "avg"])
@pytest.mark.parametrize("fusion", ["add", "mul", "both"])
@pytest.mark.parametrize("kind", ["ln_relu", "relu", "linear"])
def test_global_context(size, pooling, fusion, kind):
    options = {"reduction": 3, "pooling": pooling, "fusion": fusion, "bottleneck": kind}
    block = randomize(GlobalContext(12, dim=len(size), **options))
    x = torch.randn(2, 12, *size, dtype=torch.float64)

    def bottleneck(layers, context):
        conv1, norm, _, conv2 = layers
        hidden = F.linear(context, *matrix(conv1))  # (N, C / r)
        if kind == "ln_relu":
            mean, var = hidden.mean(1, keepdim=True), hidden.var(1, unbiased=False, keepdim=True)
            hidden = (hidden - mean) / (var + 1e-5).sqrt() * norm.weight.flatten() + norm.bias.flatten()
        if kind != "linear":
            hidden = hidden.relu()
        return per_channel(F.linear(hidden, *matrix(conv2)), x)

    with torch.no_grad():
        context = attention_pooled(block, x) if pooling == "att" else x.flatten(2).mean(2)
        expected = x
        if fusion != "add":
            expected = expected * bottleneck(block.channel_mul_conv, context).sigmoid()
        if fusion != "mul":
            expected = expected + bottleneck(block.channel_add_conv, context)
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("size", SIZES)
def test_squeeze_excitation(size):
    block = randomize(SqueezeExcitation(12, dim=len(size), reduction=3))
    x = torch.randn(2, 12, *size, dtype=torch.float64)
    with torch.no_grad():
        hidden = F.linear(x.flatten(2).mean(2), *matrix(block.fc1)).relu()
        expected = x * per_channel(F.linear(hidden, *matrix(block.fc2)).sigmoid(), x)
        torch.testing.assert_close(block(x), expected)


def test_simplified_is_nonlocal_with_the_same_query_everywhere():
    """With W_theta = 0 the logits of a non-local block depend on the key alone, as GCNet simplifies it."""
    nonlocal_ = randomize(NonLocal(8, norm="", reduction=1, use_scale=False))
    simplified = randomize(SimplifiedNonLocal(8))
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        nonlocal_.theta.weight.zero_()
        nonlocal_.g.bias.zero_()
        w_phi, _ = matrix(nonlocal_.phi)
        simplified.conv_mask.weight.copy_((nonlocal_.theta.bias @ w_phi).reshape(1, 8, 1, 1))
        w_out, w_g = nonlocal_.out.weight.flatten(1), nonlocal_.g.weight.flatten(1)
        simplified.out.weight.copy_((w_out @ w_g).reshape(8, 8, 1, 1))
        simplified.out.bias.copy_(nonlocal_.out.bias)
        torch.testing.assert_close(simplified(x), nonlocal_(x))


@pytest.mark.parametrize("block", [SimplifiedNonLocal(8), GlobalContext(8, reduction=2)])
def test_context_is_the_same_at_every_position(block):
    block = randomize(block)
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        added = (block(x) - x).flatten(2)
        torch.testing.assert_close(added, added[..., :1].expand_as(added))
        assert added.abs().max() > 1e-3


@pytest.mark.parametrize("pooling", ["att", "avg"])
def test_attention_is_what_pooling_applies(pooling):
    block = randomize(GlobalContext(8, pooling=pooling, reduction=2))
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        attention = block.attention(x)
        assert attention.shape == (2, 1, 12)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 1, dtype=torch.float64))
        pooled = (x.flatten(2) * attention).sum(-1)
        torch.testing.assert_close(block.pool(x).flatten(1), pooled)


def test_multiplicative_fusion_starts_at_one_half():
    x = torch.randn(2, 32, 3, 4)
    assert torch.equal(GlobalContext(32, fusion="mul")(x), x / 2)
    assert torch.equal(GlobalContext(32, fusion="both")(x), x / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": 64}, "REDUCTION 64 leaves no channels"),
        ({"pooling": "max"}, "POOLING 'max' is unknown; choose one of att, avg"),
        ({"fusion": "channel_add"}, "FUSION 'channel_add' is unknown; choose one of add, mul, both"),
        ({"bottleneck": "bn"}, "BOTTLENECK 'bn' is unknown; choose one of linear, relu, ln_relu"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        GlobalContext(32, **options)


@pytest.mark.parametrize("case", CASES)
def test_parity_with_gcnet(case):
    name = f"context_block_{case}"
    golden, (pooling, fusion) = read_keys(name), case.split("_", 1)
    block = GlobalContext(64, reduction=4, pooling=pooling, fusion=FUSION[fusion])
    assert sum(p.numel() for p in block.parameters()) == golden["params"]
    block.load_state_dict(golden_state_dict(golden))  # strict: the names are the reference's
    with torch.no_grad():
        compare(name, "out", block(make_input(golden["input"]["shape"])), tol=1e-4)


def test_parity_with_gcnet_r16():
    golden = read_keys("context_block_ratio16_c256")
    block = GlobalContext(256, reduction=16)
    block.load_state_dict(golden_state_dict(golden))
    with torch.no_grad():
        compare("context_block_ratio16_c256", "out", block(make_input(golden["input"]["shape"])), tol=1e-4)


@pytest.mark.parametrize(
    ("depth", "block", "params"),
    [
        (50, {"NAME": "GlobalContext", "AT": C3_C5}, 2_521_741),
        (50, {"NAME": "GlobalContext", "AT": C3_C5, "REDUCTION": 4}, 10_000_909),
        (50, {"NAME": "GlobalContext", "AT": {**C3_C5, "res2": "all"}}, 2_548_000),
        (101, {"NAME": "GlobalContext", "AT": C3_C5}, 4_788_062),
        (50, {"NAME": "SqueezeExcitation", "AT": {**C3_C5, "res2": "all"}}, 2_530_992),
        (50, {"NAME": "SimplifiedNonLocal", "AT": {"res4": [-2]}}, 1_050_625),
        (50, {"NAME": "NonLocal", "AT": {"res3": [1, 3], "res4": [1, 3, 5]}}, 7_358_464),
    ],
)
def test_parameters_added_to_a_resnet(depth, block, params):
    with torch.device("meta"):
        plain = ContextResNet(depth=depth)
        model = ContextResNet(depth=depth, blocks=[block])
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert count == params
