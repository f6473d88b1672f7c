"""Detectron2's DefaultTrainer, on CPUs too, with exact resume."""

import logging
import math
import sys
import weakref
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.utils import comm

from nlnet_d2.checkpoint import load_weights
from nlnet_d2.checkpoint.checkpointer import CheckpointError, TrainingCheckpointer
from nlnet_d2.engine.averaging import AverageWeights
from nlnet_d2.engine.config_check import keys_of
from nlnet_d2.engine.diverged_batch import write_batch
from nlnet_d2.engine.early_stopping import StopEarly, StoppedEarly
from nlnet_d2.engine.errors import ConfigError, Diverged
from nlnet_d2.engine.hooks import KeepBest, KeepLast, SeedIterations, StopOnSignal
from nlnet_d2.engine.launch import distribute
from nlnet_d2.engine.loader import (
    ReadError,
    TrainLoader,
    build_test_loader,
    build_train_loader,
    training_records,
)
from nlnet_d2.engine.precise_bn import RestartPreciseBN
from nlnet_d2.engine.precision import keep_coordinates, training_precision
from nlnet_d2.engine.progress import ProgressBar
from nlnet_d2.engine.step import TrainStep
from nlnet_d2.engine.wandb_writer import WandbWriter
from nlnet_d2.engine.weights import load_attached, require_attached
from nlnet_d2.evaluation.ava import AvaEvaluator
from nlnet_d2.evaluation.coco import FastCOCOEvaluator
from nlnet_d2.solver import build_optimizer

logger = logging.getLogger(__name__)

EMA = "ema"  # where the results of the averaged weights stand


