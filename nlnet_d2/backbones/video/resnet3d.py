"""ResNets for clips: C2D and I3D (arXiv 1711.07971, table 1), Slow-only (arXiv 1812.03982, table 1).

One residual network, four tables of temporal kernels. What differs from the 2-D ResNet: the first convolution
of a residual block, conv1, is T x 1 x 1; conv2 is 1 x 3 x 3 and carries stride and dilation.

Names of parameters follow Detectron2's ResNet::

    stem.conv1.{weight,norm.*}
    res{2..5}.{i}.{conv1,conv2,conv3,shortcut}.{weight,norm.*}    shortcut: in block 0 only
    res{2..5}.{i}.{position}.{order}.*                            blocks: res4.5.after_add.0.theta.weight

In public code (PySlowFast) conv1, conv2, conv3, shortcut are branch2.a, .b, .c, branch1. Deliberately
different from it: small networks (R14, R26) have bottlenecks as well, and GN works in every width.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone, ResNet
from torch import nn
from torch.nn import functional as F

from nlnet_d2.backbones.keys import model_keys
from nlnet_d2.backbones.resnet import STAGES, ContextBlockMixin, place_in_stages
from nlnet_d2.backbones.video.conv3d import Conv3d, Stem3d
from nlnet_d2.blocks.base import nearest

DEPTHS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class TemporalKernels(NamedTuple):
    """Temporal kernel sizes: of the stem, and of conv1 per stage, repeated over its residual blocks."""

    stem: int
    res2: tuple[int, ...]
    res3: tuple[int, ...]
    res4: tuple[int, ...]
    res5: tuple[int, ...]
    pool: int = 1  # temporal window and stride of the max-pooling between res2 and res3


ARCHS = {
    "c2d": TemporalKernels(1, (1,), (1,), (1,), (1,), pool=2),
    "i3d": TemporalKernels(5, (3,), (3, 1), (3, 1), (1, 3), pool=2),
    "slow": TemporalKernels(1, (1,), (1,), (3,), (3,)),
    "fast": TemporalKernels(5, (3,), (3,), (3,), (3,)),
}


class ClipShapeSpec(NamedTuple):
    """Detectron2's ``ShapeSpec`` of a map (N, C, T', H', W'), with its temporal stride, in frames."""

    channels: int
    stride: int
    temporal_stride: int


class BottleneckBlock3d(CNNBlockBase):
    """T x 1 x 1, 1 x 3 x 3, 1 x 1 x 1 and the shortcut; ``ContextBottleneckBlock3d`` runs them.

    The norm of conv3 starts at zero, so that the block starts as its shortcut (arXiv 1706.02677, 5.1); not
    FrozenBN, which would stay zero.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        temporal_kernel: int,
        norm: str,
        stride: int = 1,
        dilation: int = 1,
    ):
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = Conv3d(in_channels, out_channels, (1, 1, 1), stride=stride, norm=norm)
        self.conv1 = Conv3d(in_channels, bottleneck_channels, (temporal_kernel, 1, 1), norm=norm)
        self.conv2 = Conv3d(
            bottleneck_channels, bottleneck_channels, (1, 3, 3), stride=stride, dilation=dilation, norm=norm
        )
        self.conv3 = Conv3d(bottleneck_channels, out_channels, (1, 1, 1), norm=norm)
        if norm not in ("", "FrozenBN"):
            nn.init.zeros_(self.conv3.norm.weight)


class ContextBottleneckBlock3d(ContextBlockMixin, BottleneckBlock3d):
    """(N, C, T, H, W) -> (N, C', T, H / stride, W / stride), with context blocks."""

    dim = 3


