"""Suites ``vit``, ``mvit`` and ``slowfast``: whole backbones."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import nlnet_d2
from nlnet_d2.backbones.mvit import MViT
from nlnet_d2.backbones.video.slowfast import SlowFast, slow_frames
from nlnet_d2.backbones.vit import ViT
from nlnet_d2.benchmarks import literal
from nlnet_d2.benchmarks.blocks import BOTH, FORWARD, LITERAL, compare, randomize
from nlnet_d2.benchmarks.measure import Case, Goal, Pair

try:  # in upstream's main only
    from detectron2.modeling.backbone.mvit import MViT as UpstreamMViT
    from detectron2.modeling.backbone.vit import ViT as UpstreamViT
except ImportError:
    UpstreamMViT = UpstreamViT = None

try:
    from pytorchvideo.models.slowfast import create_slowfast
except ImportError:
    create_slowfast = None

UPSTREAM = "detectron2"
NORM = {"norm_layer": partial(nn.LayerNorm, eps=1e-6)}  # as in upstream's configs
TINY_VIT = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 2, "window_size": 3}
TINY_VIT["global_block_indexes"] = (2,)
TINY_MVIT = {"img_size": 64, "embed_dim": 16, "depths": (1, 1, 2, 1), "window_size": 16}
TINY_SLOWFAST = {"depth": 14, "stem_channels": 16, "width": 16, "res2_channels": 32}


def vit(quick: bool) -> list[Case]:
    goals = {
        (512, FORWARD): Goal(1.45, 0.6),
        (1024, FORWARD): Goal(1.7, 0.14),
        (512, BOTH): Goal(1.2, 0.75),
        (1024, BOTH): Goal(1.6, 0.42),
    }
    sizes = [(side, passes) for passes in (FORWARD, BOTH) for side in ((64,) if quick else (512, 1024))]
    return image_cases("ViTDet-B", partial(build_vit, TINY_VIT if quick else {}), UpstreamViT, sizes, goals)


def mvit(quick: bool) -> list[Case]:
    goals = {(512, FORWARD): Goal(1.4, 0.62), (1024, FORWARD): Goal(1.6, 0.77)}
    sizes = [(64, FORWARD), (64, BOTH)] if quick else [(512, FORWARD), (1024, FORWARD), (512, BOTH)]
    return image_cases(
        "MViTv2-T", partial(build_mvit, TINY_MVIT if quick else {}), UpstreamMViT, sizes, goals
    )


def image_cases(name: str, build: Callable, upstream: type | None, sizes: list, goals: dict) -> list[Case]:
    """A backbone at all ``sizes`` (side, passes), beside the formula and upstream's, if there."""
    return [
        Case(
            name=f"{name}, {passes}, {side} px",
            alternative=alternative,
            build=partial(build, side, passes, alternative),
            work=side,
            unit="pixels of the side",
            goal=goals.get((side, passes), Goal()),
        )
        for alternative in ([LITERAL, UPSTREAM] if upstream else [LITERAL])
        for side, passes in sizes
    ]


def build_vit(options: dict, side: int, passes: str, alternative: str, device) -> Pair:
    options = {"drop_path_rate": 0.0, "window_size": 14, **options}
    net = randomize(ViT(**options)).eval().to(device)
    image = torch.randn(1, 3, side, side, device=device)
    if alternative == UPSTREAM:
        windowed = [i for i, block in enumerate(net.blocks) if block.window]
        options = {k: v for k, v in options.items() if k != "global_block_indexes"}
        upstream = (
            UpstreamViT(window_block_indexes=windowed, use_rel_pos=True, **NORM, **options).eval().to(device)
        )
        upstream.load_state_dict(net.state_dict())
        return beside(upstream, net, passes, image)
    return compare(
        lambda x: net(x)["last_feat"],
        partial(literal.vit, net),
        passes,
        image,
        parameters=list(net.parameters()),
    )


def beside(other: nn.Module, net: nn.Module, passes: str, image: torch.Tensor) -> Pair:
    """``net`` and another backbone with the same names of parameters."""
    names = [name for name, _ in net.named_parameters()]
    ours, theirs = (
        compare(
            lambda x, model=model: list(model(x).values()),
            None,
            passes,
            image,
            parameters=[model.get_parameter(name) for name in names],
        ).ours
        for model in (net, other)
    )
    return Pair(ours, theirs)


def build_mvit(options: dict, side: int, passes: str, alternative: str, device) -> Pair:
    net = randomize(MViT(drop_path_rate=0.0, **options)).eval().to(device)
    image = torch.randn(1, 3, side, side, device=device)
    if alternative == UPSTREAM:
        ends = [i for i in range(len(net.blocks)) if i in net._stage_of_last_block]
        options = {key: value for key, value in options.items() if key in ("img_size", "embed_dim")}
        if net.blocks[0].shape.window:
            options["adaptive_window_size"] = net.blocks[0].shape.window
        upstream = UpstreamMViT(depth=ends[-1] + 1, last_block_indexes=ends, **NORM, **options)
        upstream.eval().to(device).load_state_dict(net.state_dict())
        return beside(upstream, net, passes, image)
    other = partial(literal.mvit, net)
    return compare(lambda x: list(net(x).values()), other, passes, image, parameters=list(net.parameters()))


def slowfast(quick: bool) -> list[Case]:
    """The network as it was trained, convolution by convolution, is PySlowFast's form."""
    lengths, side = ((8,), 32) if quick else ((8, 16, 32), 224)
    goals = {("eager", 32): Goal(1.3, 1.2), ("compiled", 32): Goal(1.7, 0.9)}
    settings = [("eager", length, "network as trained") for length in lengths]
    if not quick:
        settings.append(("compiled", 32, "network as trained"))
    if create_slowfast:
        settings.append(("eager", lengths[-1], "pytorchvideo"))
    return [
        Case(
            name=f"SlowFast R50 8x8, inference {form}, {length} frames",
            alternative=alternative,
            build=partial(build_slowfast, form, (length, side, side), alternative, quick),
            work=length,
            unit="frames",
            goal=goals.get((form, length), Goal()),
        )
        for form, length, alternative in settings
    ]


def build_slowfast(form: str, size: tuple[int, int, int], alternative: str, quick: bool, device) -> Pair:
    clip = torch.randn(1, 3, *size, device=device)
    if alternative == "pytorchvideo":
        net, other = pytorchvideo_slowfast(device)
    else:
        net = other = randomize(SlowFast(**(TINY_SLOWFAST if quick else {}))).eval().to(device)
    ours = nlnet_d2.optimize_for_inference(net)
    if form == "compiled":
        # As an option of torch.compile it comes too late.
        ours = torch._inductor.config.patch(freezing=True)(torch.compile(ours))
    return compare(ours, other, FORWARD, clip)


def pytorchvideo_slowfast(device) -> tuple[SlowFast, Callable]:
    """Ours with the weights of theirs, and theirs without its head."""
    theirs, net = randomize(create_slowfast()).eval().to(device), SlowFast().eval().to(device)
    nlnet_d2.load_weights(net, theirs.state_dict())

    def run(clip: torch.Tensor) -> list[torch.Tensor]:
        pathways = [clip[:, :, slow_frames(clip.shape[2], net.alpha)], clip]
        for stage in theirs.blocks[:5]:
            pathways = stage(pathways)
        return pathways

    return net, run
