"""Multiscale vision transformer for detection (MViTv2, arXiv 2112.01526).

Names of parameters are Detectron2's, so its published weights fit. Different on purpose: no timm and no
fairscale; queries, keys and values are pooled as one channels-last map of all heads; the channels may also
grow in the perceptron before a stage (``expand_attn=False``), as in the checkpoint MViTv2_L_in1k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from nlnet_d2.backbones.keys import model_keys
from nlnet_d2.backbones.padding import SquarePadFPN, fpn_from_config
from nlnet_d2.layers.attention import attend
from nlnet_d2.layers.attention_rows import windowed_rows
from nlnet_d2.layers.drop_path import linear_schedule
from nlnet_d2.layers.layer_norm import TokenNorm
from nlnet_d2.layers.mlp import Mlp, init_linear
from nlnet_d2.layers.patch_embed import PatchEmbed
from nlnet_d2.layers.products import Linear, linear
from nlnet_d2.layers.recompute import recomputed
from nlnet_d2.layers.relative_position import decomposed_bias
from nlnet_d2.layers.watched import is_watched
from nlnet_d2.layers.windows import window_partition, window_unpartition

PATCH_STRIDE = 4


@dataclass(frozen=True)
class BlockShape:
    """What varies between the blocks.

    dim, attn_dim, out_dim: channels of the input, inside the attention and of the output; heads: its heads.
    size: side of the input map at ``img_size``; window: side of its windows, 0 for the whole map.
    stride_q, stride_kv: how much queries, and keys and values, are pooled.
    """

    dim: int
    attn_dim: int
    out_dim: int
    heads: int
    size: int
    window: int
    stride_q: int
    stride_kv: int


def block_shapes(
    img_size: int,
    embed_dim: int,
    depths: Sequence[int],
    num_heads: int,
    window_size: int,
    kv_stride: int,
    expand_attn: bool,
) -> list[BlockShape]:
    """The shapes of all blocks (arXiv 2112.01526, table 1).

    Channels and heads double from stage to stage, sides and strides of keys and values halve. The first block
    of a stage still sees the map and windows of the one before and pools its queries by 2. The last block
    attends across the whole map, except in the first stage; in the second and third it pools keys and values
    once more.

    Raises:
        ValueError: channels that the heads do not divide; a window larger than the map, or one that the
            pooling does not divide.
    """
    if embed_dim % num_heads:
        raise ValueError(f"MODEL.MVIT: EMBED_DIM {embed_dim} is not a multiple of NUM_HEADS {num_heads}")
    shapes = []
    for stage, depth in enumerate(depths):
        for i in range(depth):
            first, last = stage > 0 and i == 0, i == depth - 1
            seen = stage - first  # the stage whose map is the input
            grown = last and stage < len(depths) - 1
            shape = BlockShape(
                dim=embed_dim << (seen if expand_attn else stage),
                attn_dim=embed_dim << stage,
                out_dim=embed_dim << (stage + (grown and not expand_attn)),
                heads=num_heads << stage,
                size=img_size // PATCH_STRIDE >> seen,
                window=0 if last and stage > 0 else window_size >> seen,
                stride_q=2 if first else 1,
                stride_kv=max(kv_stride >> stage, 1) * (2 if grown and stage > 0 else 1),
            )
            _check_window(shape, stage)
            shapes.append(shape)
    return shapes


def _check_window(shape: BlockShape, stage: int) -> None:
    if shape.window > shape.size:
        raise ValueError(
            f"MODEL.MVIT: windows of {shape.window} are larger than the {shape.size} x {shape.size} map of "
            f"stage {stage + 2}: WINDOW_SIZE may be at most IMG_SIZE / {PATCH_STRIDE}"
        )
    if shape.window % shape.stride_q or shape.window % shape.stride_kv:
        raise ValueError(
            f"MODEL.MVIT: stage {stage + 2} pools queries by {shape.stride_q}, keys and values by "
            f"{shape.stride_kv}, which does not divide its windows of {shape.window}: choose another "
            "WINDOW_SIZE or KV_STRIDE"
        )


class PoolingAttention(nn.Module):
    """Attention over pooled queries, keys and values; the pooled queries are added to its output."""

    def __init__(self, shape: BlockShape):
        super().__init__()
        self.shape = shape
        dim = shape.attn_dim
        self.head_dim = dim // shape.heads
        self.qkv = Linear(shape.dim, 3 * dim)
        self.proj = Linear(dim, dim)
        for name, stride in (("q", shape.stride_q), ("k", shape.stride_kv), ("v", shape.stride_kv)):
            pool = nn.Conv2d(
                self.head_dim, self.head_dim, 3, stride, padding=1, groups=self.head_dim, bias=False
            )
            self.add_module(f"pool_{name}", pool)
            self.add_module(f"norm_{name}", TokenNorm(self.head_dim))
        positions = 2 * max(shape.size // shape.stride_q, shape.size // shape.stride_kv) - 1
        self.rel_pos_h = nn.Parameter(torch.zeros(positions, self.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(positions, self.head_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, H, W, dim) -> (N, ceil(H / stride_q), ceil(W / stride_q), attn_dim)."""
        pooled, *others = self._maps(x)
        (q, k, v), positions, q_hw, _ = self._windows(pooled, *others)
        x = attend(q, k, v, *positions)
        x = x.transpose(1, 2).reshape(-1, *q_hw, pooled.shape[-1])
        if self.shape.window:
            x = window_unpartition(x, pooled.shape[1:3])
        return self.proj(x + pooled)

    def attention_rows(self, x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Where the queries at ``points`` look (see ``layers/attention_rows.py``): (N, Q, heads, H', W'),
        over the pooled keys."""
        maps = self._maps(x)
        (q, k, _), positions, q_hw, k_hw = self._windows(*maps)
        return windowed_rows(q, k, positions, points, q_hw, k_hw, maps[0].shape[1:3], maps[1].shape[1:3])

    def _maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Pooled queries, keys and values, each (N, H', W', attn_dim)."""
        # Three products, since the convolutions would copy parts of one.
        if is_watched(self.qkv, Linear):
            maps = self.qkv(x).chunk(3, -1)
        else:
            parts = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
            maps = [linear(x, weight, bias) for weight, bias in parts]
        return [self._pool(name, m) for name, m in zip("qkv", maps, strict=True)]

    def _windows(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple:
        """What ``attend`` takes: (q, k, v), each (N', heads, L, head_dim), and positions; then the sides of
        a window of queries and of one of keys."""
        window = self.shape.window
        if window:
            q = window_partition(q, window // self.shape.stride_q)
            k, v = (window_partition(m, window // self.shape.stride_kv) for m in (k, v))
        q_hw, k_hw = q.shape[1:3], k.shape[1:3]
        q, k, v = (m.flatten(1, 2).unflatten(2, (-1, self.head_dim)).transpose(1, 2) for m in (q, k, v))
        return (q, k, v), decomposed_bias(q, self.rel_pos_h, self.rel_pos_w, q_hw, k_hw), q_hw, k_hw

    def _pool(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Depthwise convolution, the same for every head, then its norm: (N, H, W, C) -> (N, H', W', C)."""
        pool, norm = getattr(self, f"pool_{name}"), getattr(self, f"norm_{name}")
        weight = pool.weight.repeat(self.shape.heads, 1, 1, 1)
        x = F.conv2d(x.permute(0, 3, 1, 2), weight, None, pool.stride, pool.padding, groups=len(weight))
        return norm(x.permute(0, 2, 3, 1).unflatten(3, (-1, self.head_dim))).flatten(3)


class MultiScaleBlock(nn.Module):
    """Pre-norm transformer block that may halve the map and widen the channels."""

    def __init__(self, shape: BlockShape, drop: float):
        super().__init__()
        self.shape = shape
        self.norm1 = TokenNorm(shape.dim)
        self.attn = PoolingAttention(shape)
        self.norm2 = TokenNorm(shape.attn_dim)
        self.mlp = Mlp(shape.attn_dim, shape.out_dim)
        self.proj = Linear(shape.dim, shape.out_dim) if shape.dim != shape.out_dim else None
        self.drop_path = StochasticDepth(drop, "row")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, H, W, dim) -> (N, ceil(H / stride_q), ceil(W / stride_q), out_dim)."""
        normed = self.norm1(x)
        shortcut = self.proj(normed) if self.shape.dim != self.shape.attn_dim else x
        if self.shape.stride_q > 1:
            shortcut = F.max_pool2d(shortcut.permute(0, 3, 1, 2), 3, 2, padding=1).permute(0, 2, 3, 1)
        x = shortcut + self.drop_path(self.attn(normed))
        normed = self.norm2(x)
        shortcut = self.proj(normed) if self.shape.attn_dim != self.shape.out_dim else x
        return shortcut + self.drop_path(self.mlp(normed))


@BACKBONE_REGISTRY.register()
class MViT(Backbone):
    """Multiscale vision transformer of four stages.

    Args:
        img_size: side of the images of the pre-training in pixels; sizes the relative positions.
        embed_dim, num_heads: channels and heads of the first stage.
        depths: blocks per stage: T 1-2-5-2, S 1-2-11-2, B 2-3-16-3, L 2-6-36-4, H 4-8-60-8.
        window_size: side of the attention windows in the first stage, in its tokens.
        kv_stride: pooling of keys and values in the first stage.
        expand_attn: the channels grow in the attention of a stage's first block; otherwise in the perceptron
            of the block before it, and the maps of all stages but the last are twice as wide.
        drop_path_rate: stochastic depth of the last block, growing from 0 in the first.
        use_act_checkpoint: form the activations of the blocks again in the backward pass, see ``recomputed``.
        in_channels: channels of the image.

    Input (N, in_channels, H, W); output a dict of (N, C, ceil(H / stride), ceil(W / stride)): "scale2" ...
    "scale5", strides 4, 8, 16, 32.

    Raises:
        ValueError: see ``block_shapes``.
    """

    @configurable
    def __init__(
        self,
        *,
        img_size: int = 224,
        embed_dim: int = 96,
        depths: Sequence[int] = (1, 2, 5, 2),
        num_heads: int = 1,
        window_size: int = 56,
        kv_stride: int = 4,
        expand_attn: bool = True,
        drop_path_rate: float = 0.2,
        use_act_checkpoint: bool = False,
        in_channels: int = 3,
    ):
        super().__init__()
        self.use_act_checkpoint = use_act_checkpoint
        shapes = block_shapes(img_size, embed_dim, depths, num_heads, window_size, kv_stride, expand_attn)
        self.patch_embed = PatchEmbed(embed_dim, 7, PATCH_STRIDE, padding=3, in_channels=in_channels)
        drops = linear_schedule(drop_path_rate, len(shapes))
        self.blocks = nn.ModuleList(map(MultiScaleBlock, shapes, drops))

        self._stage_of_last_block = {sum(depths[: s + 1]) - 1: f"scale{s + 2}" for s in range(len(depths))}
        self._out_features = list(self._stage_of_last_block.values())
        self._out_feature_strides = {f: PATCH_STRIDE << s for s, f in enumerate(self._out_features)}
        self._out_feature_channels = {f: shapes[i].out_dim for i, f in self._stage_of_last_block.items()}
        for feature, channels in self._out_feature_channels.items():
            self.add_module(f"{feature}_norm", TokenNorm(channels))
        self.apply(init_linear)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        model = model_keys(cfg)
        mvit = model.MVIT
        return {
            "img_size": mvit.IMG_SIZE,
            "embed_dim": mvit.EMBED_DIM,
            "depths": mvit.DEPTHS,
            "num_heads": mvit.NUM_HEADS,
            "window_size": mvit.WINDOW_SIZE,
            "kv_stride": mvit.KV_STRIDE,
            "expand_attn": mvit.EXPAND_ATTN,
            "drop_path_rate": mvit.DROP_PATH_RATE,
            "use_act_checkpoint": model.BACKBONE.ACT_CHECKPOINT,
            "in_channels": input_shape.channels,
        }

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.patch_embed(x)
        features = {}
        for i, block in enumerate(self.blocks):
            x = recomputed(block, x) if self.use_act_checkpoint else block(x)
            if feature := self._stage_of_last_block.get(i):
                features[feature] = getattr(self, f"{feature}_norm")(x).permute(0, 3, 1, 2)
        return features


@BACKBONE_REGISTRY.register()
def build_mvit_fpn_backbone(cfg, input_shape: ShapeSpec) -> SquarePadFPN:
    """``MODEL.MVIT`` with FPN: ``MODEL.FPN`` for OUT_CHANNELS, NORM and SQUARE_PAD; maps p2 ... p6."""
    return fpn_from_config(cfg, MViT(cfg, input_shape))
