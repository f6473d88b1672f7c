"""The non-local block against its equations, written out position by position, and against public code."""

import re
from contextlib import nullcontext

import pytest
import torch
from deterministic import compare, golden_state_dict, make_input, read_keys
from learning import learn
from torch.nn import functional as F

from nlnet_d2.blocks.nonlocal_ import MODES, ORDERS, NonLocal, _Moments, choose_order, use_order

NORMS = ["BN", "SyncBN", "FrozenBN", "GN", "LN", ""]


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter and buffer random, so that no term is hidden by a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(noise.abs() + 0.5 if "running_var" in name else 0.5 * noise)
    return module


def pool(x, window):
    """Maximum over windows without overlap; a window larger than x is cut, an incomplete last one dropped."""
    for axis, w in enumerate(window, start=1):
        size = x.shape[axis]
        w = min(w, size)
        x = torch.stack(
            [x.narrow(axis, k * w, w).amax(dim=axis) for k in range(size // w)],
            dim=axis,
        )
    return x


def literal(block, x, use_scale, window, at):
    """Equations 1 to 6 of the paper, one query and one key at a time. x: (N, C, ...) float64."""

    def linear(conv, v):  # v: (C,)
        return conv.weight.flatten(1) @ v + conv.bias

    def positions(image):  # (C, ...) -> list of (C,)
        return list(image.flatten(1).t())

    def project(conv, image):  # (C, ...) -> (C', ...)
        return torch.stack([linear(conv, v) for v in positions(image)], dim=1).unflatten(1, image.shape[1:])

    gaussian = block.mode == "gaussian"
    out = []
    for image in x:
        keys = pool(image, window) if at == "before" else image
        phi = keys if gaussian else project(block.phi, keys)
        g = project(block.g, keys)
        if at == "after":
            phi, g = pool(phi, window), pool(g, window)
        z = []
        for x_i in positions(image):
            theta_i = x_i if gaussian else linear(block.theta, x_i)
            f = []
            for phi_j in positions(phi):
                if block.mode == "concatenation":
                    f.append(F.relu(block.w_f.weight[0] @ torch.cat([theta_i, phi_j])))
                else:
                    f.append(theta_i @ phi_j)
            f = torch.stack(f)
            if block.mode.endswith("gaussian"):
                if use_scale and not gaussian:
                    f = f / len(theta_i) ** 0.5
                f = f.exp() / f.exp().sum()
            else:
                f = f / len(f)
            y_i = sum(f_j * g_j for f_j, g_j in zip(f, positions(g), strict=True))
            z.append(linear(block.out, y_i))
        out.append(torch.stack(z, dim=1).unflatten(1, image.shape[1:]))
    return x + block.norm(torch.stack(out))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize(
    ("size", "subsample", "at"),
    [
        ((3, 4), 1, "before"),
        ((5, 3), 2, "before"),
        ((5, 3), 2, "after"),
        ((1, 1), 2, "before"),
        ((2, 3, 5), 2, "after"),
        ((3, 2, 3), [2, 1, 2], "before"),
        ((1, 1, 1), 1, "before"),
    ],
)
def test_equations(mode, use_scale, size, subsample, at):
    dim = len(size)
    block = NonLocal(
        6, dim=dim, mode=mode, use_scale=use_scale, subsample=subsample, subsample_at=at, reduction=2
    )
    block = randomize(block.double()).eval()
    x = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    window = [1] * (dim - 2) + [subsample] * 2 if isinstance(subsample, int) else subsample
    with torch.no_grad():
        torch.testing.assert_close(block(x), literal(block, x, use_scale, window, at))


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "LN", ""])
@pytest.mark.parametrize(("mode", "order"), [("embedded_gaussian", None), ("dot_product", "gram")])
def test_norms_in_training(norm, mode, order):
    """Those that are constant are one map with W_z, the others are not."""
    block = randomize(NonLocal(6, mode=mode, norm=norm).double())
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    with use_order(order) if order else nullcontext():
        got = block(x)
    expected = literal(block, x, True, [1, 1], "before")
    torch.testing.assert_close(got, expected)
    gradients = (torch.autograd.grad(z.square().sum(), [x, *block.parameters()]) for z in (got, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 5)])
@pytest.mark.parametrize("subsample", [1, 2])
@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_the_dot_product(order, subsample, size):
    """Each order follows the equations, and all have the same gradients."""
    options = {"dim": len(size), "mode": "dot_product", "subsample": subsample}
    block = randomize(NonLocal(6, **options).double()).eval()
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    window = [1] * (len(size) - 2) + [subsample] * 2
    with use_order(order):
        torch.testing.assert_close(block(x), literal(block, x, True, window, "before"))
        got = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    with use_order("pairwise"):
        expected = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradients_of_moments():
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Moments.apply, x)


