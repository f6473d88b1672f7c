"""Feature pyramids on a plain vision transformer.

``SimpleFeaturePyramid`` (ViTDet, arXiv 2203.16527) makes every level from the last map. The earlier design of
"Benchmarking Detection Transfer Learning with Vision Transformers" (arXiv 2111.11429) rescales the maps after
each quarter of the blocks (``ViTStages``) and runs Detectron2's FPN on them.
"""

import math
from collections.abc import Callable, Sequence

import torch
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from nlnet_d2.backbones.keys import model_keys
from nlnet_d2.backbones.padding import SquarePadding, SquarePadFPN, fpn_from_config
from nlnet_d2.backbones.vit import LAST, ViT
from nlnet_d2.layers.norm import get_norm, norm_argument

SCALES = (4.0, 2.0, 1.0, 0.5)
FINEST_STRIDE = 4  # in pixels: the level p2


def rescale(dim: int, scale: float, norm: str | Callable) -> tuple[list[nn.Module], int]:
    """Layers that enlarge a map (N, dim, H, W) ``scale`` times, and the channels they leave.

    Raises:
        ValueError: a scale other than 4, 2, 1 and 0.5.
    """
    up = nn.ConvTranspose2d
    if scale == 4:
        half = dim // 2
        between = get_norm(norm, half) or nn.Identity()  # without a norm, the names stay
        return [up(dim, half, 2, 2), between, nn.GELU(), up(half, dim // 4, 2, 2)], dim // 4
    if scale == 2:
        return [up(dim, dim // 2, 2, 2)], dim // 2
    if scale == 1:
        return [], dim
    if scale == 0.5:
        return [nn.MaxPool2d(2, 2)], dim
    raise ValueError(f"scale factor {scale} of the pyramid is not one of {SCALES}")


def level_of(stride: float) -> int:
    """The pyramid level of a stride in pixels: 2 for 4, 3 for 8, ...; ValueError if there is none."""
    level = math.log2(stride)
    if level < 0 or not level.is_integer():
        raise ValueError(
            f"a pyramid has strides 1, 2, 4, ..., not {stride:g}: set MODEL.VIT.PATCH_SIZE to 8, 16 or 32"
        )
    return int(level)


class SimpleFeaturePyramid(SquarePadding, Backbone):
    """Pyramid from one map, each level on its own.

    Args:
        net: backbone that gives ``in_feature``.
        in_feature: name of its map.
        out_channels: channels of every level.
        scale_factors: enlargement of each level, from fine to coarse.
        top_block: stock module that adds coarser levels, such as ``LastLevelMaxPool``, or None.
        norm: normalisation of the convolutions, "" for none.
        square_pad: see ``SquarePadding``.

    Input (N, C, H, W), output a dict of (N, out_channels, H / stride, W / stride) by name "p2", "p3", ...
    """

    def __init__(
        self,
        net: Backbone,
        in_feature: str = LAST,
        out_channels: int = 256,
        scale_factors: Sequence[float] = SCALES,
        top_block: nn.Module | None = None,
        norm: str = "LN",
        square_pad: int = 0,
    ):
        super().__init__()
        shape = net.output_shape()[in_feature]
        self.net, self.in_feature, self.top_block = net, in_feature, top_block
        self.levels = [level_of(shape.stride / scale) for scale in scale_factors]
        for level, scale in zip(self.levels, scale_factors, strict=True):
            layers = _level(shape.channels, out_channels, scale, norm_argument(norm))
            self.add_module(f"simfp_{level}", layers)

        extra = top_block.num_levels if top_block else 0
        names = self.levels + [self.levels[-1] + i + 1 for i in range(extra)]
        self._out_features = [f"p{level}" for level in names]
        self._out_feature_strides = {f"p{level}": 2**level for level in names}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = 2 ** self.levels[-1]
        self.set_square_pad(square_pad)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.check_square(x)
        features = self.net(x)
        x = features[self.in_feature]
        results = {f"p{level}": getattr(self, f"simfp_{level}")(x) for level in self.levels}
        if self.top_block is not None:
            name = self.top_block.in_feature
            coarser = self.top_block(features[name] if name in features else results[name])
            results |= zip(self._out_features[len(results) :], coarser, strict=True)
        return results


def _level(dim: int, out_channels: int, scale: float, norm: str | Callable) -> nn.Sequential:
    """Rescaling, then 1x1 and 3x3 convolutions, each with its norm."""
    layers, dim = rescale(dim, scale, norm)
    for channels, kernel in ((dim, 1), (out_channels, 3)):
        layers.append(
            Conv2d(
                channels,
                out_channels,
                kernel,
                padding=kernel // 2,
                bias=norm == "",
                norm=get_norm(norm, out_channels),
            )
        )
    return nn.Sequential(*layers)


class ViTStages(Backbone):
    """The maps after each quarter of a ViT's blocks, rescaled to strides 4, 8, 16 and 32 for FPN.

    Args:
        net: transformer with patches of 16 pixels that gives ``in_features``.
        in_features: its maps, from the first quarter to the last.
        norm: normalisation between the two transposed convolutions of the first ("GN" in the paper).

    Output a dict of (N, channels, H / stride, W / stride): "scale2", "scale3", "scale4", "scale5".
    """

    def __init__(self, net: ViT, in_features: Sequence[str], norm: str = "GN"):
        super().__init__()
        self.net, self.in_features = net, tuple(in_features)
        shapes = net.output_shape()
        self._out_feature_channels, self._out_feature_strides = {}, {}
        for feature, scale in zip(in_features, SCALES, strict=True):
            layers, channels = rescale(shapes[feature].channels, scale, norm_argument(norm))
            level = level_of(shapes[feature].stride / scale)
            name = f"scale{level}"
            self.add_module(name, nn.Sequential(*layers))
            self._out_feature_channels[name], self._out_feature_strides[name] = channels, 2**level
        self._out_features = list(self._out_feature_strides)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.net(x)
        return {
            name: getattr(self, name)(maps[feature])
            for name, feature in zip(self._out_features, self.in_features, strict=True)
        }


@BACKBONE_REGISTRY.register()
def build_vit_simple_pyramid_backbone(cfg, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """ViTDet: ``MODEL.VIT``, and ``MODEL.FPN`` for OUT_CHANNELS, NORM and SQUARE_PAD.

    Maps p2 ... p6 for patches of 16 pixels, p2 ... p5 for 8, p3 ... p7 for 32.
    """
    net = ViT(cfg, input_shape)
    stride = net.size_divisibility
    scales = [scale for scale in SCALES if stride / scale >= FINEST_STRIDE]
    top_block = LastLevelMaxPool()
    top_block.in_feature = f"p{level_of(stride / scales[-1])}"
    return SimpleFeaturePyramid(
        net,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=scales,
        top_block=top_block,
        norm=cfg.MODEL.FPN.NORM,
        square_pad=cfg.MODEL.FPN.SQUARE_PAD,
    )


@BACKBONE_REGISTRY.register()
def build_vit_fpn_backbone(cfg, input_shape: ShapeSpec) -> SquarePadFPN:
    """FPN on four maps of a ViT (arXiv 2111.11429); config keys as ``build_vit_simple_pyramid_backbone``."""
    depth = model_keys(cfg).VIT.DEPTH
    if depth < len(SCALES):
        raise ValueError(
            f"MODEL.VIT.DEPTH {depth}: the pyramid has a map from each quarter of the blocks: 4 or more"
        )
    taps = [depth * quarter // 4 - 1 for quarter in (1, 2, 3)]
    net = ViT(cfg, input_shape, out_block_indexes=taps)
    return fpn_from_config(cfg, ViTStages(net, in_features=[f"block{i}" for i in taps] + [LAST]))
