"""From command-line arguments to a complete config, with errors that say what was meant."""

import argparse
import logging
import re
from collections.abc import Iterator, Mapping

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
)

from nlnet_d2.blocks.base import nearest
from nlnet_d2.config import add_nlnet_config
from nlnet_d2.data.datasets.coco import num_classes, num_keypoints, register_from_config
from nlnet_d2.data.errors import DataError
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.layers.norm import GROUPS

logger = logging.getLogger(__name__)

REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
}
COCO_KEYPOINTS = 17  # those whose OKS sigmas the evaluation knows
# Where a norm may stand, and the channels that it normalises.
GROUPED = [
    ("MODEL.FPN", "OUT_CHANNELS"),
    ("MODEL.ROI_BOX_HEAD", "CONV_DIM"),
    ("MODEL.ROI_MASK_HEAD", "CONV_DIM"),
]
NO_MODULE = ("", "PrecomputedProposals")  # values that Detectron2 understands without a registry


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's own flags, and ``--dataset``."""
    parser = default_argument_parser()
    parser.add_argument(
        "--dataset",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGE_DIR"),
        help="register COCO-format data under a name for DATASETS.TRAIN and DATASETS.TEST (repeatable)",
    )
    return parser


def load_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line; data sets of one's own are registered on the way.

    What was left at its default follows from the machine and the data: MODEL.DEVICE, the numbers of classes
    and keypoints.

    Raises:
        ConfigError: a file, key, value or name that does not exist or fit.
        DataError: a data set given by ``--dataset`` or DATASETS.REGISTER that cannot be read.
    """
    cfg = get_cfg()
    add_nlnet_config(cfg)
    given = set(_merge_file(cfg, args.config_file)) if args.config_file else set()
    given |= _merge_options(cfg, args.opts)
    for name, json_file, image_root in args.dataset:
        cfg.DATASETS.REGISTER = [
            *cfg.DATASETS.REGISTER,
            {"NAME": name, "JSON": json_file, "IMAGES": image_root},
        ]
    _check_names(cfg)
    _check_groups(cfg)
    register_data(cfg)
    _fit_to_data(cfg, given)
    _fit_to_machine(cfg, given)
    cfg.freeze()
    return cfg


def register_data(cfg: CfgNode) -> None:
    """Register DATASETS.REGISTER, and see that all data sets named in the config exist."""
    try:
        register_from_config(cfg)
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from error
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                hint = suggest(
                    name, DatasetCatalog.list(), "register your own with --dataset NAME JSON IMAGE_DIR"
                )
                raise ConfigError(f"DATASETS.{key}: no data set is named {name!r}; {hint}")


def suggest(word: str, known: list[str], otherwise: str) -> str:
    """The end of an error message: the names nearest to ``word``, or ``otherwise``."""
    hint = nearest(word, known)
    return hint if hint.startswith("did you mean") else otherwise


def _merge_file(cfg: CfgNode, path: str) -> Iterator[str]:
    """Merge a YAML file and its bases; yields the keys that it sets."""
    try:
        content = CfgNode.load_yaml_with_base(path, allow_unsafe=False)
    except OSError as error:
        raise ConfigError(f"--config-file {path}: {error.strerror or error}") from error
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"{path}: {error.problem}{error.problem_mark}: tags that run Python are refused; write the value"
        ) from error
    except (yaml.YAMLError, AssertionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a map of keys, got {type(content).__name__}")
    _merge(cfg, path, lambda: cfg.merge_from_file(path, allow_unsafe=False))
    return leaves(content)


def _merge_options(cfg: CfgNode, options: list[str]) -> set[str]:
    """Merge the trailing KEY VALUE pairs; returns the keys."""
    options = [word for word in options if word != "--"]
    flags = [word for word in options if word.startswith("--")]
    if flags or len(options) % 2:
        problem = f"{flags[0]} must come before them" if flags else f"got an odd number of words: {options}"
        raise ConfigError(f"config options are pairs KEY VALUE at the end of the command line; {problem}")
    _merge(cfg, "command line", lambda: cfg.merge_from_list(options))
    return set(options[0::2])


def _merge(cfg: CfgNode, source: str, merge) -> None:
    """Run ``merge``, with errors of yacs that name the source and the remedy."""
    try:
        merge()
    except (KeyError, AssertionError) as error:
        message = str(error.args[0])
        unknown = re.search(r"Non-existent (?:config )?key: (\S+)", message)
        if not unknown:
            raise ConfigError(f"{source}: {message}") from error
        parent = unknown[1].rpartition(".")[0]
        siblings = [key for key in leaves(cfg) if key.rpartition(".")[0] == parent]
        otherwise = f"{parent or 'the top level'} has {', '.join(siblings) or 'no such section'}"
        raise ConfigError(
            f"{source}: unknown key {unknown[1]}; {suggest(unknown[1], list(leaves(cfg)), otherwise)}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{source}: {_explain_type(str(error))}") from error


def _explain_type(message: str) -> str:
    mismatch = re.search(
        r"<class '(\w+)'> vs. <class '(\w+)'>\) with values \((.*) vs. (.*)\) for config key: (\S+)", message
    )
    if not mismatch:
        return message
    wanted, got, default, value, key = mismatch.groups()
    remedy = {"bool": "; write True or False", "float": "; write it with a point, such as 1.0"}.get(
        wanted, ""
    )
    return f"{key} takes {wanted} (now {default}), got {got} {value}{remedy}"


def leaves(tree: Mapping, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all leaves of nested maps."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def lookup(cfg: CfgNode, key: str):
    """The value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _check_names(cfg: CfgNode) -> None:
    """All parts of the model must be registered."""
    for key, registry in REGISTRIES.items():
        name = lookup(cfg, key)
        if name not in NO_MODULE and name not in registry:
            hint = nearest(name, sorted(known for known, _ in registry))
            raise ConfigError(f"{key}: nothing is registered as {name!r}; {hint}")


