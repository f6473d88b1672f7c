"""The exponential moving average of the weights, which often detects better than the weights themselves."""

import logging

from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nlnet_d2.checkpoint.checkpointer import CheckpointError, TrainingCheckpointer

logger = logging.getLogger(__name__)


class AverageWeights(HookBase):
    """After every iteration: average = decay * average + (1 - decay) * weights.

    It starts from the initial weights, or, in a run resumed without an average, from the resumed weights.
    Buffers, such as the statistics of batch normalisation, are not averaged but copied. The average is part
    of every checkpoint, and ``model_ema.pth`` holds the newest alone, to be given as MODEL.WEIGHTS.

    It goes before the hooks that save and evaluate.

    Args:
        model: the trained model, not wrapped for distributed training.
        decay: from 0 to 1.
        folder: where model_ema.pth goes.
        period: iterations between two writings of it; it is also written after the last one.

    Attributes:
        model: has the average as its weights.

    Raises:
        ValueError: decay is not between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float, folder: str, period: int):
        self._source, self._period = model, period
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._checkpointer = TrainingCheckpointer(self.model, folder, tag_last=False)

    @property
    def model(self) -> nn.Module:
        return self._average.module

    def before_train(self) -> None:
        if not self._average.n_averaged:
            self._average.update_parameters(self._source)  # the first time copies

    def after_step(self) -> None:
        self._average.update_parameters(self._source)
        done = self.trainer.iter + 1
        if done % self._period == 0 or done >= self.trainer.max_iter:
            self._write()

    def _write(self) -> None:
        try:
            self._checkpointer.save("model_ema", iteration=self.trainer.iter)
        except CheckpointError as error:
            logger.error("%s. Skipped: training goes on, the average is in every checkpoint", error)

    def state_dict(self) -> dict:
        return self._average.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self._average.load_state_dict(state_dict)
