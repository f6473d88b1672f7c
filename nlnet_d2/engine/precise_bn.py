"""Precise statistics of batch normalisation (arXiv 2105.07576, section 3) in runs that can be resumed."""

from detectron2.engine import HookBase
from detectron2.engine.hooks import PreciseBN


class RestartPreciseBN(HookBase):
    """Stands before Detectron2's ``PreciseBN`` (TEST.PRECISE_BN), which goes on in its data from one time to
    the next: with this it sees the same batches every time, so a resumed run gets the same statistics."""

    def __init__(self, hook: PreciseBN):
        self._hook = hook

    def after_step(self) -> None:
        self._hook._data_iter = None
