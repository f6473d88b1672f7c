"""Plain vision transformer for detection (ViTDet, arXiv 2203.16527; ViT, arXiv 2010.11929).

Names of parameters are Detectron2's, so its published weights fit. Different on purpose: no timm and no
fairscale; images of any size; in window attention the queries, keys and values of padding are computed for
one token; the attention map is never formed (``layers/attention.py``).
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from nlnet_d2.backbones.keys import model_keys
from nlnet_d2.layers.attention import attend
from nlnet_d2.layers.attention_rows import windowed_rows
from nlnet_d2.layers.drop_path import linear_schedule
from nlnet_d2.layers.layer_norm import ChannelNorm, TokenNorm
from nlnet_d2.layers.mlp import Mlp, init_linear
from nlnet_d2.layers.patch_embed import PatchEmbed
from nlnet_d2.layers.position_embedding import resize_positions
from nlnet_d2.layers.products import Linear
from nlnet_d2.layers.recompute import recomputed
from nlnet_d2.layers.relative_position import decomposed_bias
from nlnet_d2.layers.windows import window_numbers, window_unpartition

LAST = "last_feat"

# Kernels of the convolutions that carry information across windows (arXiv 2203.16527, section 3).
CONV_PROPAGATION = {"naive": (3,), "basic": (3, 3), "bottleneck": (1, 3, 1)}


class Attention(nn.Module):
    """Multi-head self-attention on a map, within windows or across the whole map.

    Args:
        dim: channels.
        num_heads: heads; they divide ``dim``.
        size: side of the map or window for which the relative positions are learnt; None for no positions.
    """

    def __init__(self, dim: int, num_heads: int, size: int | None = None):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.has_positions = size is not None
        if self.has_positions:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * size - 1, dim // num_heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * size - 1, dim // num_heads))

    def forward(self, x: torch.Tensor, window: int = 0) -> torch.Tensor:
        """x: (N, H, W, C) -> (N, H, W, C); ``window`` is the side of the windows, 0 for the whole map."""
        map_hw = x.shape[1:3]
        q, k, v, positions, hw = self._project(x, window)
        x = attend(q, k, v, *positions)  # (N', heads, H' * W', C / heads)
        x = x.transpose(1, 2).reshape(-1, *hw, self.proj.in_features)
        if window:
            x = window_unpartition(x, map_hw)
        return self.proj(x)

    def attention_rows(self, x: torch.Tensor, points: torch.Tensor, window: int = 0) -> torch.Tensor:
        """Where the queries at ``points`` look (see ``layers/attention_rows.py``): (N, Q, heads, H, W)."""
        map_hw = x.shape[1:3]
        q, k, _, positions, hw = self._project(x, window)
        return windowed_rows(q, k, positions, points, hw, hw, map_hw, map_hw)

    def _project(self, x: torch.Tensor, window: int) -> tuple:
        """What ``attend`` takes: q, k, v (N', heads, H' * W', C / heads) and positions; and (H', W')."""
        if window:  # one token of padding, zero before the projection, stands for all of it
            qkv = self.qkv(F.pad(x.flatten(0, 2), (0, 0, 1, 0)))
            qkv = F.embedding(window_numbers(x.shape[:3], window, x.device), qkv)
        else:
            qkv = self.qkv(x)
        hw = qkv.shape[1:3]
        parts = qkv.flatten(1, 2).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        positions = decomposed_bias(q, self.rel_pos_h, self.rel_pos_w, hw, hw) if self.has_positions else ()
        return q, k, v, positions, hw


class ConvPropagation(nn.Sequential):
    """Residual convolutions, channel-first, that begin as the identity: the last norm's weight is zero."""

    def __init__(self, dim: int, kind: str):
        super().__init__()
        kernels = CONV_PROPAGATION[kind]
        widths = [dim // 2] * (len(kernels) - 1) if kind == "bottleneck" else [dim] * (len(kernels) - 1)
        channels = [dim, *widths, dim]
        for i, kernel in enumerate(kernels):
            conv = Conv2d(channels[i], channels[i + 1], kernel, padding=kernel // 2, bias=False)
            c2_msra_fill(conv)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"norm{i + 1}", ChannelNorm(channels[i + 1]))
            if i < len(kernels) - 1:
                self.add_module(f"act{i + 1}", nn.GELU())
        nn.init.zeros_(self[-1].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, H, W, C) -> (N, H, W, C)."""
        return x + super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Pre-norm transformer block: attention, perceptron, and the convolutions of ``residual`` if named."""

    def __init__(
        self, dim: int, num_heads: int, window: int, size: int | None, drop: float, residual: str = ""
    ):
        super().__init__()
        self.window = window
        self.norm1 = TokenNorm(dim)
        self.attn = Attention(dim, num_heads, size)
        self.norm2 = TokenNorm(dim)
        self.mlp = Mlp(dim, dim)
        self.drop_path = StochasticDepth(drop, "row")
        self.residual = ConvPropagation(dim, residual) if residual else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, H, W, C) -> (N, H, W, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x), self.window))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return self.residual(x)


