"""A run from the command line: ``tools/train_net.py`` is this ``main``."""

import argparse
import logging
import os
import tempfile
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from nlnet_d2.checkpoint.checkpointer import CheckpointError, TrainingCheckpointer
from nlnet_d2.data.check import check_datasets
from nlnet_d2.data.errors import DataError
from nlnet_d2.engine.config import argument_parser, load_config, register_data
from nlnet_d2.engine.errors import ConfigError, exit_code, is_unexplained
from nlnet_d2.engine.launch import launch
from nlnet_d2.engine.launches import noted
from nlnet_d2.engine.progress import consoles
from nlnet_d2.engine.trainer import Trainer, evaluator_kind
from nlnet_d2.engine.weights import load_complete

logger = logging.getLogger(__name__)

SPACE = 1 << 20  # bytes, about what a run writes before its first checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Train or evaluate as the command line says; returns the exit code (see ``errors``)."""
    args = argument_parser().parse_args(argv)
    return exit_code(_run_everywhere, args)


def _run_everywhere(args: argparse.Namespace) -> None:
    cfg = load_config(args)
    launch(run, args, torch.device(cfg.MODEL.DEVICE).type, cfg, args)


def run(cfg: CfgNode, args: argparse.Namespace) -> dict | None:
    """Train, or evaluate with ``args.eval_only``, in this process; returns the metrics.

    Raises:
        ConfigError, DataError, CheckpointError, Diverged: see there.
        OSError: OUTPUT_DIR cannot be written to.
    """
    key = "TEST" if args.eval_only else "TRAIN"
    if not cfg.DATASETS[key]:
        raise ConfigError(
            f"DATASETS.{key} is empty: name a data set, such as --dataset mine JSON IMAGE_DIR "
            f"DATASETS.{key} \"['mine']\""
        )
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR: expected a place for a folder, got {error}") from error
    _require_space(cfg.OUTPUT_DIR)
    set_up(cfg, args)
    with noted(cfg.OUTPUT_DIR):
        if args.eval_only:
            return evaluate(cfg, args.resume)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def _require_space(folder: str) -> None:
    """On a full disk, every line of the log would be a traceback."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(SPACE))
    except OSError as error:
        raise OSError(f"OUTPUT_DIR {folder} cannot be written to: {error}") from error


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Logs, seeds and a copy of the config in OUTPUT_DIR; then look at the data before hours are lost."""
    register_data(cfg)  # again: child processes start afresh
    for name in cfg.DATASETS.TEST:
        evaluator_kind(name)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="nlnet_d2")
    default_setup(cfg, args)
    for console in consoles("detectron2"):
        console.addFilter(is_unexplained)  # log.txt keeps all
    if not torch.cuda.is_available():
        logger.info("No CUDA device: running on the CPU")
    problem = comm.all_gather(_data_problem(cfg, args.eval_only) if comm.is_main_process() else "")[0]
    if problem:
        raise DataError(problem)


def evaluate(cfg: CfgNode, resume: bool = False) -> dict:
    """Metrics of MODEL.WEIGHTS, or with ``resume`` of the last checkpoint in OUTPUT_DIR, on DATASETS.TEST.

    Raises:
        CheckpointError: no weights, or weights that do not hold the whole model.
    """
    model = Trainer.build_model(cfg)
    if resume:
        TrainingCheckpointer(model, cfg.OUTPUT_DIR).resume()
    elif cfg.MODEL.WEIGHTS:
        load_complete(model, cfg)
    else:
        raise CheckpointError(
            "--eval-only needs weights: MODEL.WEIGHTS, or --resume for the last of OUTPUT_DIR"
        )
    return Trainer.test(cfg, model)


def _data_problem(cfg: CfgNode, eval_only: bool) -> str:
    """What makes the data useless, or an empty string."""
    masks = cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None
    settings = masks, cfg.MODEL.KEYPOINT_ON, cfg.DATASETS.ALLOW_PATHS_OUTSIDE
    try:
        if not eval_only:
            check_datasets(cfg.DATASETS.TRAIN, True, *settings)
        check_datasets(cfg.DATASETS.TEST, False, *settings)
    except DataError as error:
        return str(error)
    return ""