@pytest.mark.parametrize("order", ORDERS)
def test_a_maximum_after_phi_is_not_reordered(order):
    block = randomize(NonLocal(6, mode="dot_product", subsample=2, subsample_at="after").double()).eval()
    x = torch.randn(2, 6, 4, 6, dtype=torch.float64)
    with torch.no_grad(), use_order(order):
        torch.testing.assert_close(block(x), literal(block, x, True, [2, 2], "after"))


def test_the_choice_of_order():
    few, many = torch.zeros(1, 64, 4, 4), torch.zeros(1, 64, 40, 40)
    assert choose_order(few, 16, 32) == "pairwise"
    assert choose_order(many, 1600, 32) == "gram"
    assert choose_order(many, 1600, 8) == "reassociated"
    assert choose_order(many.bfloat16(), 1600, 32) == "reassociated"
    assert choose_order(many.to("meta"), 1600, 32) == "reassociated"
    with torch.autocast("cpu"):
        assert choose_order(many, 1600, 32) == "reassociated"
    with (
        pytest.raises(ValueError, match="order 'random' does not exist; choose one of pairwise"),
        use_order("random"),
    ):
        pass


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dim", [2, 3])
def test_every_norm_stands_after_w_z(norm, dim):
    block = randomize(NonLocal(32, dim=dim, norm=norm).double()).eval()
    x = torch.randn(2, 32, *(2, 3, 2)[-dim:], dtype=torch.float64)
    with torch.no_grad():
        expected = literal(block, x, True, [1] * dim, "before")
        torch.testing.assert_close(block(x), expected)
        without = x + block.out(block._aggregate(*block._project(x)).mT.unflatten(2, x.shape[2:]))
        assert torch.allclose(block(x), without) == (norm == "")


@pytest.mark.parametrize(("mode", "order"), [("embedded_gaussian", None), ("dot_product", "gram")])
def test_hooks_and_adapters_see_their_maps(mode, order):
    """Where a convolution is watched or replaced, its weight does not stand for it."""
    block, x = randomize(NonLocal(4, mode=mode)).eval(), torch.randn(2, 4, 3, 5)
    with use_order(order) if order else nullcontext():
        expected = block(x)
        seen = []
        for conv in (block.theta, block.phi, block.g, block.out):
            conv.register_forward_hook(lambda conv, inputs, out: seen.append(out.shape))
        torch.testing.assert_close(block(x), expected)
        assert seen == [(2, 2, 3, 5)] * 3 + [(2, 4, 3, 5)]
        for name in ("theta", "out"):
            conv, closed = getattr(block, name), torch.nn.Dropout(1.0)  # nothing passes
            setattr(block, name, torch.nn.Sequential(conv, closed))
            assert not torch.allclose(block(x), expected)
            closed.eval()
            torch.testing.assert_close(block(x), expected)
            setattr(block, name, conv)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("subsample", [1, 2])
def test_attention_is_what_forward_applies(mode, subsample):
    block = randomize(NonLocal(8, mode=mode, subsample=subsample, norm="").double())
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        attention = block.attention(x)
        assert attention.shape == (2, 30, 30 if subsample == 1 else 6)
        if mode.endswith("gaussian"):
            torch.testing.assert_close(attention.sum(-1), torch.ones(2, 30, dtype=torch.float64))
        _, _, g = block._project(x)
        y = (attention @ g).mT.unflatten(2, (5, 6))
        torch.testing.assert_close(block(x), x + block.out(y))


def test_permuting_the_positions_permutes_the_output():
    block = randomize(NonLocal(8, norm="").double())
    x = torch.randn(1, 8, 4, 6, dtype=torch.float64)
    order = torch.randperm(24)
    with torch.no_grad():
        permuted = block(x.flatten(2)[..., order].unflatten(2, (4, 6)))
        torch.testing.assert_close(permuted, block(x).flatten(2)[..., order].unflatten(2, (4, 6)))


