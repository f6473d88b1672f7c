"""Suite ``blocks``: context blocks, and attention with decomposed relative positions."""

from collections.abc import Iterable
from functools import partial

import torch
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

from nlnet_d2.benchmarks import literal
from nlnet_d2.benchmarks.measure import Case, Goal, Pair
from nlnet_d2.blocks.context import GlobalContext
from nlnet_d2.blocks.nonlocal_ import NonLocal
from nlnet_d2.layers.attention import attend
from nlnet_d2.layers.relative_position import decomposed_bias

try:
    from timm.layers import GlobalContext as TimmGlobalContext
except ImportError:
    TimmGlobalContext = None

LITERAL = "literal form"
FORWARD, BOTH = "forward", "forward+backward"


def cases(quick: bool) -> list[Case]:
    return [*non_local(quick), *global_context(quick), *attention(quick)]


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights at which no term of a formula vanishes: what starts at zero or one gets noise."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point() and (value.ndim == 1 or "rel_pos" in name or not value.any()):
            noise = 0.1 * torch.randn(value.shape, generator=generator)
            value.copy_(1 + noise.abs() if name.endswith(("norm.weight", "running_var")) else noise)
    return module


def compare(ours, other, passes: str, *inputs: torch.Tensor, parameters=()) -> Pair:
    """Two functions of ``inputs``; with the backward pass, also the gradients of half the squares."""
    leaves = [p for p in parameters if p.requires_grad]
    if passes == BOTH:
        leaves += [x.requires_grad_() for x in inputs]
        # Their gradients, made once, so that they count for neither; without activations below them in
        # memory, whose place the allocator could then not give back, as it does in training.
        with torch.no_grad():
            d_maps = _listed(ours(*inputs))

    def run(function):
        with torch.set_grad_enabled(passes == BOTH):
            maps = function(*inputs)
        if passes == FORWARD:
            return maps
        maps = _listed(maps)
        return *(x.detach() for x in maps), *torch.autograd.grad(maps, leaves, d_maps)

    return Pair(partial(run, ours), partial(run, other))


