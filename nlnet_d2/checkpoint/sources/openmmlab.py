"""mmdetection, GCNet (which was forked from it), mmaction2, and the blocks of mmcv."""

from nlnet_d2.checkpoint.source import Source
from nlnet_d2.checkpoint.sources.resnet import FROM_TORCHVISION, RGB
from nlnet_d2.checkpoint.tensors import (
    background_last,
    drop_background,
    drop_background_boxes,
    linear_or_conv,
    undo_inverse_scale,
)

NO_BIAS = "mmcv's conv_out has no bias in front of a norm"
# Children of mmcv's NonLocal2d and NonLocal3d; with sub-sampling g and phi are Sequential(conv, pool).
FROM_NON_LOCAL = (
    (r"(^|\.)(theta|phi|g)\.(?:0\.)?conv\.", r"\1\2."),
    (r"(^|\.)concat_project\.conv\.", r"\1w_f."),
    (r"(^|\.)conv_out\.conv\.", r"\1out."),
    (r"(^|\.)conv_out\.(bn|gn)\.", r"\1norm."),
)
NON_LOCAL_OPS = ((r"(^|\.)w_f\.weight$", linear_or_conv),)
NON_LOCAL_FILLS = ((r"(^|\.)out\.bias$", 0.0, NO_BIAS),)
# FPN and RPN, the same in all versions.
FROM_NECK = (
    *((rf"^neck\.lateral_convs\.{i}\.conv\.", f"backbone.fpn_lateral{i + 2}.") for i in range(4)),
    *((rf"^neck\.lateral_convs\.{i}\.(bn|gn)\.", f"backbone.fpn_lateral{i + 2}.norm.") for i in range(4)),
    *((rf"^neck\.fpn_convs\.{i}\.conv\.", f"backbone.fpn_output{i + 2}.") for i in range(4)),
    *((rf"^neck\.fpn_convs\.{i}\.(bn|gn)\.", f"backbone.fpn_output{i + 2}.norm.") for i in range(4)),
    (r"^rpn_head\.rpn_conv\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn_head\.rpn_cls\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn_head\.rpn_reg\.", "proposal_generator.rpn_head.anchor_deltas."),
)
# The head of two linear layers and the mask head; mmdetection 2 put them under `roi_head`.
FROM_HEADS = (
    (r"^(roi_head\.)?bbox_head\.shared_fcs\.0\.", "roi_heads.box_head.fc1."),
    (r"^(roi_head\.)?bbox_head\.shared_fcs\.1\.", "roi_heads.box_head.fc2."),
    (r"^(roi_head\.)?bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
    (r"^(roi_head\.)?bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
    *(
        (rf"^(roi_head\.)?mask_head\.convs\.{i}\.conv\.", f"roi_heads.mask_head.mask_fcn{i + 1}.")
        for i in range(4)
    ),
    (r"^(roi_head\.)?mask_head\.upsample\.", "roi_heads.mask_head.deconv."),
    (r"^(roi_head\.)?mask_head\.conv_logits\.", "roi_heads.mask_head.predictor."),
)
FROM_MMDET_RESNET = (
    (r"^backbone\.", ""),
    *FROM_TORCHVISION,
    (r"\.context_block\.", ".after_conv3.0."),
    (r"^(stem|res\d)\.", r"backbone.bottom_up.\1."),
)

MMDET = Source(
    name="mmdet",
    files="mask_rcnn_r50_fpn_1x_coco_*.pth of mmdetection 2 and 3",
    marks=((r"^backbone\.layer1\.0\.conv1\.weight$", 4), (r"^roi_head\.", 0)),
    renames=(*FROM_MMDET_RESNET, *FROM_NECK, *FROM_HEADS),
    expects=f"{RGB}, MODEL.RESNETS.STRIDE_IN_1X1 False (caffe-style files: BGR, True)",
)

MMDET1 = Source(
    name="mmdet1",
    files="mask_rcnn_r16_gcb_c3-c5_r50_fpn_1x_*.pth of GCNet and mmdetection 1",
    marks=((r"^(backbone\.)?layer1\.0\.conv1\.weight$", 4), (r"context_block|^bbox_head\.", 0)),
    absent=(r"^roi_head\.",),
    drops=((r"^fc\.", "classifier of the pre-training"),),
    renames=(*FROM_MMDET_RESNET, *FROM_NECK, *FROM_HEADS),
    ops=(
        (r"box_predictor\.cls_score\.", background_last),
        (r"box_predictor\.bbox_pred\.", drop_background_boxes),
        (r"mask_head\.predictor\.", drop_background),
    ),
    expects=f"{RGB}, MODEL.RESNETS.STRIDE_IN_1X1 False (caffe-style files: BGR, True), POOLER_TYPE ROIAlign, "
    "POOLER_SAMPLING_RATIO 2; its boxes counted their last pixel, ours do not",
)

MMACTION = Source(
    name="mmaction",
    files="slowfast_*_ava*.pth, slowonly_*_ava*.pth of mmaction2",
    marks=((r"^backbone\.((slow|fast)_path\.)?conv1\.conv\.weight$", 5),),
    renames=(
        (r"^backbone\.(slow|fast)_path\.", r"\1."),
        (r"^backbone\.", ""),
        (r"^slow\.conv1_lateral\.", "fuse.stem."),
        *((rf"^slow\.layer{i}_lateral\.", f"fuse.res{i + 1}.") for i in (1, 2, 3)),
        (r"^(slow\.|fast\.|)conv1\.", r"\1stem.conv1."),
        *((rf"^(slow\.|fast\.|)layer{i}\.", rf"\1res{i + 1}.") for i in (1, 2, 3, 4)),
        (r"\.downsample\.", ".shortcut."),
        (r"\.non_local_block\.", ".after_add.0."),
        *FROM_NON_LOCAL,
        (r"\.conv\.", "."),
        (r"\.bn\.", ".norm."),
        (r"^(roi_head\.bbox_head|cls_head)\.fc_cls\.", "action_head.classifier."),
        (r"^(slow|fast|fuse|stem|res\d)\.", r"backbone.\1."),
    ),
    ops=((r"^action_head\.", drop_background), *NON_LOCAL_OPS),
    fills=NON_LOCAL_FILLS,
    expects="MODEL.VIDEO.SLOW_FRAMES nearest, MODEL.VIDEO.FUSION_NORM False (True if trained with "
    "lateral_norm), MODEL.ACTION_HEAD.POOLER_RESOLUTION 8, "
    "PIXEL_MEAN [123.675, 116.28, 103.53], PIXEL_STD [58.395, 57.12, 57.375]",
)

MMCV_BLOCK = Source(
    name="mmcv",
    files="a NonLocal2d or NonLocal3d of mmcv alone",
    marks=((r"^g\.(0\.)?conv\.weight$", 0), (r"^conv_out\.conv\.weight$", 0)),
    renames=FROM_NON_LOCAL,
    ops=NON_LOCAL_OPS,
    fills=NON_LOCAL_FILLS,
)

GCNET_BLOCK = Source(
    name="gcnet",
    files="a NonLocal2D of the GCNet code alone",
    marks=MMCV_BLOCK.marks,
    absent=(r"^(g|phi)\.0\.",),  # it has no sub-sampling
    renames=FROM_NON_LOCAL,
    ops=((r"^theta\.", undo_inverse_scale), *NON_LOCAL_OPS),
    fills=NON_LOCAL_FILLS,
    expects="SUBSAMPLE 1; its inverse scale of the logits is folded into theta",
)

SOURCES = (MMDET, MMDET1, MMACTION, MMCV_BLOCK, GCNET_BLOCK)
