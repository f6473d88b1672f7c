"""Image transformers: ViT of MAE, DeiT and timm, and MViTv2."""

from nlnet_d2.checkpoint.source import Source
from nlnet_d2.checkpoint.sources.resnet import CLASSIFIER, RGB
from nlnet_d2.checkpoint.tensors import resize_kernel, resize_offsets, resize_positions, squeeze_time

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
    expects=RGB,
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

SOURCES = (VIT, MVIT)
