"""Image transformers: ViT of MAE, DeiT, timm and Google (JAX), and MViTv2."""

from nlnet_d2.checkpoint.source import Source
from nlnet_d2.checkpoint.sources.resnet import CLASSIFIER, RGB, RGB_FROM_MINUS_ONE
from nlnet_d2.checkpoint.tensors import (
    dense,
    fuse_qkv,
    hwio_to_oihw,
    resize_kernel,
    resize_offsets,
    resize_positions,
    squeeze_time,
)

RESIZE = (
    (r"(^|\.)pos_embed$", resize_positions),
    (r"(^|\.)attn\.rel_pos_[hw]$", resize_offsets),
)

VIT = Source(
    name="vit",
    files="mae_pretrain_vit_base.pth, deit_base_patch16_224-b5f2ef4d.pth, timm vit_base_patch16_224",
    marks=((r"^patch_embed\.proj\.weight$", 4), (r"^blocks\.0\.attn\.qkv\.weight$", 2), (r"^cls_token$", 3)),
    absent=(r"\.attn\.pool_q\.", r"\.gamma$"),
    drops=(
        (r"^(cls|dist)_token$", "a detector has no class token"),
        (r"^(norm|fc_norm)\.", "norm in front of the classifier"),
        (r"^(head|head_dist)\.", CLASSIFIER),
        (r"^(mask_token$|decoder_)", "decoder of the masked pre-training"),
    ),
    ops=((r"^patch_embed\.proj\.weight$", resize_kernel), *RESIZE),
    expects=f"{RGB} (MAE, DeiT); of timm's AugReg: {RGB_FROM_MINUS_ONE}",
)

# Its perceptron approximates GELU by a tanh, where timm and this package compute it: 5e-4 at most.
VIT_JAX = Source(
    name="vit-jax",
    files="ViT-B_16.npz, ViT-L_16.npz, L_16-i21k-*.npz (AugReg) of Google's vision_transformer",
    marks=(
        (r"^(opt/target/)?embedding/kernel$", 4),
        (r"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel$", 3),
    ),
    absent=(r"conv_root/kernel$",),
    drops=(
        (r"^(opt/target/)?cls$", "a detector has no class token"),
        (r"Transformer/encoder_norm/", "norm in front of the classifier"),
        (r"^(opt/target/)?(head|pre_logits)/", CLASSIFIER),
    ),
    stacked=("/query/", "/key/", "/value/"),
    renames=(
        (r"^(opt/target/)?(Transformer/)?", ""),
        (r"^posembed_input/pos_embedding$", "pos_embed"),
        (r"^embedding/", "patch_embed.proj/"),
        (r"^encoderblock_(\d+)/", r"blocks.\1."),
        (r"LayerNorm_0/", "norm1/"),
        (r"LayerNorm_2/", "norm2/"),
        (r"MultiHeadDotProductAttention_1/query/", "attn.qkv/"),
        (r"MultiHeadDotProductAttention_1/out/", "attn.proj/"),
        (r"MlpBlock_3/Dense_0/", "mlp.fc1/"),
        (r"MlpBlock_3/Dense_1/", "mlp.fc2/"),
        (r"/(kernel|scale)$", ".weight"),
        (r"/bias$", ".bias"),
    ),
    ops=(
        (r"^patch_embed\.proj\.weight$", hwio_to_oihw),
        (r"\.attn\.qkv\.(weight|bias)$", fuse_qkv),
        (r"\.(attn\.proj|mlp\.fc\d)\.weight$", dense),
        *VIT.ops,
    ),
    expects=RGB_FROM_MINUS_ONE,
)

MVIT = Source(
    name="mvit",
    files="MViTv2_T_in1k.pyth, MViTv2_B_in21k.pyth",
    marks=((r"^patch_embed\.proj\.weight$", 0), (r"^blocks\.0\.attn\.pool_q\.weight$", 0)),
    absent=(r"\.rel_pos_t$", r"^(backbone|bottom_up)\."),
    drops=(
        (r"^cls_token$", "a detector has no class token"),
        (r"^norm\.", "norm in front of the classifier"),
        (r"^head\.", CLASSIFIER),
    ),
    ops=((r"\.weight$", squeeze_time), *RESIZE),
    expects=RGB,
)

SOURCES = (VIT, VIT_JAX, MVIT)
