"""Published weights that no network here can take: named, so that nobody has to guess why."""

from nlnet_d2.checkpoint.source import Source


def _network(name: str, files: str, *marks: tuple[str, int], why: str) -> Source:
    return Source(name=name, files=files, marks=marks, refused=f"{why}, and no backbone here is one")


SOURCES = (
    _network(
        "vit-hybrid",
        "R50+ViT-B_16.npz of Google's vision_transformer",
        (r"(^|/)conv_root/kernel$", 4),
        (r"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel$", 3),
        why="ViTs on top of a ResNet",
    ),
    _network(
        "convnext",
        "convnext_tiny of timm",
        (r"^stages\.0\.blocks\.0\.conv_dw\.weight$", 4),
        why="ConvNeXts",
    ),
    _network(
        "botnet",
        "botnet26t_256 and halonet26t of timm",
        (r"\.self_attn\.pos_embed\.height_rel$", 2),
        why="ResNets with attention instead of 3 x 3 convolutions",
    ),
    _network(
        "mvit-video",
        "MVIT_B_16x4.pyth, MViTv2_S_16x4 of PySlowFast, mvit_v1_b and mvit_v2_s of torchvision",
        (r"(\.rel_pos_t|pos_embed_temporal|pos_encoding\.(temporal_pos|class_token))$", 0),
        why="MViTs for clips",
    ),
    _network("s3d", "s3d of torchvision", (r"^features\.0\.0\.0\.weight$", 5), why="S3Ds"),
    _network(
        "x3d",
        "X3D_M.pyth of PySlowFast and pytorchvideo",
        (r"^(s1\.pathway0_stem\.conv_xy|(model\.)?blocks\.0\.conv\.conv_t)\.weight$", 5),
        why="X3Ds",
    ),
)
