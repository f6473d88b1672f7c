"""Video networks: PySlowFast, its and video-nonlocal-net's Caffe2 files, and pytorchvideo."""

from dataclasses import replace

from nlnet_d2.checkpoint.source import Source
from nlnet_d2.checkpoint.sources.resnet import CAFFE2_STATE, FROM_CAFFE2, FUSED_NORMS
from nlnet_d2.checkpoint.tensors import linear_or_conv

GRAY = "RGB, PIXEL_MEAN [114.75, 114.75, 114.75], PIXEL_STD [57.375, 57.375, 57.375]"
# Half a pixel, which shapes do not show.
NOT_ALIGNED = "MODEL.ACTION_HEAD.POOLER_TYPE ROIAlign in"
HEAD_OPS = ((r"^action_head\.classifier\.weight$", linear_or_conv),)

PYSLOWFAST = Source(
    name="pyslowfast",
    files="SLOWFAST_8x8_R50.pyth, ava/SLOWFAST_32x2_R101_50_50.pkl",
    marks=((r"^s1\.pathway0_stem\.conv\.weight$", 5), (r"^s1\.pathway1_stem\.conv\.weight$", 5)),
    renames=(
        (r"^s1_fuse\.", "backbone.fuse.stem."),
        (r"^s(\d)_fuse\.", r"backbone.fuse.res\1."),
        (r"\.conv_f2s\.", "."),
        (r"^s1\.pathway(\d)_stem\.conv\.", r"pathway\1.stem.conv1."),
        (r"^s1\.pathway(\d)_stem\.bn\.", r"pathway\1.stem.conv1.norm."),
        (r"^s(\d)\.pathway(\d)_nonlocal(\d+)\.(conv_)?", r"pathway\2.res\1.\3.after_add.0."),
        (r"^s(\d)\.pathway(\d)_res(\d+)\.", r"pathway\2.res\1.\3."),
        (r"\.branch1\.", ".shortcut."),
        (r"\.branch1_bn\.", ".shortcut.norm."),
        *((rf"\.branch2\.{letter}\.", f".conv{i}.") for i, letter in enumerate("abc", start=1)),
        *((rf"\.branch2\.{letter}_bn\.", f".conv{i}.norm.") for i, letter in enumerate("abc", start=1)),
        (r"\.bn\.", ".norm."),
        (r"^pathway0\.", "backbone.slow."),
        (r"^pathway1\.", "backbone.fast."),
        (r"^head\.projection\.", "action_head.classifier."),
    ),
    ops=HEAD_OPS,
    expects=f"{GRAY}, MODEL.VIDEO.SLOW_FRAMES linspace, {NOT_ALIGNED} ava/*.pkl",
)

CAFFE2_VIDEO = Source(
    name="caffe2-video",
    files="kinetics400/SLOWFAST_8x8_R50.pkl, ava/SLOWFAST_32x2_R101_50_50_v2.1.pkl",
    marks=((r"^conv1_w$", 5), (r"^t_conv1_w$", 5)),
    drops=CAFFE2_STATE,
    renames=(
        (r"^t_pool1_subsample_", "backbone.fuse.stem_"),
        (r"^t_(res\d)_\d+_branch2c_bn_subsample_", r"backbone.fuse.\1_"),
        (r"^nonlocal_conv(\d)_(\d+)_(theta|phi|g|out)_", r"backbone.slow.res\1.\2.after_add.0.\3_"),
        (r"^nonlocal_conv(\d)_(\d+)_bn_", r"backbone.slow.res\1.\2.after_add.0_bn_"),
        (r"^pred_", "action_head.classifier_"),
        (r"^t_", "backbone.fast._"),
        (r"^(res_)?(conv1|res\d)_", r"backbone.slow._\g<0>"),
        *FROM_CAFFE2,
        (r"\._", "."),
    ),
    ops=HEAD_OPS,
    fills=FUSED_NORMS,
    expects="MODEL.VIDEO.SLOW_FRAMES linspace, MODEL.ACTION_HEAD.POOLER_TYPE ROIAlign",
)