def _listed(maps: torch.Tensor | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [maps] if isinstance(maps, torch.Tensor) else list(maps)


def non_local(quick: bool) -> list[Case]:
    sizes = [(5, 8), (7, 9)] if quick else [(25, 42), (50, 84), (100, 168)]
    goals = {
        ("embedded_gaussian", (50, 84), FORWARD): Goal(1.25, 0.4),
        ("embedded_gaussian", (100, 168), FORWARD): Goal(1.35, 0.13),
        ("embedded_gaussian", (50, 84), BOTH): Goal(1.0, 0.3),
        ("dot_product", (50, 84), FORWARD): Goal(2.6, 0.4),
        ("dot_product", (50, 84), BOTH): Goal(2.6, 0.4),
        ("dot_product", (100, 168), FORWARD): Goal(8, 0.1),
    }
    settings = [(mode, hw, FORWARD) for mode in ("embedded_gaussian", "dot_product") for hw in sizes]
    settings += [(mode, sizes[1], BOTH) for mode in ("embedded_gaussian", "dot_product")]
    return [
        Case(
            name=f"non-local, {mode.replace('_', ' ')}, {passes}, {hw[0]}x{hw[1]}",
            alternative=LITERAL,
            build=partial(build_non_local, 32 if quick else 1024, mode, hw, passes),
            work=hw[0] * hw[1],
            unit="positions",
            goal=goals.get((mode, hw, passes), Goal()),
        )
        for mode, hw, passes in settings
    ]


def build_non_local(channels: int, mode: str, hw: tuple[int, int], passes: str, device) -> Pair:
    block = randomize(NonLocal(channels, mode=mode)).eval().to(device)
    x = torch.randn(1, channels, *hw, device=device)
    parameters = block.parameters() if passes == BOTH else ()
    return compare(block, partial(literal.non_local, block), passes, x, parameters=list(parameters))


def global_context(quick: bool) -> list[Case]:
    rows = []
    for shape in ((32, 6, 8),) if quick else ((256, 200, 336), (1024, 50, 84)):
        size = "x".join(map(str, shape))
        inplace, both = f"global context, inference in place, {size}", f"global context, {BOTH}, {size}"
        large = shape == (256, 200, 336)
        build, work = partial(build_global_context, shape), {"work": shape[1] * shape[2], "unit": "positions"}
        rows += [
            Case(inplace, LITERAL, partial(build, FORWARD), goal=Goal(5, 0.02) if large else Goal(), **work),
            Case(both, LITERAL, partial(build, BOTH), **work),
            Case(
                inplace,
                "the bottleneck around it",
                partial(build_beside_host, shape),
                tolerance=None,
                goal=Goal(20) if large else Goal(),
                **work,
            ),
        ]
        if TimmGlobalContext:
            rows.append(Case(inplace, "timm", partial(build_beside_timm, shape), **work))
    return rows


def build_global_context(shape: tuple[int, int, int], passes: str, device) -> Pair:
    block = randomize(GlobalContext(shape[0])).to(device)
    saved = torch.randn(1, *shape, device=device)
    x = saved.clone()
    block.inplace = passes == FORWARD
    parameters = list(block.parameters())
    pair = compare(block, partial(literal.global_context, block), passes, x, parameters=parameters)
    return pair._replace(prepare=lambda: x.copy_(saved)) if passes == FORWARD else pair


def build_beside_timm(shape: tuple[int, int, int], device) -> Pair:
    channels = shape[0]
    options = {"fuse_add": True, "fuse_scale": False, "rd_channels": channels // 16}
    theirs = randomize(TimmGlobalContext(channels, **options)).eval().to(device)
    theirs.mlp_add.norm.eps = 1e-5  # that of the authors' code
    block = GlobalContext(channels).to(device)
    for ours, weights in zip(block.parameters(), theirs.parameters(), strict=True):
        ours.data.copy_(weights.data.view_as(ours))
    block.inplace = True
    saved = torch.randn(1, *shape, device=device)
    x = saved.clone()
    return compare(block, theirs, FORWARD, x)._replace(prepare=lambda: x.copy_(saved))


def build_beside_host(shape: tuple[int, int, int], device) -> Pair:
    """How small a part of its residual block the context block is."""
    channels = shape[0]
    host = BottleneckBlock(channels, channels, bottleneck_channels=channels // 4).eval().to(device)
    x = torch.randn(1, *shape, device=device)
    return build_global_context(shape, FORWARD, device)._replace(other=compare(host, host, FORWARD, x).other)


def attention(quick: bool) -> list[Case]:
    """Maps (count, heads, height, width) of heads of 64 channels."""
    sizes = {
        "global attention": (1, 2, 6, 6) if quick else (1, 12, 64, 64),
        "windowed attention": (4, 2, 4, 4) if quick else (25, 12, 14, 14),
    }
    goals = {
        ("global attention", FORWARD): Goal(2.8, 0.07),
        ("global attention", BOTH): Goal(1.35, 0.12),
        ("windowed attention", BOTH): Goal(1.3, 1),
    }
    return [
        Case(
            name=f"{name} with relative positions, {passes}, {count} x {heads} x {height * width}",
            alternative=LITERAL,
            build=partial(build_attention, (count, heads, height, width), passes),
            work=count * height * width,
            unit="positions",
            goal=goals.get((name, passes), Goal()),
        )
        for name, (count, heads, height, width) in sizes.items()
        for passes in (FORWARD, BOTH)
    ]


def build_attention(size: tuple[int, int, int, int], passes: str, device) -> Pair:
    count, heads, height, width = size
    qkv = torch.randn(count, height * width, 3, heads, 64, device=device)
    tables = [0.1 * torch.randn(2 * side - 1, 64, device=device) for side in (height, width)]
    hw = (height, width)

    def ours(qkv, *tables):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return attend(q, k, v, *decomposed_bias(q, *tables, hw, hw))

    def other(qkv, *tables):
        return literal.attention(*qkv.permute(2, 0, 3, 1, 4), *tables, hw, hw)

    return compare(ours, other, passes, qkv, *tables)
