"""The formulas of the papers, written as they read: what the fast paths of nlnet_d2 are measured against.

Each function computes what a module of nlnet_d2 computes, with the parameters of that module. Every matrix of
a formula is formed, in the order of the text, by the library that PyTorch's own layers multiply with.
"""

import torch
from torch.nn import functional as F

from nlnet_d2.backbones.mvit import MultiScaleBlock, MViT, PoolingAttention
from nlnet_d2.backbones.vit import Attention, ViT
from nlnet_d2.blocks.context import GlobalContext
from nlnet_d2.blocks.nonlocal_ import NonLocal
from nlnet_d2.layers.position_embedding import resize_positions
from nlnet_d2.layers.products import use_onednn
from nlnet_d2.layers.relative_position import relative_positions


def non_local(block: NonLocal, x: torch.Tensor) -> torch.Tensor:
    """arXiv 1711.07971, equations 1 to 6, embedded Gaussian or dot product: (N, C, H, W) -> (N, C, H, W)."""
    theta, phi, g = (conv(x).flatten(2) for conv in (block.theta, block.phi, block.g))  # (N, C', P)
    f = torch.einsum("ncp,ncm->npm", theta, phi)
    f = f / f.shape[2] if block.mode == "dot_product" else (f * block.scale).softmax(-1)
    y = torch.einsum("npm,ncm->ncp", f, g)
    return x + block.norm(block.out(y.unflatten(2, x.shape[2:])))


def global_context(block: GlobalContext, x: torch.Tensor) -> torch.Tensor:
    """arXiv 1904.11492, "Global Context Block", additive fusion: (N, C, H, W) -> (N, C, H, W)."""
    alpha = block.conv_mask(x).flatten(2).softmax(-1)  # (N, 1, P)
    context = x.flatten(2) @ alpha.transpose(1, 2)  # (N, C, 1)
    return x + block.channel_add_conv(context.unsqueeze(3))


def attention(q, k, v, table_h, table_w, q_hw, k_hw) -> torch.Tensor:
    """arXiv 2112.01526, equations 3 and 4: softmax(q kT / sqrt(d) + E) v with E_ij = q_i . (R^h_ij + R^w_ij).

    As in the authors' code, E is not divided by sqrt(d); equation 3 divides it too.
    Shapes as in ``nlnet_d2.layers.attention.attend``; tables as in ``relative_positions``.
    """
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    q = q.unflatten(2, q_hw)
    rel_h = torch.einsum("nahwc,hkc->nahwk", q, relative_positions(table_h, q_hw[0], k_hw[0]))
    rel_w = torch.einsum("nahwc,wkc->nahwk", q, relative_positions(table_w, q_hw[1], k_hw[1]))
    logits = logits.view(*rel_h.shape, k_hw[1]) + rel_h.unsqueeze(5) + rel_w.unsqueeze(4)
    return logits.flatten(4).flatten(2, 3).softmax(-1) @ v


def cut(x: torch.Tensor, size: int) -> torch.Tensor:
    """Windows of a map padded with zeros (arXiv 2203.16527, 3): (N, H, W, C) -> (N', size, size, C)."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % size, 0, -x.shape[1] % size))
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))  # (N, rows, size, columns, size, C)
    return x.transpose(2, 3).flatten(0, 2)


def paste(windows: torch.Tensor, hw: tuple[int, int]) -> torch.Tensor:
    """The map (N, H, W, C) of ``cut``, without the padding."""
    rows, columns = (-(-side // windows.shape[1]) for side in hw)
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : hw[0], : hw[1]]


@use_onednn(False)
def vit(net: ViT, image: torch.Tensor) -> torch.Tensor:
    """arXiv 2203.16527, section 3: (N, 3, H, W) -> (N, C, H / patch, W / patch)."""
    x = net.patch_embed(image)
    x = x + resize_positions(net.pos_embed, x.shape[1:3], net.pretrain_use_cls_token)
    for block in net.blocks:
        windows = block.norm1(x)
        if block.window:
            windows = cut(windows, block.window)
        windows = _vit_attention(block.attn, windows)
        x = x + (paste(windows, x.shape[1:3]) if block.window else windows)
        x = x + block.mlp(block.norm2(x))
    return x.permute(0, 3, 1, 2)


def _vit_attention(attn: Attention, x: torch.Tensor) -> torch.Tensor:
    count, height, width, channels = x.shape
    qkv = attn.qkv(x).reshape(count, height * width, 3, attn.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, P, d)
    y = attention(q, k, v, attn.rel_pos_h, attn.rel_pos_w, (height, width), (height, width))
    return attn.proj(y.transpose(1, 2).reshape(count, height, width, channels))


@use_onednn(False)
def mvit(net: MViT, image: torch.Tensor) -> list[torch.Tensor]:
    """arXiv 2112.01526, section 4.1: (N, 3, H, W) -> the maps of all stages."""
    x, features = net.patch_embed(image), []
    for i, block in enumerate(net.blocks):
        x = _multi_scale_block(block, x)
        if feature := net._stage_of_last_block.get(i):
            features.append(getattr(net, f"{feature}_norm")(x).permute(0, 3, 1, 2))
    return features


def _multi_scale_block(block: MultiScaleBlock, x: torch.Tensor) -> torch.Tensor:
    shape, normed = block.shape, block.norm1(x)
    shortcut = block.proj(normed) if shape.dim != shape.attn_dim else x
    if shape.stride_q > 1:
        shortcut = F.max_pool2d(shortcut.permute(0, 3, 1, 2), 3, 2, padding=1).permute(0, 2, 3, 1)
    x = shortcut + _pooling_attention(block.attn, normed)
    normed = block.norm2(x)
    shortcut = block.proj(normed) if shape.attn_dim != shape.out_dim else x
    return shortcut + block.mlp(normed)


def _pooling_attention(attn: PoolingAttention, x: torch.Tensor) -> torch.Tensor:
    """Every head pooled as an image of its own, windows cut from the pooled maps."""
    shape, count = attn.shape, x.shape[0]
    qkv = attn.qkv(x).reshape(*x.shape[:3], 3, shape.heads, -1).permute(3, 0, 4, 5, 1, 2)
    maps = []
    for name, heads in zip("qkv", qkv.flatten(1, 2), strict=True):  # (N * heads, d, H, W)
        pooled = getattr(attn, f"pool_{name}")(heads).permute(0, 2, 3, 1)
        maps.append(getattr(attn, f"norm_{name}")(pooled))  # (N * heads, H', W', d)
    residual, map_hw = maps[0], maps[0].shape[1:3]
    if shape.window:
        sizes = [shape.window // stride for stride in (shape.stride_q, shape.stride_kv, shape.stride_kv)]
        maps = [cut(m, size) for m, size in zip(maps, sizes, strict=True)]
    q_hw, k_hw = maps[0].shape[1:3], maps[1].shape[1:3]
    q, k, v = (m.flatten(1, 2).unsqueeze(1) for m in maps)
    y = attention(q, k, v, attn.rel_pos_h, attn.rel_pos_w, q_hw, k_hw).squeeze(1).unflatten(1, q_hw)
    if shape.window:
        y = paste(y, map_hw)
    y = (y + residual).unflatten(0, (count, -1)).permute(0, 2, 3, 1, 4).flatten(3)
    return attn.proj(y)
