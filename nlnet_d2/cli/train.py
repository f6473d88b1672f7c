"""Train, and evaluate: Detectron2's flags, torchrun, and data sets of one's own (``--help``)."""

from nlnet_d2.engine.run import main

__all__ = ["main"]