def evaluator_kind(dataset_name: str) -> str:
    """How a data set of DATASETS.TEST is evaluated: "coco" or "ava".

    Raises:
        ConfigError: in another way, or in none.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in ("coco", "ava"):
        raise ConfigError(
            f"DATASETS.TEST: {dataset_name} has evaluator_type {kind!r} in its metadata, coco and ava can be "
            "evaluated: set one of them, or DATASETS.TEST to ()"
        )
    return kind


def in_iterations(cfg: CfgNode) -> CfgNode:
    """A schedule in epochs (SOLVER.UNIT), in iterations: as many as show every sample so often.

    A SOLVER.CHECKPOINT_PERIOD longer than the run, as Detectron2's 5000, becomes one epoch.
    """
    if cfg.SOLVER.UNIT == "iterations":
        return cfg
    samples, cfg = len(training_records(cfg)), cfg.clone()
    cfg.defrost()
    solver = cfg.SOLVER
    if solver.CHECKPOINT_PERIOD > solver.MAX_ITER:
        logger.info("SOLVER.CHECKPOINT_PERIOD is longer than the run: a checkpoint every epoch instead")
        solver.CHECKPOINT_PERIOD = 1

    def iterations(epochs: int) -> int:
        return math.ceil(epochs * samples / solver.IMS_PER_BATCH)

    solver.UNIT, solver.MAX_ITER = "iterations", iterations(solver.MAX_ITER)
    solver.STEPS = tuple(map(iterations, solver.STEPS))
    solver.CHECKPOINT_PERIOD = iterations(solver.CHECKPOINT_PERIOD)
    cfg.TEST.EVAL_PERIOD = iterations(cfg.TEST.EVAL_PERIOD)
    logger.info("%d samples: %d iterations, steps at %s", samples, solver.MAX_ITER, list(solver.STEPS))
    cfg.freeze()
    return cfg


def scaled_to_processes(cfg: CfgNode) -> CfgNode:
    """Detectron2's linear scaling rule: with SOLVER.REFERENCE_WORLD_SIZE, the number of processes for which
    the config was written, batch, learning rate and schedule follow from the number of those that run.

    Raises:
        ConfigError: the batch cannot be divided among the reference processes.
    """
    reference, batch = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if reference and batch % reference:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH = {batch} is not a multiple of SOLVER.REFERENCE_WORLD_SIZE = {reference}, "
            "the number of processes for which the config was written; 0 turns the scaling off"
        )
    return DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())


class Trainer(DefaultTrainer):
    """Trains the model of a config: a run that is killed and resumed gives the weights of one that is not.

    On the CPU they are bit-identical, for any number of loader workers and the same number of processes. What
    a checkpoint holds besides the model: optimizer, schedule, loss scale, seed and iteration; the position in
    the data and the random numbers follow from the last two.

    Differences from DefaultTrainer: also CPU processes; mixed precision by SOLVER.AMP.PRECISION, in which
    boxes keep their coordinates; saves the optimizer state (0.6 forgets it); stops on signals with everything
    saved; keeps the best model by TEST.BEST_METRIC if TEST.EVAL_PERIOD is set; a progress bar on terminals;
    images or clips, evaluated by COCO's or AVA's protocol as the data set says.
    """

    def __init__(self, cfg: CfgNode):
        super(DefaultTrainer, self).__init__()  # DefaultTrainer's own builds steps that need CUDA
        cfg = scaled_to_processes(in_iterations(cfg))
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        precision = training_precision(cfg)
        if precision is not None:
            keep_coordinates(model)
        model = distribute(model)
        self._trainer = TrainStep(model, loader, optimizer, precision, cfg.SOLVER.ACCUMULATE)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = TrainingCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.average = self._build_average() if cfg.SOLVER.EMA.ENABLED else None
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
        if resume:
            logger.warning("Nothing to resume in %s: starting a new run", self.cfg.OUTPUT_DIR)
        report = None
        if self.cfg.MODEL.WEIGHTS:
            allowed = self.cfg.MODEL.WEIGHTS_ALLOW_MISSING
            report = load_weights(self.checkpointer.model, self.cfg.MODEL.WEIGHTS, allow_missing=allowed)
        else:
            logger.info("MODEL.WEIGHTS is empty: starting from random weights")
        require_attached(self.cfg, report)
        load_attached(self.checkpointer.model, self.cfg)
        if begun:
            comm.synchronize()  # MODEL.WEIGHTS may be among them
            self.checkpointer.set_aside()

    def train(self) -> dict | None:
        """Train to the end; returns the metrics of the last evaluation.

        Raises:
            ReadError: a sample cannot be read; what was trained is saved.
            Diverged: a loss or gradient is not finite; the batch is in OUTPUT_DIR.
        """
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.seed, self.data_loader.start_iter = self.seed, self.start_iter
        try:
            super().train()
        except StoppedEarly as reason:
            logger.info("%s (TEST.PATIENCE): the best is model_best.pth", reason)
            self.save_progress()
        except ReadError:
            if self.iter > self.start_iter:
                self.iter -= 1  # the last that is complete
                self.save_progress()
            raise
        except Diverged as error:
            if error.batch:
                path = Path(self.cfg.OUTPUT_DIR, f"diverged_batch_rank{comm.get_rank()}.pth")
                write_batch(path, error.batch)
                logger.error("The batch of iteration %d is in %s", self.iter, path)
            raise
        finally:
            self.step.close()
        return getattr(self, "_last_eval_results", None)

    def save_progress(self) -> None:
        """A checkpoint after iteration ``self.iter``, out of turn."""
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        logger.info("Saved after iteration %d; continue with --resume", self.iter)

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
        precise = [hook for hook in found if isinstance(hook, hooks.PreciseBN)]
        at = next(i for i, hook in enumerate(found) if isinstance(hook, hooks.EvalHook))
        stop, evaluation = StopOnSignal(), hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate)
        found[at : at + 1] = [stop, evaluation, hooks.CallbackHook(after_step=stop.end_evaluation)]
        if comm.is_main_process():
            i = next(i for i, hook in enumerate(found) if isinstance(hook, hooks.PeriodicCheckpointer))
            solver = self.cfg.SOLVER
            found[i] = KeepLast(self.checkpointer, solver.CHECKPOINT_PERIOD, solver.CHECKPOINTS_TO_KEEP)
        if self.cfg.TEST.EVAL_PERIOD > 0 and self.cfg.DATASETS.TEST:
            found[at + 3 : at + 3] = self._build_best()
        if comm.is_main_process() and sys.stderr.isatty():
            bar = ProgressBar(self.max_iter, self.cfg.SOLVER.IMS_PER_BATCH)
            found.append(hooks.PeriodicWriter([bar], period=1))
        first = [SeedIterations(), *map(RestartPreciseBN, precise)]
        return [*first, *([self.average] if self.average else []), *found]

    def evaluate(self) -> dict:
        """Metrics on DATASETS.TEST; those of the averaged weights, if there are any, under ``ema``."""
        results = self._last_eval_results = self.test(self.cfg, self.model)
        if self.average:
            logger.info("Evaluating the averaged weights (SOLVER.EMA)")
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, EMA))
            results[EMA] = self.test(cfg, self.average.model)
        return results

    def _build_average(self) -> AverageWeights:
        solver = self.cfg.SOLVER
        try:
            return AverageWeights(
                self.checkpointer.model, solver.EMA.DECAY, self.cfg.OUTPUT_DIR, solver.CHECKPOINT_PERIOD
            )
        except ValueError as error:
            raise ConfigError(f"SOLVER.EMA.DECAY: {error}") from error

    def build_writers(self) -> list:
        return [*super().build_writers(), *([WandbWriter(self.cfg)] if self.cfg.WANDB.PROJECT else [])]

    def _build_best(self) -> list:
        """What keeps the best model, in the main process, and what ends a training without a better one."""
        test, best = self.cfg.TEST, self._build_keep_best() if comm.is_main_process() else None
        found = [best] if best else []
        return [*found, StopEarly(best, test.EVAL_PERIOD, test.PATIENCE)] if test.PATIENCE else found

    def _build_keep_best(self) -> KeepBest:
        metric = self.cfg.TEST.BEST_METRIC
        averaged = self.average and metric.startswith(f"{EMA}/")
        model = self.average.model if averaged else self.checkpointer.model
        best = TrainingCheckpointer(model, self.cfg.OUTPUT_DIR, tag_last=False)
        return KeepBest(self.cfg.TEST.EVAL_PERIOD, best, metric)

    @classmethod
    def build_model(cls, cfg):
        try:
            return super().build_model(cfg)
        except (ValueError, AssertionError) as error:  # Detectron2 asserts
            raise ConfigError(f"the model of this config cannot be built: {error}") from error
        except KeyError as error:  # a name that a module looked up
            keys = ", ".join(keys_of(cfg, error.args[0]))
            if not keys:
                raise
            raise ConfigError(f"the model of this config has nothing named {error}, see {keys}") from error

    @classmethod
    def build_optimizer(cls, cfg, model):
        try:
            return build_optimizer(cfg, model)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        try:
            return super().build_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise ConfigError(f"SOLVER: the schedule of this config cannot be built: {error}") from error

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        kind = evaluator_kind(dataset_name)
        folder = str(Path(cfg.OUTPUT_DIR, "inference", dataset_name if len(cfg.DATASETS.TEST) > 1 else ""))
        if kind == "ava":
            return AvaEvaluator(dataset_name, folder, cfg.TEST.AVA_PROTOCOL)
        return FastCOCOEvaluator(dataset_name, output_dir=folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS)
