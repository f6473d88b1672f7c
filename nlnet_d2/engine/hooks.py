"""Hooks that Detectron2 lacks: stop on a signal with everything saved, outlive a full disk, keep the best."""

import logging
import signal
import threading

from detectron2.engine import HookBase
from detectron2.engine.hooks import BestCheckpointer, PeriodicCheckpointer
from detectron2.utils import comm

from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.engine.errors import STOP_SIGNALS
from nlnet_d2.engine.loader import STEP
from nlnet_d2.engine.seeding import seed_all

logger = logging.getLogger(__name__)

PATIENCE = 2  # checkpoints in a row that may fail to be written


class SeedIterations(HookBase):
    """Gives every iteration of every process random numbers of its own (see ``seeding``)."""

    def before_step(self) -> None:
        seed_all(self.trainer.seed, STEP, comm.get_rank(), self.trainer.iter)


class StopOnSignal(HookBase):
    """SIGTERM and SIGUSR1 (what clusters send before they take a machine away), SIGINT (Ctrl-C): finish the
    iteration, save, and leave with KeyboardInterrupt, or with exit code 143 or 138.

    An evaluation is cut short: there is no iteration to finish. After training the signals have their usual
    effect again. Further signals change nothing; SIGQUIT (Ctrl-\\) ends at once.

    Stands after the periodic checkpointer and before the evaluation, after which comes ``end_evaluation``.
    """

    def __init__(self):
        self._received: int | None = None
        self._step_is_complete = False
        self._evaluating = False
        self._previous = {}

    def before_train(self) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self._previous = {s: signal.signal(s, self._receive) for s in STOP_SIGNALS}

    def before_step(self) -> None:
        self._step_is_complete = False

    def after_step(self) -> None:
        self._step_is_complete = True
        alone = comm.get_world_size() == 1
        if self._received if alone else self.trainer.step.stop:
            self._received = self._received or signal.SIGTERM  # another process was told
            if self.trainer.iter + 1 < self.trainer.max_iter:
                self._leave()
        self._evaluating = True

    def end_evaluation(self, trainer) -> None:
        """From here to the end of the next iteration, other processes may wait for this one."""
        self._evaluating = False

    def after_train(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._received is None or not self._step_is_complete:
            return
        if self.trainer.iter < self.trainer.max_iter:
            self.trainer.save_progress()
            if self.trainer.step.stop:
                comm.synchronize()  # a launcher kills the others as soon as one process leaves
        else:
            self._leave()  # trained to the end and saved: only the final evaluation is left out

    def _receive(self, number: int, frame) -> None:
        if self._received is not None:
            return
        self._received = number
        self.trainer.step.stop_requested = True
        logger.info("%s: stopping after this iteration", signal.Signals(number).name)
        if self._evaluating:
            self._leave()

    def _leave(self) -> None:
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self._received)


class KeepLast(PeriodicCheckpointer):
    """Detectron2's ``PeriodicCheckpointer``, but a disk that is full for a while does not end the training:
    a checkpoint that cannot be written is skipped, unless it is the last or ``PATIENCE`` went before.

    Args:
        checkpointer: a ``TrainingCheckpointer``.
        period: iterations from one checkpoint to the next.
        count: how many to keep, the newest; 0 for all.
    """

    def __init__(self, checkpointer, period: int, count: int):
        super().__init__(checkpointer, period)
        self._count, self._failed = count, 0

    def step(self, iteration: int, **kwargs) -> None:
        is_last = iteration + 1 >= self.max_iter
        if (iteration + 1) % self.period and not is_last:
            return
        try:
            super().step(iteration, **kwargs)
        except CheckpointError as error:
            self._failed += 1
            if is_last or self._failed > PATIENCE:
                raise
            logger.error("%s. Skipped: training goes on, %d of %d times", error, self._failed, PATIENCE)
            return
        self._failed = 0
        if self._count:
            self.checkpointer.keep(self._count)


class KeepBest(BestCheckpointer):
    """Detectron2's ``BestCheckpointer``, which also after a resume knows what the best was."""

    def _best_checking(self) -> None:
        before = self.best_metric, self.best_iter
        try:
            super()._best_checking()
        except CheckpointError as error:
            logger.error("%s. Skipped: training goes on", error)
            self.best_metric, self.best_iter = before

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