def test_no_positions_interact_across_the_batch():
    block = randomize(NonLocal(8).double()).eval()
    x = torch.randn(3, 8, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", MODES)
def test_starts_as_the_identity_and_learns_from_there(mode, norm):
    torch.manual_seed(0)
    block = NonLocal(64, mode=mode, norm=norm)  # two channels to a group
    x, target = torch.randn(4, 64, 3, 4), torch.randn(4, 64, 3, 4)
    assert torch.equal(block(x), x)
    learn(block, x, target, lr=0.5, steps=4)
    # A softmax does not feel a constant added to all its logits, and batch statistics cancel what is added
    # to all positions: these biases have no gradient by construction.
    dead = {"phi.bias"} if mode.endswith("gaussian") else set()
    dead |= {"out.bias", "g.bias"} if norm in ("BN", "SyncBN") else set()
    for name, parameter in block.named_parameters():
        assert name in dead or parameter.grad.abs().max() > 1e-9, f"{name} gets no gradient"


@pytest.mark.parametrize(
    ("channels", "options", "params"),
    [
        (512, {}, 526_592),
        (1024, {}, 2_101_760),
        (1024, {"mode": "gaussian"}, 2_101_760 - 2 * 512 * 1025),
        (1024, {"mode": "concatenation"}, 2_101_760 + 1024),
        (1024, {"norm": ""}, 2_101_760 - 2048),
        (1024, {"norm": "FrozenBN"}, 2_101_760 - 2048),
    ],
)
def test_parameter_count(channels, options, params):
    with torch.device("meta"):
        block = NonLocal(channels, **options)
    assert sum(p.numel() for p in block.parameters()) == params


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "gausian"}, "MODE 'gausian' is unknown"),
        ({"subsample_at": "between"}, "SUBSAMPLE_AT 'between' is unknown"),
        ({"reduction": 33}, "REDUCTION 33 leaves no channels"),
        ({"reduction": 0}, "REDUCTION 0 leaves no channels"),
        ({"subsample": 0}, r"SUBSAMPLE \[0, 0\] needs 2 windows"),
        ({"subsample": [1, 2, 2]}, "needs 2 windows"),
        ({"norm": "BatchNorm"}, "NORM: 'BatchNorm' is unknown"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        NonLocal(32, **options)


def rename(state: dict) -> dict:
    """Names of mmcv and GCNet -> ours; a convolution followed by BN has no bias there."""
    rules = [(r"(g|phi)\.0\.", r"\1."), (r"conv_out\.bn\.", "norm."), (r"conv_out\.", "out.")]
    rules += [(r"concat_project\.conv", "w_f"), (r"\.conv\.", ".")]
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.flatten(1) if name.startswith("w_f") else tensor
    if "norm.weight" in renamed:
        renamed["out.bias"] = torch.zeros_like(renamed["norm.bias"])
        renamed["norm.num_batches_tracked"] = torch.tensor(0)
    return renamed


MMCV = {
    "mmcv_nonlocal2d_embedded_gaussian_sub0": {},
    "mmcv_nonlocal2d_embedded_gaussian_sub1": {"subsample": 2},
    "mmcv_nonlocal2d_embedded_gaussian_sub1_noscale_bn": {
        "subsample": 2,
        "use_scale": False,
        "reduction": 4,
        "norm": "BN",
    },
    "mmcv_nonlocal2d_gaussian_sub1": {"subsample": 2, "mode": "gaussian"},
    "mmcv_nonlocal2d_dot_product_sub0": {"mode": "dot_product"},
    "mmcv_nonlocal2d_dot_product_sub1": {"mode": "dot_product", "subsample": 2},
    "mmcv_nonlocal2d_concatenation_sub1": {"mode": "concatenation", "subsample": 2},
    "mmcv_nonlocal3d_embedded_gaussian_sub1": {"subsample": 2, "dim": 3},
    "gcnet_nonlocal2d_dot_product": {"mode": "dot_product"},
    "gcnet_nonlocal2d_embedded_gaussian_scale0": {"use_scale": False},
    "gcnet_nonlocal2d_embedded_gaussian_scale1": {"use_scale": True},
}


@pytest.mark.parametrize("case", MMCV)
def test_parity_with_mmcv_and_gcnet(case):
    golden = read_keys(case)
    block = NonLocal(64, **{"subsample_at": "after", "norm": "", **MMCV[case]}).eval()
    state = rename(golden_state_dict(golden))
    if case == "gcnet_nonlocal2d_embedded_gaussian_scale1":
        # GCNet multiplies the logits by sqrt(C') where the scale divides by it: C' = 32 times more.
        state["theta.weight"], state["theta.bias"] = state["theta.weight"] * 32, state["theta.bias"] * 32
    block.load_state_dict(state)
    with torch.no_grad():
        out = block(make_input(golden["input"]["shape"]))
    compare(case, "out", out, tol=1e-4)
