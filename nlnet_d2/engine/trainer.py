"""Detectron2's DefaultTrainer, on CPUs too, with exact resume."""

import logging
import sys
import weakref
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.utils import comm

from nlnet_d2.checkpoint import load_weights
from nlnet_d2.checkpoint.checkpointer import CheckpointError, TrainingCheckpointer
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.engine.hooks import KeepBest, SeedIterations, StopOnSignal
from nlnet_d2.engine.launch import distribute
from nlnet_d2.engine.loader import TrainLoader, build_train_loader
from nlnet_d2.engine.progress import ProgressBar
from nlnet_d2.engine.step import TrainStep
from nlnet_d2.evaluation.coco import FastCOCOEvaluator
from nlnet_d2.solver import build_optimizer

logger = logging.getLogger(__name__)


def training_precision(cfg: CfgNode) -> torch.dtype | None:
    """SOLVER.AMP as a dtype; ``auto`` is float16 on a GPU, as in Detectron2, and bfloat16 on a CPU."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    auto = "bf16" if cfg.MODEL.DEVICE == "cpu" else "fp16"
    name = auto if cfg.SOLVER.AMP.PRECISION == "auto" else cfg.SOLVER.AMP.PRECISION
    return {"fp16": torch.float16, "bf16": torch.bfloat16}[name]


class Trainer(DefaultTrainer):
    """Trains the model of a config: a run that is killed and resumed gives the weights of one that is not.

    On the CPU they are bit-identical, for any number of loader workers and the same number of processes. What
    a checkpoint holds besides the model: optimizer, schedule, loss scale, seed and iteration; the position in
    the data and the random numbers follow from the last two.

    Differences from DefaultTrainer: also CPU processes; mixed precision by SOLVER.AMP.PRECISION; saves the
    optimizer state (0.6 forgets it); stops on signals with everything saved; keeps the best model by
    TEST.BEST_METRIC if TEST.EVAL_PERIOD is set; a progress bar on terminals; evaluates COCO-type data.
    """

    def __init__(self, cfg: CfgNode):
        super(DefaultTrainer, self).__init__()  # DefaultTrainer's own builds steps that need CUDA
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        model = distribute(model)
        self._trainer = TrainStep(model, loader, optimizer, training_precision(cfg))
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TrainingCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @property
    def step(self) -> TrainStep:
        """What runs one iteration."""
        return self._trainer

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue the run in OUTPUT_DIR, or start a new one from MODEL.WEIGHTS.

        Raises:
            CheckpointError: nothing there can be resumed, or the weights do not fit.
        """
        self.checkpointer.remove_unfinished()
        begun = comm.all_gather(self.checkpointer.has_checkpoint())[0]  # also without a shared disk
        if resume and begun:
            path = self.checkpointer.resume()
            self.start_iter = self.iter + 1
            logger.info("Resuming from %s at iteration %d of %d", path, self.start_iter, self.max_iter)
            return
        if begun:
            logger.warning("%s holds an earlier run: its files will be replaced", self.cfg.OUTPUT_DIR)
        elif resume:
            logger.warning("Nothing to resume in %s: starting a new run", self.cfg.OUTPUT_DIR)
        if self.cfg.MODEL.WEIGHTS:
            allowed = self.cfg.MODEL.WEIGHTS_ALLOW_MISSING
            load_weights(self.checkpointer.model, self.cfg.MODEL.WEIGHTS, allow_missing=allowed)
        else:
            logger.info("MODEL.WEIGHTS is empty: starting from random weights")

    def train(self) -> dict | None:
        """Train to the end; returns the metrics of the last evaluation."""
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.seed, self.data_loader.start_iter = self.seed, self.start_iter
        try:
            super().train()
        finally:
            self.step.close()
        return getattr(self, "_last_eval_results", None)

    def state_dict(self) -> dict:
        return {**super().state_dict(), "_trainer": self.step.state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict) -> None:
        if "_trainer" not in state_dict:
            raise CheckpointError(
                "the checkpoint holds no optimizer state (detectron2 0.6 does not save it): it cannot be "
                "resumed; start a new one from its weights with MODEL.WEIGHTS"
            )
        TrainerBase.load_state_dict(self, state_dict)
        self.step.load_state_dict(state_dict["_trainer"])
        if self.cfg.SEED < 0:
            self.seed = state_dict.get("seed", self.seed)

    def build_hooks(self) -> list:
        found = [hook for hook in super().build_hooks() if hook is not None]
        at = next(i for i, hook in enumerate(found) if isinstance(hook, hooks.EvalHook))
        stop = StopOnSignal()
        found[at : at + 1] = [stop, found[at], hooks.CallbackHook(after_step=stop.end_evaluation)]
        if comm.is_main_process():
            self._limit_checkpoints(found)
            if self.cfg.TEST.EVAL_PERIOD > 0 and self.cfg.DATASETS.TEST:
                best = TrainingCheckpointer(self.checkpointer.model, self.cfg.OUTPUT_DIR, tag_last=False)
                found.insert(at + 3, KeepBest(self.cfg.TEST.EVAL_PERIOD, best, self.cfg.TEST.BEST_METRIC))
            if sys.stderr.isatty():
                bar = ProgressBar(self.max_iter, self.cfg.SOLVER.IMS_PER_BATCH)
                found.append(hooks.PeriodicWriter([bar], period=1))
        return [SeedIterations(), *found]

    def _limit_checkpoints(self, found: list) -> None:
        periodic = next(hook for hook in found if isinstance(hook, hooks.PeriodicCheckpointer))
        periodic.max_to_keep = self.cfg.SOLVER.CHECKPOINTS_TO_KEEP or None
        periodic.recent_checkpoints = [str(path) for path in self.checkpointer.periodic()]

    @classmethod
    def build_model(cls, cfg):
        try:
            return super().build_model(cfg)
        except ValueError as error:
            raise ConfigError(f"the model of this config cannot be built: {error}") from error

    @classmethod
    def build_optimizer(cls, cfg, model):
        try:
            return build_optimizer(cfg, model)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind != "coco":
            raise ConfigError(
                f"DATASETS.TEST: {dataset_name} is of kind {kind!r}; only 'coco' can be evaluated"
            )
        folder = Path(cfg.OUTPUT_DIR, "inference", dataset_name if len(cfg.DATASETS.TEST) > 1 else "")
        return FastCOCOEvaluator(
            dataset_name, output_dir=str(folder), kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS
        )