@BACKBONE_REGISTRY.register()
class ViT(Backbone):
    """Plain vision transformer, single scale.

    Args:
        img_size: side of the training images in pixels; sizes the relative positions of global blocks.
        patch_size: side of a patch in pixels, the stride of the output.
        embed_dim, depth, num_heads: B 768, 12, 12; L 1024, 24, 16; H 1280, 32, 16.
        drop_path_rate: stochastic depth of the last block, growing from 0 in the first.
        window_size: side of the attention windows in patches; 0 makes every block global.
        global_block_indexes: blocks (from 0) that attend across the whole map.
        residual_block_indexes: blocks followed by residual convolutions.
        residual_block: "naive", "basic" or "bottleneck", the kind of these convolutions.
        use_rel_pos: relative positions in every block.
        pretrain_img_size: image side of the pre-training in pixels: the absolute positions have its size.
        pretrain_use_cls_token: whether the absolute positions begin with one of a class token.
        use_act_checkpoint: form the activations of the blocks again in the backward pass, see ``recomputed``.
        out_block_indexes: blocks whose output is returned as well, as "block0", "block1", ...
        in_channels: channels of the image.

    Input (N, in_channels, H, W) of any H and W; output a dict of (N, embed_dim, ceil(H / patch_size),
    ceil(W / patch_size)): "last_feat" and those of ``out_block_indexes``.

    Raises:
        ValueError: sizes that do not fit each other, or an unknown ``residual_block``.
    """

    @configurable
    def __init__(
        self,
        *,
        img_size: int = 1024,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        drop_path_rate: float = 0.1,
        window_size: int = 14,
        global_block_indexes: Sequence[int] = (2, 5, 8, 11),
        residual_block_indexes: Sequence[int] = (),
        residual_block: str = "bottleneck",
        use_rel_pos: bool = True,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        use_act_checkpoint: bool = False,
        out_block_indexes: Sequence[int] = (),
        in_channels: int = 3,
    ):
        super().__init__()
        size = img_size // patch_size
        _check_sizes(size, patch_size, embed_dim, num_heads, window_size, pretrain_img_size)
        _check_blocks(depth, residual_block, global_block_indexes, residual_block_indexes, out_block_indexes)
        self.use_act_checkpoint = use_act_checkpoint
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.patch_embed = PatchEmbed(embed_dim, patch_size, patch_size, in_channels=in_channels)
        positions = (pretrain_img_size // patch_size) ** 2 + pretrain_use_cls_token
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, embed_dim))
        self.blocks = nn.ModuleList()
        for i, drop in enumerate(linear_schedule(drop_path_rate, depth)):
            window = 0 if i in global_block_indexes else window_size
            rel_pos_size = (window or size) if use_rel_pos else None
            residual = residual_block if i in residual_block_indexes else ""
            self.blocks.append(Block(embed_dim, num_heads, window, rel_pos_size, drop, residual))

        self._out_blocks = frozenset(out_block_indexes)
        self._out_features = [f"block{i}" for i in out_block_indexes] + [LAST]
        self._out_feature_channels = dict.fromkeys(self._out_features, embed_dim)
        self._out_feature_strides = dict.fromkeys(self._out_features, patch_size)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(init_linear)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        model = model_keys(cfg)
        vit = model.VIT
        return {
            "img_size": vit.IMG_SIZE,
            "patch_size": vit.PATCH_SIZE,
            "embed_dim": vit.EMBED_DIM,
            "depth": vit.DEPTH,
            "num_heads": vit.NUM_HEADS,
            "drop_path_rate": vit.DROP_PATH_RATE,
            "window_size": vit.WINDOW_SIZE,
            "global_block_indexes": vit.GLOBAL_BLOCKS,
            "residual_block_indexes": vit.RESIDUAL_BLOCKS,
            "residual_block": vit.RESIDUAL_BLOCK,
            "use_rel_pos": vit.REL_POS,
            "pretrain_img_size": vit.PRETRAIN_IMG_SIZE,
            "pretrain_use_cls_token": vit.PRETRAIN_CLS_TOKEN,
            "use_act_checkpoint": model.BACKBONE.ACT_CHECKPOINT,
            "in_channels": input_shape.channels,
        }

    @property
    def size_divisibility(self) -> int:
        return self._out_feature_strides[LAST]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.patch_embed(x)
        x = x + resize_positions(self.pos_embed, x.shape[1:3], self.pretrain_use_cls_token)
        features = {}
        for i, block in enumerate(self.blocks):
            x = recomputed(block, x) if self.use_act_checkpoint else block(x)
            if i in self._out_blocks:
                features[f"block{i}"] = x.permute(0, 3, 1, 2)
        features[LAST] = x.permute(0, 3, 1, 2)
        return features


def _check_sizes(size: int, patch: int, dim: int, heads: int, window: int, pretrain_img_size: int) -> None:
    if dim % heads:
        raise ValueError(f"MODEL.VIT: EMBED_DIM {dim} is not a multiple of NUM_HEADS {heads}")
    if window > size:
        raise ValueError(
            f"MODEL.VIT: WINDOW_SIZE {window} is larger than the map of IMG_SIZE / PATCH_SIZE = {size} x "
            f"{size} patches; lower it to {size} or less, or set it to 0 for global attention"
        )
    if pretrain_img_size < patch or pretrain_img_size % patch:
        raise ValueError(
            f"MODEL.VIT: PRETRAIN_IMG_SIZE {pretrain_img_size} is not a multiple of PATCH_SIZE {patch}; set "
            "the image side of the pre-training, which sizes the absolute positions (224 for MAE)"
        )


def _check_blocks(depth: int, residual_block: str, *index_lists: Sequence[int]) -> None:
    if residual_block not in CONV_PROPAGATION:
        raise ValueError(
            f"MODEL.VIT: RESIDUAL_BLOCK {residual_block!r} is not one of {', '.join(CONV_PROPAGATION)}"
        )
    wrong = [i for indexes in index_lists for i in indexes if not 0 <= i < depth]
    if wrong:
        raise ValueError(f"MODEL.VIT: block {wrong[0]} does not exist: DEPTH {depth} has 0 to {depth - 1}")
