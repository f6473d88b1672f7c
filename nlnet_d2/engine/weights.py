"""Weights from elsewhere, at the start of a training or for an evaluation."""

import logging

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from nlnet_d2.checkpoint.checkpointer import CheckpointError

logger = logging.getLogger(__name__)


class _Loader(DetectionCheckpointer):
    def _log_incompatible_keys(self, incompatible) -> None:
        super()._log_incompatible_keys(incompatible)
        self.missing = incompatible.missing_keys + [name for name, *_ in incompatible.incorrect_shapes]


def load_initial_weights(model: nn.Module, source: str, complete: bool = False) -> None:
    """Load MODEL.WEIGHTS; an empty ``source`` leaves the model as it is.

    Args:
        complete: whether the file must hold every parameter, as an evaluation needs.

    Raises:
        CheckpointError: the file cannot be read, or holds nothing, or not all, of the model.
    """
    if not source:
        logger.info("MODEL.WEIGHTS is empty: starting from random weights")
        return
    loader = _Loader(model)
    try:
        loader.load(source)
    except (OSError, AssertionError, RuntimeError) as error:
        raise CheckpointError(f"MODEL.WEIGHTS {source}: {error}") from error
    total = len(model.state_dict())
    if len(loader.missing) == total:
        raise CheckpointError(f"MODEL.WEIGHTS {source}: not one of its tensors fits the model")
    if complete and loader.missing:
        raise CheckpointError(
            f"MODEL.WEIGHTS {source}: lacks {len(loader.missing)} of {total} tensors of the model"
        )
