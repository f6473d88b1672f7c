"""ImageNet ResNets: torchvision (and timm, which names them alike), MoCo, Caffe2 (MSRA, FAIR), and BiT."""

from dataclasses import replace

from nlnet_d2.checkpoint.source import Source
from nlnet_d2.checkpoint.tensors import hwio_to_oihw, inflate

CLASSIFIER = "classifier of the pre-training"
LAST_NORM = "res5.3.norm."  # of BiT, after the three residual blocks of res5
RGB = "INPUT.FORMAT RGB, PIXEL_MEAN [123.675, 116.28, 103.53], PIXEL_STD [58.395, 57.12, 57.375]"
# Google's: from -1 to 1.
RGB_FROM_MINUS_ONE = "INPUT.FORMAT RGB, PIXEL_MEAN [127.5, 127.5, 127.5], PIXEL_STD [127.5, 127.5, 127.5]"
# torchvision's names of a ResNet -> Detectron2's; `layer1` is res2.
FROM_TORCHVISION = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    *((rf"^layer{i}\.", f"res{i + 1}.") for i in (1, 2, 3, 4)),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
# Caffe2's: res2_0_branch2a_bn_s is res2.0.conv1.norm.weight. s, b, rm, riv (the variance, not its inverse).
FROM_CAFFE2 = (
    (r"(^|_)res_conv1_bn_", r"\1conv1_bn_"),
    (r"(^|_)conv1_", r"\1stem.conv1_"),
    (r"(res\d)_(\d+)_branch1_", r"\1.\2.shortcut_"),
    *((rf"(res\d)_(\d+)_branch2{letter}_", rf"\1.\2.conv{i}_") for i, letter in enumerate("abc", start=1)),
    (r"_(bn|gn)_(s|gamma)$", ".norm.weight"),
    (r"_(bn|gn)_(b|beta)$", ".norm.bias"),
    (r"_bn_(rm|running_mean)$", ".norm.running_mean"),
    (r"_bn_(riv|running_var)$", ".norm.running_var"),
    (r"_w$", ".weight"),
    (r"_b$", ".bias"),
)
FUSED_NORM = "the statistics are fused into the scale and bias of the norm"
FUSED_NORMS = (
    (r"\.norm\.running_mean$", 0.0, FUSED_NORM),
    (r"\.norm\.running_var$", 1.0 - 1e-5, FUSED_NORM),  # the norm adds 1e-5 to the variance
)
CAFFE2_STATE = (
    (r"_momentum$", "state of the optimizer"),
    (r"^(lr|model_iter|current_lr|cur_iter)$", "state of the optimizer"),
)

TORCHVISION = Source(
    name="torchvision",
    files="resnet50-0676ba61.pth, resnext101_32x8d-8ba56ff5.pth, ResNets of timm",
    marks=((r"^layer1\.0\.conv1\.weight$", 4), (r"^bn1\.weight$", 1)),
    absent=(r"context_block",),
    drops=((r"^fc\.", CLASSIFIER),),
    renames=FROM_TORCHVISION,
    ops=((r"\.weight$", inflate),),
    expects=f"{RGB}, MODEL.RESNETS.STRIDE_IN_1X1 False",
)

MOCO = Source(
    name="moco",
    files="moco_v1_200ep_pretrain.pth.tar, moco_v2_800ep_pretrain.pth.tar",
    marks=((r"^(encoder_q|base_encoder)\.layer1\.0\.conv1\.weight$", 4),),
    drops=(
        (r"^(encoder_k|momentum_encoder)\.", "the averaged copy of the encoder"),
        (r"^queue", "negative samples of the contrastive loss"),
        (r"^(encoder_q|base_encoder)\.fc\.", "projection of the contrastive loss"),
        (r"^predictor\.", "projection of the contrastive loss"),
    ),
    renames=((r"^(encoder_q|base_encoder)\.", ""), *FROM_TORCHVISION),
    ops=TORCHVISION.ops,
    expects=TORCHVISION.expects,
)

CAFFE2 = Source(
    name="caffe2",
    files="MSRA/R-50.pkl, MSRA/R-101.pkl, FAIR/X-101-32x8d.pkl, FAIR/X-152-32x8d-IN5k.pkl",
    marks=((r"^conv1_w$", 4), (r"^res2_0_branch2a_w$", 4)),
    absent=(r"_gn_",),
    drops=(
        (r"^(fc1000|pred)_[wb]$", CLASSIFIER),
        (r"^conv1_b$", "bias in front of a norm, which Detectron2 leaves out too"),
        *CAFFE2_STATE,
    ),
    renames=FROM_CAFFE2,
    ops=TORCHVISION.ops,
    fills=FUSED_NORMS,
    expects="INPUT.FORMAT BGR; PIXEL_STD [57.375, 57.12, 58.395] for X-101, else [1, 1, 1]; "
    "MODEL.RESNETS.STRIDE_IN_1X1 True in R-50 and R-101, False in X-101 and X-152",
)

CAFFE2_GN = replace(
    CAFFE2,
    name="caffe2-gn",
    files="FAIR/R-50-GN.pkl, FAIR/R-101-GN.pkl",
    marks=(*CAFFE2.marks, (r"_gn_s$", 1)),
    absent=(),
    fills=(),
    expects="INPUT.FORMAT BGR, PIXEL_STD [1, 1, 1], MODEL.RESNETS.STRIDE_IN_1X1 False",
)

BIT = Source(
    name="bit",
    files="BiT-M-R50x1.npz, BiT-S-R101x3.npz",
    marks=((r"^resnet/block1/unit01/a/standardized_conv2d/kernel$", 4),),
    drops=((r"^resnet/head/", CLASSIFIER),),
    renames=(
        (r"^resnet/root_block/standardized_conv2d/", "stem.conv1."),
        (r"^resnet/group_norm/", LAST_NORM),
        *((rf"^resnet/block{i}/", f"res{i + 1}/") for i in (1, 2, 3, 4)),
        *((rf"/unit{i:02d}/", f".{i - 1}.") for i in range(1, 37)),  # 36 in res4 of R152
        (r"a/proj/standardized_conv2d/", "shortcut."),
        *((rf"\.{letter}/standardized_conv2d/", f".conv{i}.") for i, letter in enumerate("abc", start=1)),
        *((rf"\.{letter}/group_norm/", f".norm{i}.") for i, letter in enumerate("abc", start=1)),
        (r"\.(kernel|gamma)$", ".weight"),
        (r"\.beta$", ".bias"),
    ),
    ops=((r"\.weight$", hwio_to_oihw),),
    expects=RGB_FROM_MINUS_ONE,
)

BIT_TIMM = Source(
    name="bit-timm",
    files="resnetv2_50x1_bit, resnetv2_101x3_bit of timm",
    marks=((r"^stem\.conv\.weight$", 4), (r"^stages\.0\.blocks\.0\.norm3\.weight$", 1)),
    absent=(r"\.running_mean$",),
    drops=((r"^head\.fc\.", CLASSIFIER),),
    renames=(
        (r"^stem\.conv\.", "stem.conv1."),
        (r"^norm\.", LAST_NORM),
        *((rf"^stages\.{i}\.blocks\.", f"res{i + 2}.") for i in range(4)),
        (r"\.downsample\.conv\.", ".shortcut."),
    ),
    expects=BIT.expects,
)

SOURCES = (TORCHVISION, MOCO, CAFFE2, CAFFE2_GN, BIT, BIT_TIMM)
