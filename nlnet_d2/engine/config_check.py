"""Values of a config that cannot work, found before anything is built or read; errors name the key."""

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
)
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY

from nlnet_d2.blocks.base import nearest
from nlnet_d2.data.augmentation import AUGMENTATIONS
from nlnet_d2.data.clip_transforms import SAMPLINGS
from nlnet_d2.data.datasets.ava import WITHOUT_PEOPLE
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.evaluation.protocols import PROTOCOLS
from nlnet_d2.layers.norm import GROUPS, get_norm
from nlnet_d2.modeling.people import PEOPLE

REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.PEOPLE.NAME": PEOPLE,
}
BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
CHOICES = {
    "INPUT.AUGMENTATION": ("stock", *AUGMENTATIONS),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.CLIP.SCALE_SAMPLING": SAMPLINGS,
    "INPUT.CLIP.WITHOUT_PEOPLE": WITHOUT_PEOPLE,
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": BOX_LOSSES,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": BOX_LOSSES,
    "SOLVER.AMP.PRECISION": ("auto", "fp16", "bf16"),
    "SOLVER.UNIT": ("iterations", "epochs"),
    "SOLVER.WARMUP_METHOD": ("constant", "linear"),
    "TEST.AVA_PROTOCOL": tuple(PROTOCOLS),
}
AT_LEAST = {
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.CLIP.NUM_FRAMES": 1,
    "INPUT.CLIP.STRIDE": 1,
    "INPUT.CLIP.CROP_TRAIN": 0,
    "INPUT.CLIP.SIZE_TEST": 1,
    "MODEL.VIDEO.ALPHA": 1,
    "MODEL.VIDEO.BETA_INV": 1,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
}
CHANNELS = {"L": 1, "RGBA": 4, "CMYK": 4}  # of INPUT.FORMAT, others have 3
# Where a norm may stand, and the channels that it normalises.
NORMALIZED = [
    ("MODEL.FPN", "OUT_CHANNELS"),
    ("MODEL.ROI_BOX_HEAD", "CONV_DIM"),
    ("MODEL.ROI_MASK_HEAD", "CONV_DIM"),
]
NO_MODULE = ("", "PrecomputedProposals")  # values that Detectron2 understands without a registry


def check_values(cfg: CfgNode) -> None:
    """Raise a ConfigError for the first value that cannot work."""
    _check_names(cfg)
    _check_choices(cfg)
    _check_norms(cfg)
    _check_channels(cfg)
    _check_clips(cfg)
    _refuse_pickles(cfg)


def lookup(cfg: CfgNode, key: str):
    """The value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def keys_of(cfg: CfgNode, value: object, prefix: str = "") -> Iterator[str]:
    """The dotted keys whose value this is, or whose list holds it."""
    for key, node in cfg.items():
        if isinstance(node, CfgNode):
            yield from keys_of(node, value, f"{prefix}{key}.")
        elif node == value or isinstance(node, list | tuple) and value in node:
            yield f"{prefix}{key}"


def _check_names(cfg: CfgNode) -> None:
    """All parts of the model must be registered."""
    for key, registry in REGISTRIES.items():
        name = lookup(cfg, key)
        if name not in NO_MODULE and name not in registry:
            hint = nearest(name, sorted(known for known, _ in registry))
            raise ConfigError(f"{key}: nothing is registered as {name!r}; {hint}")


def _check_choices(cfg: CfgNode) -> None:
    """Values from a list, and numbers from a smallest one."""
    for key, choices in CHOICES.items():
        if lookup(cfg, key) not in choices:
            known = f"{', '.join(choices[:-1])} or {choices[-1]}"
            raise ConfigError(f"{key} is {known}, got {lookup(cfg, key)!r}")
    for key, least in AT_LEAST.items():
        if lookup(cfg, key) < least:
            raise ConfigError(f"{key} is {least} or more, got {lookup(cfg, key)}")
    if cfg.TEST.PATIENCE and not cfg.TEST.EVAL_PERIOD:
        raise ConfigError("TEST.PATIENCE counts evaluations: set TEST.EVAL_PERIOD, which is 0 (never)")


def _check_norms(cfg: CfgNode) -> None:
    """Stock modules would fail with a message that names no key."""
    for section, channels in NORMALIZED:
        node = lookup(cfg, section)
        if node.NORM == "GN" and node[channels] % GROUPS:
            raise ConfigError(
                f"{section}.NORM: GN has {GROUPS} groups, which do not divide the {node[channels]} channels "
                f"of {section}.{channels}; choose a multiple of {GROUPS}, or another norm"
            )
        try:
            get_norm(node.NORM, node[channels])
        except ValueError as error:  # it begins with NORM
            raise ConfigError(f"{section}.{error}") from error


def _check_channels(cfg: CfgNode) -> None:
    """Detectron2 would build a model for as many channels, and fail on the first image."""
    channels = CHANNELS.get(cfg.INPUT.FORMAT, 3)
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        if len(lookup(cfg, key)) != channels:
            raise ConfigError(
                f"{key} has one number per channel, {channels} for INPUT.FORMAT {cfg.INPUT.FORMAT}, got "
                f"{lookup(cfg, key)}"
            )


def _check_clips(cfg: CfgNode) -> None:
    clip, alpha = cfg.INPUT.CLIP, cfg.MODEL.VIDEO.ALPHA
    if len(clip.SCALES_TRAIN) != 2 or not 0 < clip.SCALES_TRAIN[0] <= clip.SCALES_TRAIN[1]:
        raise ConfigError(
            f"INPUT.CLIP.SCALES_TRAIN is [smallest, largest], in pixels, got {list(clip.SCALES_TRAIN)}"
        )
    if cfg.MODEL.BACKBONE.NAME == "SlowFast" and clip.NUM_FRAMES % alpha:
        raise ConfigError(
            f"INPUT.CLIP.NUM_FRAMES {clip.NUM_FRAMES} is no multiple of MODEL.VIDEO.ALPHA {alpha}: the slow "
            "pathway sees one frame in ALPHA"
        )


def _refuse_pickles(cfg: CfgNode) -> None:
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ConfigError(
            "MODEL.LOAD_PROPOSALS: files of proposals are pickles, which Detectron2 runs; leave it False and "
            "take the proposals of a network (MODEL.PROPOSAL_GENERATOR.NAME RPN)"
        )
