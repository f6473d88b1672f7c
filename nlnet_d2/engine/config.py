"""From command-line arguments to a complete config, with errors that say what was meant."""

import argparse
import logging
import re
from collections.abc import Iterable, Iterator, Mapping

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import META_ARCH_REGISTRY

from nlnet_d2.blocks.base import nearest
from nlnet_d2.config import add_nlnet_config
from nlnet_d2.config.files import read_yaml
from nlnet_d2.config.zoo import find_config
from nlnet_d2.data.datasets.ava import action_names, is_ava, register_ava_from_config
from nlnet_d2.data.datasets.coco import num_classes, num_keypoints, register_from_config
from nlnet_d2.data.errors import DataError
from nlnet_d2.engine.config_check import check_values, lookup
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.engine.precision import training_precision

logger = logging.getLogger(__name__)

COCO_KEYPOINTS = 17  # those whose OKS sigmas the evaluation knows
WITHOUT_DATA = ("DATASETS.TRAIN", "()", "DATASETS.TEST", "()")  # options for what needs the model alone


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's own flags, ``--dataset`` and ``--ava-dataset``."""
    parser = default_argument_parser()
    options = next(action for action in parser._actions if action.dest == "opts")
    options.help = "pairs KEY VALUE that change the config, at the end of the command"  # no LazyConfig
    parser.add_argument(
        "--dataset",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGE_DIR"),
        help="register COCO-format data under a name for DATASETS.TRAIN and DATASETS.TEST (repeatable)",
    )
    parser.add_argument(
        "--ava-dataset",
        nargs=4,
        action="append",
        default=[],
        metavar=("NAME", "CSV", "LABEL_MAP", "VIDEO_DIR"),
        help="the same for clips in AVA's format; the rest: DATASETS.REGISTER_AVA (repeatable)",
    )
    return parser


