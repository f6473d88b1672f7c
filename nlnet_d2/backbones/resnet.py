"""ResNet and ResNeXt (arXiv 1512.03385, 1611.05431) whose residual blocks carry context blocks.

Everything but the context blocks is Detectron2's own, names of parameters included: a context block is a
child of the residual block it belongs to (``res4.4.after_add.0.theta.weight``), so pretrained weights fit.
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, DeformBottleneckBlock
from torch import nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from nlnet_d2.backbones.keys import model_keys
from nlnet_d2.blocks.base import KEY, BlockSpec, place_blocks
from nlnet_d2.layers.norm import norm_argument
from nlnet_d2.layers.recompute import recomputed

STAGES = ("res2", "res3", "res4", "res5")
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ContextBlockMixin(nn.Module):
    """Makes one of Detectron2's residual blocks run the context blocks of ``context``, a list of specs.

    ``use_act_checkpoint``: see ``recomputed``.
    """

    convs = ("conv1", "conv2", "conv3")
    dim = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        context: Sequence[BlockSpec] = (),
        use_act_checkpoint: bool = False,
        **kwargs,
    ):
        super().__init__(in_channels, out_channels, **kwargs)
        self.use_act_checkpoint = use_act_checkpoint
        blocks: dict[str, list[nn.Module]] = {}
        for spec in context:
            layer = spec.position.removeprefix("after_")
            if layer not in (*self.convs, "add"):
                raise ValueError(f"{KEY}: {spec.name}: a basic residual block has no {layer}")
            channels = out_channels if layer == "add" else getattr(self, layer).out_channels
            blocks.setdefault(spec.position, []).append(spec.build(channels, self.dim))
        for position, modules in blocks.items():
            self.add_module(position, nn.Sequential(*modules))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W) -> (N, C', H / stride, W / stride)."""
        return recomputed(self, x, self._forward) if self.use_act_checkpoint else self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for name in self.convs:
            out = self._convolve(name, out)
            if name != self.convs[-1]:
                out = F.relu_(out)
            out = self._context(f"after_{name}", out)
        out += x if self.shortcut is None else self.shortcut(x)
        return self._context("after_add", F.relu_(out))

    def _convolve(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, name)(x)

    def _context(self, position: str, x: torch.Tensor) -> torch.Tensor:
        blocks = getattr(self, position, None)
        return x if blocks is None else blocks(x)


class ContextBasicBlock(ContextBlockMixin, BasicBlock):
    """The residual block of R18 and R34."""

    convs = ("conv1", "conv2")


class ContextBottleneckBlock(ContextBlockMixin, BottleneckBlock):
    """The residual block of R50 and deeper."""