FROM_PYTORCHVIDEO_BLOCK = (
    (r"\.branch1_conv\.", ".shortcut."),
    (r"\.branch1_norm\.", ".shortcut.norm."),
    *((rf"\.branch2\.conv_{letter}\.", f".conv{i}.") for i, letter in enumerate("abc", start=1)),
    *((rf"\.branch2\.norm_{letter}\.", f".conv{i}.norm.") for i, letter in enumerate("abc", start=1)),
)
PYTORCHVIDEO = Source(
    name="pytorchvideo",
    files="SLOWFAST_8x8_R50_DETECTION.pyth, hub models slowfast_r50 and slowfast_r50_detection",
    marks=((r"^(model\.)?blocks\.0\.multipathway_blocks\.0\.conv\.weight$", 5),),
    renames=(
        (r"^model\.", ""),
        (r"^blocks\.0\.multipathway_fusion\.", "backbone.fuse.stem."),
        *((rf"^blocks\.{i}\.multipathway_fusion\.", f"backbone.fuse.res{i + 1}.") for i in (1, 2, 3)),
        (r"\.conv_fast_to_slow\.", "."),
        (r"^blocks\.(\d)\.multipathway_blocks\.0\.", r"slow.blocks.\1."),
        (r"^blocks\.(\d)\.multipathway_blocks\.1\.", r"fast.blocks.\1."),
        (r"\.blocks\.0\.conv\.", ".stem.conv1."),
        (r"\.blocks\.0\.norm\.", ".stem.conv1.norm."),
        *((rf"\.blocks\.{i}\.res_blocks\.", f".res{i + 1}.") for i in (1, 2, 3, 4)),
        *FROM_PYTORCHVIDEO_BLOCK,
        (r"^(slow|fast)\.", r"backbone.\1."),
        (r"^(blocks\.6|detection_head)\.proj\.", "action_head.classifier."),
    ),
    ops=HEAD_OPS,
    expects=f"{GRAY}, MODEL.VIDEO.SLOW_FRAMES linspace, {NOT_ALIGNED} detection models",
)


def _one_pathway(source: Source, name: str, files: str, **changes) -> Source:
    """The same table for a network whose only pathway is the slow one."""
    renames = (*source.renames, (r"^backbone\.slow\.", "backbone."))
    return replace(source, name=name, files=files, **({"renames": renames} | changes))


PYSLOWFAST_SINGLE = _one_pathway(
    PYSLOWFAST,
    "pyslowfast-single",
    "SLOW_8x8_R50.pyth, I3D_NLN_8x8_R50.pyth",
    marks=PYSLOWFAST.marks[:1],
    absent=(r"pathway1",),
    expects=GRAY,
)
CAFFE2_VIDEO_SINGLE = _one_pathway(
    CAFFE2_VIDEO,
    "caffe2-video-single",
    "kinetics400/I3D_NLN_8x8_R50.pkl, ava/C2D_8x8_R50.pkl, video-nonlocal-net",
    marks=CAFFE2_VIDEO.marks[:1],
    absent=(r"^t_conv1_w$",),
    expects=CAFFE2_VIDEO.expects,
)
PYTORCHVIDEO_SINGLE = _one_pathway(
    PYTORCHVIDEO,
    "pytorchvideo-single",
    "SLOW_8x8_R50.pyth, hub models slow_r50 and slow_r50_detection",
    marks=((r"^(model\.)?blocks\.0\.conv\.weight$", 5), (r"^(model\.)?blocks\.4\.res_blocks\.", 0)),
    absent=(r"^(model\.)?blocks\.5\.res_blocks\.",),
    renames=(
        (r"^model\.", ""),
        (r"^(blocks\.5|detection_head)\.proj\.", "action_head.classifier."),
        (r"^blocks\.", "backbone.blocks."),
        *PYTORCHVIDEO.renames,
    ),
    expects=f"{GRAY}, {NOT_ALIGNED} detection models",
)
PYTORCHVIDEO_POOLED = replace(
    PYTORCHVIDEO_SINGLE,
    name="pytorchvideo-pooled",
    files="C2D_8x8_R50.pyth, I3D_8x8_R50.pyth, hub models c2d_r50 and i3d_r50",
    marks=(*PYTORCHVIDEO_SINGLE.marks, (r"^(model\.)?blocks\.5\.res_blocks\.", 0)),
    absent=(),
    renames=(
        (r"^model\.", ""),
        (r"^blocks\.6\.", "detection_head."),
        *((rf"^blocks\.{i}\.", f"blocks.{i - 1}.") for i in (3, 4, 5)),  # block 2 is the pooling
        *PYTORCHVIDEO_SINGLE.renames,
    ),
    expects=GRAY,
)

SOURCES = (
    PYSLOWFAST,
    PYSLOWFAST_SINGLE,
    CAFFE2_VIDEO,
    CAFFE2_VIDEO_SINGLE,
    PYTORCHVIDEO,
    PYTORCHVIDEO_SINGLE,
    PYTORCHVIDEO_POOLED,
)