def _check_groups(cfg: CfgNode) -> None:
    """Stock modules would fail on GN with a message that names no key."""
    for section, channels in GROUPED:
        node = lookup(cfg, section)
        if node.NORM == "GN" and node[channels] % GROUPS:
            raise ConfigError(
                f"{section}.NORM: GN has {GROUPS} groups, which do not divide the {node[channels]} channels "
                f"of {section}.{channels}; choose a multiple of {GROUPS}, or another norm"
            )


def _fit_to_machine(cfg: CfgNode, given: set[str]) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        if "MODEL.DEVICE" in given:
            raise ConfigError(
                f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but PyTorch sees no CUDA device here: leave it out, or "
                "add MODEL.DEVICE cpu"
            )
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SOLVER.AMP.PRECISION not in ("auto", "fp16", "bf16"):
        raise ConfigError(f"SOLVER.AMP.PRECISION is auto, fp16 or bf16, got {cfg.SOLVER.AMP.PRECISION!r}")
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.PRECISION == "fp16":
        raise ConfigError("SOLVER.AMP.PRECISION fp16 does not train on a CPU: use bf16, or auto")


def _fit_to_data(cfg: CfgNode, given: set[str]) -> None:
    """Numbers of classes and keypoints: from the data where the config leaves them open, else compared."""
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        return
    try:
        classes, keypoints = num_classes(names), num_keypoints(names)
    except ValueError as error:
        raise ConfigError(f"DATASETS: {error}") from error
    sets = ", ".join(names)
    for key in ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"):
        _fit(cfg, key, classes, given, f"classes in {sets}")
    if cfg.MODEL.KEYPOINT_ON:
        if not keypoints:
            raise ConfigError(f"MODEL.KEYPOINT_ON is True, but {sets} have no keypoints")
        _fit(cfg, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", keypoints, given, f"keypoints in {sets}")
        _check_sigmas(cfg, keypoints)


def _check_sigmas(cfg: CfgNode, keypoints: int) -> None:
    """Keypoints are scored by their distance in units of sigma: COCO's are known, others must be given."""
    sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or COCO_KEYPOINTS
    if cfg.DATASETS.TEST and sigmas != keypoints:
        raise ConfigError(
            f"TEST.KEYPOINT_OKS_SIGMAS must hold one number for each of the {keypoints} keypoints: how far "
            f"off, relative to the object's size, is still good. For example {[0.05] * keypoints}"
        )


def _fit(cfg: CfgNode, key: str, number: int, given: set[str], what: str) -> None:
    value = lookup(cfg, key)
    if not number or value == number:
        return
    if key in given:
        raise ConfigError(f"{key} is {value}, but there are {number} {what}: set it to {number}")
    parent, _, leaf = key.rpartition(".")
    lookup(cfg, parent)[leaf] = number