class ContextDeformBottleneckBlock(ContextBlockMixin, DeformBottleneckBlock):
    """The residual block with a deformable 3x3 convolution (arXiv 1703.06211, 1811.11168).

    torchvision computes it: Detectron2's own operator cannot train on a CPU.
    """

    def _convolve(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if name != "conv2":
            return super()._convolve(name, x)
        offset, mask, conv = self.conv2_offset(x), None, self.conv2
        if self.deform_modulated:
            offset, mask = offset.split([offset.shape[1] * 2 // 3, offset.shape[1] // 3], dim=1)
            mask = mask.sigmoid()
        out = deform_conv2d(x, offset, conv.weight, None, conv.stride, conv.padding, conv.dilation, mask)
        return out if conv.norm is None else conv.norm(out)


@BACKBONE_REGISTRY.register()
class ContextResNet(ResNet):
    """Detectron2's ResNet with context blocks.

    Args:
        depth: 18, 34, 50, 101 or 152.
        blocks: entries of ``MODEL.CONTEXT.BLOCKS``, see ``nlnet_d2/blocks/base.py``.
        num_groups, width_per_group: groups of the 3x3 convolutions and their width in res2 (ResNeXt: 32 x 4).
        res2_channels: output channels of res2, doubled at each stage; None for 64 (R18, R34) or 256.
        deform_on_per_stage: which of res2 ... res5 have deformable 3x3 convolutions.
        freeze_at: number of stages to freeze, the stem counted.
        use_act_checkpoint: form the activations of the blocks again in the backward pass, see ``recomputed``.
        The rest as in ``MODEL.RESNETS`` of Detectron2.

    Input (N, in_channels, H, W), output a dict of (N, C, H / stride, W / stride) by stage.

    Raises:
        ValueError: an unknown depth, an impossible block spec, a context block in a stage that ``freeze_at``
            freezes, or bottleneck options or channels for a depth without bottlenecks.
    """

    @configurable
    def __init__(
        self,
        *,
        depth: int = 50,
        blocks: Sequence[dict] = (),
        norm: str = "FrozenBN",
        num_groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = True,
        stem_channels: int = 64,
        res2_channels: int | None = None,
        res5_dilation: int = 1,
        deform_on_per_stage: Sequence[bool] = (False, False, False, False),
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        in_channels: int = 3,
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 0,
        use_act_checkpoint: bool = False,
    ):
        if depth not in DEPTHS:
            raise ValueError(f"MODEL.RESNETS.DEPTH {depth} is unknown; choose one of {list(DEPTHS)}")
        if depth < 50 and (any(deform_on_per_stage) or num_groups != 1 or res5_dilation != 1):
            raise ValueError(f"R{depth} has no bottlenecks: no deformable, grouped or dilated convolutions")
        if depth < 50 and res2_channels == 256:
            raise ValueError(
                f"MODEL.RESNETS.RES2_OUT_CHANNELS 256, its default, is for bottlenecks; R{depth} has 64"
            )
        placed = place_in_stages(blocks, DEPTHS[depth], freeze_at)
        res2_channels = res2_channels or (64 if depth < 50 else 256)
        stages, channels = [], stem_channels
        for i, context in enumerate(placed.values()):
            dilation = res5_dilation if i == 3 else 1
            kwargs = {"block_class": ContextBasicBlock}
            if depth >= 50:
                kwargs = {
                    "block_class": ContextBottleneckBlock,
                    "bottleneck_channels": num_groups * width_per_group * 2**i,
                    "num_groups": num_groups,
                    "stride_in_1x1": stride_in_1x1,
                    "dilation": dilation,
                }
            if deform_on_per_stage[i]:
                kwargs["block_class"] = ContextDeformBottleneckBlock
                kwargs |= {"deform_modulated": deform_modulated, "deform_num_groups": deform_num_groups}
            stride = 1 if i == 0 or dilation > 1 else 2
            stage = self.make_stage(
                num_blocks=len(context),
                in_channels=channels,
                out_channels=res2_channels * 2**i,
                norm=norm_argument(norm),
                stride_per_block=[stride] + [1] * (len(context) - 1),
                context_per_block=context,
                use_act_checkpoint=use_act_checkpoint,
                **kwargs,
            )
            channels = stage[-1].out_channels
            stages.append(stage)
        stem = BasicStem(in_channels=in_channels, out_channels=stem_channels, norm=norm_argument(norm))
        super().__init__(stem, stages, out_features=list(out_features), freeze_at=freeze_at)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        model = model_keys(cfg)
        resnets = model.RESNETS
        return {
            "depth": resnets.DEPTH,
            "blocks": model.CONTEXT.BLOCKS,
            "norm": resnets.NORM,
            "num_groups": resnets.NUM_GROUPS,
            "width_per_group": resnets.WIDTH_PER_GROUP,
            "stride_in_1x1": resnets.STRIDE_IN_1X1,
            "stem_channels": resnets.STEM_OUT_CHANNELS,
            "res2_channels": resnets.RES2_OUT_CHANNELS,
            "res5_dilation": resnets.RES5_DILATION,
            "deform_on_per_stage": resnets.DEFORM_ON_PER_STAGE,
            "deform_modulated": resnets.DEFORM_MODULATED,
            "deform_num_groups": resnets.DEFORM_NUM_GROUPS,
            "in_channels": input_shape.channels,
            "out_features": resnets.OUT_FEATURES,
            "freeze_at": model.BACKBONE.FREEZE_AT,
            "use_act_checkpoint": model.BACKBONE.ACT_CHECKPOINT,
        }


def place_in_stages(
    blocks: Sequence[dict], depths: Sequence[int], freeze_at: int
) -> dict[str, list[list[BlockSpec]]]:
    """``place_blocks`` in res2 ... res5 of ``depths`` residual blocks.

    Raises:
        ValueError: see there; or a context block in a frozen stage, where it would stay the identity that it
            starts as.
    """
    placed = place_blocks(blocks, dict(zip(STAGES, depths, strict=True)))
    for i, (stage, contexts) in enumerate(placed.items(), start=2):
        if freeze_at >= i and any(contexts):
            raise ValueError(
                f"{KEY} puts a block in {stage}, which MODEL.BACKBONE.FREEZE_AT={freeze_at} freezes: it "
                f"could never learn. Set FREEZE_AT to {i - 1} or less, or move the block to a later stage"
            )
    return placed


def resnet_fpn(cfg, bottom_up: ResNet) -> FPN:
    """Detectron2's FPN (arXiv 1612.03144) on ``bottom_up``: maps p2 ... p6, or fewer."""
    in_features, maps = cfg.MODEL.FPN.IN_FEATURES, list(bottom_up.output_shape())
    if not in_features or not set(in_features) <= set(maps):
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES {in_features} does not name maps of the backbone, {maps}: set it and "
            "MODEL.RESNETS.OUT_FEATURES, for example both to [res2, res3, res4, res5]"
        )
    top_block = LastLevelMaxPool()
    top_block.in_feature = in_features[-1].replace("res", "p")  # stock: p5, whatever there is
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=norm_argument(cfg.MODEL.FPN.NORM),
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_context_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """``ContextResNet`` with a feature pyramid."""
    return resnet_fpn(cfg, ContextResNet(cfg, input_shape))
