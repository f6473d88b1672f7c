"""Pre-activation ResNet (v2, arXiv 1603.05027) as in BiT (Big Transfer, arXiv 1912.11370).

Norm and ReLU come before each convolution, and all convolutions are standardised. BiT puts the stride of a
bottleneck into its 3 x 3 convolution, and pads the pooling of the stem with zeros, where Detectron2's other
ResNets pad with minus infinity; the maps in front of it are negative too. R50x3 is three times as wide: see
``stem_channels``.
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.resnet import CNNBlockBase
from fvcore.nn.weight_init import c2_msra_fill
from torch.nn import functional as F

from nlnet_d2.backbones.resnet import (
    DEPTHS,
    STAGES,
    ContextBlockMixin,
    ContextResNet,
    place_in_stages,
    resnet_fpn,
)
from nlnet_d2.layers.norm import get_norm
from nlnet_d2.layers.standardized_conv import StandardizedConv2d


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> StandardizedConv2d:
    conv = StandardizedConv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    c2_msra_fill(conv)
    return conv


class Stem(CNNBlockBase):
    """7 x 7 convolution and pooling, both of stride 2; the first residual block begins with norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, stride=4)
        self.conv1 = _conv(in_channels, out_channels, 7, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, 3, H, W) -> (N, C, H / 4, W / 4)."""
        return F.max_pool2d(F.pad(self.conv1(x), (1, 1, 1, 1)), kernel_size=3, stride=2)


class PreActBottleneckBlock(CNNBlockBase):
    """The layers of a bottleneck; ``norm1`` stands before ``conv1``, and before ``shortcut`` too."""

    def __init__(
        self, in_channels: int, out_channels: int, *, bottleneck_channels: int, stride: int, norm: str
    ):
        super().__init__(in_channels, out_channels, stride)
        self.norm1 = get_norm(norm, in_channels)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1)
        self.norm2 = get_norm(norm, bottleneck_channels)
        self.conv2 = _conv(bottleneck_channels, bottleneck_channels, 3, stride)
        self.norm3 = get_norm(norm, bottleneck_channels)
        self.conv3 = _conv(bottleneck_channels, out_channels, 1)
        self.shortcut = None if in_channels == out_channels else _conv(in_channels, out_channels, 1, stride)


class ContextPreActBottleneckBlock(ContextBlockMixin, PreActBottleneckBlock):
    """The residual block; its context blocks stand where those of ``ContextBottleneckBlock`` do."""

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu_(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self._context("after_conv1", F.relu_(self.norm2(self.conv1(out))))
        out = self._context("after_conv2", F.relu_(self.norm3(self.conv2(out))))
        out = self._context("after_conv3", self.conv3(out))
        return self._context("after_add", out + shortcut)


class LastNorm(CNNBlockBase):
    """Norm and ReLU after the last residual block, which ends with an addition."""

    def __init__(self, channels: int, norm: str):
        super().__init__(channels, channels, stride=1)
        self.norm = get_norm(norm, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu_(self.norm(x))


@BACKBONE_REGISTRY.register()
class ResNetV2(ResNet):
    """BiT's network on Detectron2's ``ResNet``, with context blocks.

    Args:
        depth: 50, 101 or 152.
        blocks: entries of ``MODEL.CONTEXT.BLOCKS``, see ``nlnet_d2/blocks/base.py``.
        norm: GN in BiT; another of ``get_norm``, but not "".
        stem_channels, width_per_group, res2_channels: output channels of the stem, of the 3 x 3 convolutions
            in res2, and of res2; the latter two double at each stage. BiT-R50x3: three times the defaults.
        freeze_at: number of stages to freeze, the stem counted.
        use_act_checkpoint: form the activations of the blocks again in the backward pass, see ``recomputed``.

    Input (N, in_channels, H, W), output a dict of (N, C, H / stride, W / stride) by stage: sums of res2, res3
    and res4; res5 after the last norm and ReLU, as the classifier of the pre-training saw it.

    Raises:
        ValueError: a depth without bottlenecks, no norm, an impossible block spec, or a context block in a
            stage that ``freeze_at`` freezes.
    """

    @configurable
    def __init__(
        self,
        *,
        depth: int = 50,
        blocks: Sequence[dict] = (),
        norm: str = "GN",
        stem_channels: int = 64,
        width_per_group: int = 64,
        res2_channels: int = 256,
        in_channels: int = 3,
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 0,
        use_act_checkpoint: bool = False,
    ):
        if depth not in (50, 101, 152):
            raise ValueError(f"MODEL.RESNETS.DEPTH {depth}: BiT has depths 50, 101 and 152")
        if not norm:
            raise ValueError("MODEL.RESNETS.NORM is empty: a pre-activation ResNet needs one, BiT GN")
        stages, channels = [], stem_channels
        for i, context in enumerate(place_in_stages(blocks, DEPTHS[depth], freeze_at).values()):
            stage = self.make_stage(
                ContextPreActBottleneckBlock,
                num_blocks=len(context),
                in_channels=channels,
                out_channels=res2_channels * 2**i,
                bottleneck_channels=width_per_group * 2**i,
                norm=norm,
                stride_per_block=[1 if i == 0 else 2] + [1] * (len(context) - 1),
                context_per_block=context,
                use_act_checkpoint=use_act_checkpoint,
            )
            channels = stage[-1].out_channels
            stages.append(stage)
        stages[-1].append(LastNorm(channels, norm))
        super().__init__(Stem(in_channels, stem_channels), stages, None, list(out_features), freeze_at)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        resnets = cfg.MODEL.RESNETS
        if resnets.NUM_GROUPS != 1 or resnets.RES5_DILATION != 1 or any(resnets.DEFORM_ON_PER_STAGE):
            raise ValueError("MODEL.RESNETS: BiT has no grouped, dilated or deformable convolutions")
        options = ContextResNet.from_config(cfg, input_shape)
        bottlenecks = ("num_groups", "stride_in_1x1", "res5_dilation")  # of another kind, as are deform_*
        return {k: v for k, v in options.items() if k not in bottlenecks and not k.startswith("deform_")}


@BACKBONE_REGISTRY.register()
def build_resnet_v2_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """``ResNetV2`` with a feature pyramid."""
    return resnet_fpn(cfg, ResNetV2(cfg, input_shape))