def load_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line; data sets of one's own are registered on the way.

    ``args.config_file``, a path or the name of a recipe (see ``config/zoo.py``), becomes the path.

    What was left at its default follows from the machine and the data: MODEL.DEVICE, the numbers of classes
    and keypoints.

    Raises:
        ConfigError: a file, key, value or name that does not exist or fit.
        DataError: a data set given by a flag, DATASETS.REGISTER or REGISTER_AVA that cannot be read.
    """
    cfg = get_cfg()
    add_nlnet_config(cfg)
    if args.config_file:
        args.config_file = _find_file(args.config_file)
    given = set(_merge_file(cfg, args.config_file)) if args.config_file else set()
    given |= _merge_options(cfg, args.opts)
    for key, flags, fields in (
        ("REGISTER", args.dataset, ("NAME", "JSON", "IMAGES")),
        ("REGISTER_AVA", args.ava_dataset, ("NAME", "ANNOTATIONS", "LABEL_MAP", "VIDEOS")),
    ):
        cfg.DATASETS[key] = [*cfg.DATASETS[key], *(dict(zip(fields, words, strict=True)) for words in flags)]
    check_values(cfg)
    register_data(cfg)
    _fit_to_data(cfg, given)
    _fit_to_machine(cfg, given)
    cfg.freeze()
    return cfg


def config_of(path: str, options: Iterable[str] = ()) -> CfgNode:
    """``load_config`` of a file and pairs KEY VALUE, without the flags of a training; errors: see there."""
    return load_config(argparse.Namespace(config_file=path, opts=list(options), dataset=[], ava_dataset=[]))


def register_data(cfg: CfgNode) -> None:
    """Register DATASETS.REGISTER and REGISTER_AVA, and see that all data sets named in the config exist."""
    try:
        register_from_config(cfg)
        register_ava_from_config(cfg)
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from error
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                otherwise = "register your own with --dataset or --ava-dataset, see --help"
                hint = suggest(name, DatasetCatalog.list(), otherwise)
                raise ConfigError(f"DATASETS.{key}: no data set is named {name!r}; {hint}")


def suggest(word: str, known: list[str], otherwise: str) -> str:
    """The end of an error message: the names nearest to ``word``, or ``otherwise``."""
    hint = nearest(word, known)
    return hint if hint.startswith("did you mean") else otherwise


def _find_file(name: str) -> str:
    """The file of a recipe or path; an address is passed on, to be refused."""
    try:
        return name if "://" in name else str(find_config(name))
    except FileNotFoundError as error:
        raise ConfigError(f"config file {name}: {error}") from error


def _merge_file(cfg: CfgNode, path: str) -> Iterator[str]:
    """Merge a YAML file and its bases; yields the keys that it sets."""
    content = _read_file(path)
    _merge(cfg, path, lambda: cfg.merge_from_file(path, allow_unsafe=False))
    return leaves(content)


def _read_file(path: str) -> dict:
    """A YAML file with its bases, read without running anything."""
    try:
        return read_yaml(path)
    except OSError as error:
        raise ConfigError(f"config file {error.filename or path}: {error.strerror or error}") from error
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(
            f"{path}: {error.problem}{error.problem_mark}: tags that run Python are refused; write the value"
        ) from error
    except (yaml.YAMLError, AssertionError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


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


def _fit_to_machine(cfg: CfgNode, given: set[str]) -> None:
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE {cfg.MODEL.DEVICE!r}: expected cpu or cuda; {error}") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        if "MODEL.DEVICE" in given:
            raise ConfigError(
                f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but PyTorch sees no CUDA device here: leave it out, or "
                "add MODEL.DEVICE cpu"
            )
        cfg.MODEL.DEVICE = "cpu"
    training_precision(cfg)  # raises what the trainer would, before the data are read


def _fit_to_data(cfg: CfgNode, given: set[str]) -> None:
    """Numbers of classes and keypoints: from the data where the config leaves them open, else compared."""
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        return
    _check_kind(cfg, names)
    if is_ava(names[0]):
        _check_best_metric(cfg, ("action",))
        _fit_actions(cfg, names, given)
    else:
        _check_best_metric(cfg, ("bbox", "segm", "keypoints"))
        _fit_objects(cfg, names, given)


def _check_kind(cfg: CfgNode, names: list[str]) -> None:
    """Data sets and model must agree on what they are about: images or clips."""
    clips = [name for name in names if is_ava(name)]
    if clips and len(clips) < len(names):
        images = [name for name in names if name not in clips]
        raise ConfigError(
            f"DATASETS: {', '.join(clips)} are clips, {', '.join(images)} images: name one kind"
        )
    name = cfg.MODEL.META_ARCHITECTURE
    if getattr(META_ARCH_REGISTRY.get(name), "takes_clips", False) != bool(clips):
        kind, other = ("clips", "images") if clips else ("images", "clips")
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE: {name} takes {other}, but {', '.join(names)} are {kind}; clips need "
            "ActionRCNN, or a class with the attribute takes_clips = True"
        )


def _check_best_metric(cfg: CfgNode, tasks: tuple[str, ...]) -> None:
    """Detectron2 would keep no best model, with a warning after every evaluation."""
    best, sets = cfg.TEST.BEST_METRIC, ", ".join(cfg.DATASETS.TEST)
    if cfg.TEST.EVAL_PERIOD and sets and not set(tasks) & set(best.split("/")):
        raise ConfigError(f"TEST.BEST_METRIC: {sets} have metrics of {', '.join(tasks)}, got {best!r}")


def _fit_actions(cfg: CfgNode, names: list[str], given: set[str]) -> None:
    try:
        classes = {name: action_names(name) for name in names}
    except DataError as error:  # the check of the data says more, where a run needs them
        logger.info("MODEL.ACTION_HEAD.NUM_CLASSES is not compared with the data: %s", error)
        return
    different = [name for name in names if classes[name] != classes[names[0]]]
    if different:
        raise ConfigError(
            f"DATASETS: {names[0]} and {different[0]} have different label maps: name one of them"
        )
    number, key = len(classes[names[0]]), "MODEL.ACTION_HEAD.NUM_CLASSES"
    _fit(cfg, key, number, given, f"classes in {', '.join(names)}")


def _fit_objects(cfg: CfgNode, names: list[str], given: set[str]) -> None:
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
