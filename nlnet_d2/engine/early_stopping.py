"""End a training that has stopped getting better."""

from detectron2.engine import HookBase
from detectron2.utils import comm

from nlnet_d2.engine.hooks import KeepBest


class StoppedEarly(BaseException):  # Detectron2 logs an Exception as a failure
    """Raised by ``StopEarly`` in every process to leave the training loop; it is saved then."""


class StopEarly(HookBase):
    """Ends the training after a number of evaluations that were not better than the best before them.

    It goes after ``KeepBest`` in the list of hooks.

    Args:
        best: the ``KeepBest`` of the main process; None in the others.
        period: iterations from one evaluation to the next.
        patience: how many evaluations in a row.
    """

    def __init__(self, best: KeepBest | None, period: int, patience: int):
        self._best, self._period, self._patience = best, period, patience

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period or done == self.trainer.max_iter:
            return
        since = self._evaluations_since_the_best() if self._best else 0
        if comm.all_gather(since)[0] >= self._patience:
            raise StoppedEarly(f"{self._patience} evaluations in a row were not better than the best")

    def _evaluations_since_the_best(self) -> int:
        if self._best.best_iter is None:
            return 0
        return (self.trainer.iter - self._best.best_iter) // self._period