@BACKBONE_REGISTRY.register()
class ResNet3D(Backbone):
    """C2D, I3D or Slow-only; also a pathway of ``SlowFast``.

    Args:
        arch: a row of ``ARCHS``: "c2d", "i3d", "slow" or "fast".
        depth: 14, 26, 50, 101 or 152, all with bottlenecks.
        blocks: entries of ``MODEL.CONTEXT.BLOCKS``, see ``nlnet_d2/blocks/base.py``.
        norm: "BN", "SubBN", "SyncBN", "FrozenBN", "GN" or "LN".
        stem_channels, width, res2_channels: channels of the stem, and of the bottlenecks and the output of
            res2, doubled at each stage.
        temporal_blocks: how many residual blocks of each stage, from its first, have temporal kernels; () for
            all. The R101 networks named "R101_50_50" have as many as R50: (3, 4, 6, 3).
        res5_stride, res5_dilation: 2 and 1 for classification, 1 and 2 for detection (total stride 16).
        lateral_channels: channels that another pathway adds to the input of res2 ... res5.
        in_channels: 3 for RGB.
        out_features: names of the stages to return.
        freeze_at: number of stages to freeze, the stem counted (BN becomes FrozenBN there).
        use_act_checkpoint: form the activations of the blocks again in the backward pass, see ``recomputed``.

    Input (N, in_channels, T, H, W), output a dict of (N, C, T / temporal stride, H / stride, W / stride).

    Raises:
        ValueError: an unknown arch, depth or feature, an impossible block spec, or a context block in a stage
            that ``freeze_at`` freezes.
    """

    @configurable
    def __init__(
        self,
        *,
        arch: str = "slow",
        depth: int = 50,
        blocks: Sequence[dict] = (),
        norm: str = "BN",
        stem_channels: int = 64,
        width: int = 64,
        res2_channels: int = 256,
        temporal_blocks: Sequence[int] = (),
        res5_stride: int = 2,
        res5_dilation: int = 1,
        lateral_channels: Sequence[int] = (0, 0, 0, 0),
        in_channels: int = 3,
        out_features: Sequence[str] = ("res5",),
        freeze_at: int = 0,
        use_act_checkpoint: bool = False,
    ):
        super().__init__()
        check_choice("MODEL.VIDEO.ARCH", arch, ARCHS)
        check_choice("MODEL.RESNETS.DEPTH", depth, DEPTHS)
        for name in out_features:
            check_choice("MODEL.RESNETS.OUT_FEATURES", name, STAGES)
        placed = place_in_stages(blocks, DEPTHS[depth], freeze_at)
        kernels, strides = temporal_kernels(arch, depth, temporal_blocks), (1, 2, 2, res5_stride)
        norms = [frozen(norm) if i < freeze_at else norm for i in range(5)]
        self.temporal_pool = ARCHS[arch].pool
        self.stem = Stem3d(in_channels, stem_channels, ARCHS[arch].stem, norms[0])
        self._shapes, channels, total = {}, stem_channels, 4
        for i, (name, context) in enumerate(placed.items()):
            stage = ResNet.make_stage(
                ContextBottleneckBlock3d,
                len(context),
                in_channels=channels + lateral_channels[i],
                out_channels=res2_channels * 2**i,
                bottleneck_channels=width * 2**i,
                temporal_kernel_per_block=kernels[name],
                stride_per_block=[strides[i]] + [1] * (len(context) - 1),
                dilation=res5_dilation if name == "res5" else 1,
                context_per_block=context,
                use_act_checkpoint=use_act_checkpoint,
                norm=norms[i + 1],
            )
            self.add_module(name, nn.Sequential(*stage))
            channels, total = res2_channels * 2**i, total * strides[i]
            self._shapes[name] = ClipShapeSpec(channels, total, 1 if i == 0 else self.temporal_pool)
        self._out_features = list(out_features)
        for name in ("stem", *STAGES)[:freeze_at]:
            getattr(self, name).requires_grad_(False)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        model = model_keys(cfg)
        resnets, video = model.RESNETS, model.VIDEO
        return {
            "arch": video.ARCH,
            "depth": resnets.DEPTH,
            "blocks": model.CONTEXT.BLOCKS,
            "norm": resnets.NORM,
            "stem_channels": resnets.STEM_OUT_CHANNELS,
            "width": resnets.WIDTH_PER_GROUP,
            "res2_channels": resnets.RES2_OUT_CHANNELS,
            "temporal_blocks": video.TEMPORAL_BLOCKS,
            "res5_stride": video.RES5_STRIDE,
            "res5_dilation": resnets.RES5_DILATION,
            "in_channels": input_shape.channels,
            "out_features": resnets.OUT_FEATURES,
            "freeze_at": model.BACKBONE.FREEZE_AT,
            "use_act_checkpoint": model.BACKBONE.ACT_CHECKPOINT,
        }

    def output_shape(self) -> dict[str, ClipShapeSpec]:
        """Channels, stride and temporal stride of each map that ``forward`` returns."""
        return {name: self._shapes[name] for name in self._out_features}

    def forward(self, clip: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, T, H, W) -> {stage: (N, C, T', H', W')}."""
        x, features = self.stem(clip), {}
        for name in STAGES:
            x = getattr(self, name)(x)
            if name in self._out_features:
                features[name] = x
            if name == "res2" and self.temporal_pool > 1:
                x = F.max_pool3d(x, (self.temporal_pool, 1, 1))
        return features


def check_choice(key: str, value: object, known: Iterable) -> None:
    """Raise a ValueError that says what ``key`` may be, unless ``value`` is one of ``known``."""
    if value not in known:
        raise ValueError(f"{key} {value!r} is unknown; {nearest(str(value), [str(k) for k in known])}")


def frozen(norm: str) -> str:
    """Statistics of a frozen stage do not move; norms without statistics stay what they are."""
    return "FrozenBN" if norm in ("BN", "SubBN", "SyncBN") else norm


def temporal_kernels(arch: str, depth: int, temporal_blocks: Sequence[int] = ()) -> dict[str, list[int]]:
    """Temporal kernel of conv1, for each stage, for each of its residual blocks."""
    if len(temporal_blocks) not in (0, len(STAGES)):
        raise ValueError(f"MODEL.VIDEO.TEMPORAL_BLOCKS {temporal_blocks}: one number for each of {STAGES}")
    stages = zip(STAGES, DEPTHS[depth], temporal_blocks or DEPTHS[depth], strict=True)
    kernels = {name: getattr(ARCHS[arch], name) for name in STAGES}
    return {
        name: [kernels[name][i % len(kernels[name])] if i < temporal else 1 for i in range(blocks)]
        for name, blocks, temporal in stages
    }
