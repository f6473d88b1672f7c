"""Layer normalisation (arXiv 1607.06450) with the epsilon of the transformer papers."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.models.convnext import LayerNorm2d

EPS = 1e-6  # torch's own default, 1e-5, is not what the published weights were trained with

TokenNorm = partial(nn.LayerNorm, eps=EPS)  # normalises the last dimension of (..., C)
ChannelNorm = partial(LayerNorm2d, eps=EPS)  # normalises the channels of (N, C, H, W)


def norm_argument(norm: str) -> str | Callable[[int], nn.Module]:
    """What to pass as ``norm`` to a stock Detectron2 module for the config value ``norm``.

    "LN" becomes ``ChannelNorm``: detectron2 0.6 does not know the name, and upstream's class is left out of
    ``SOLVER.WEIGHT_DECAY_NORM``, while torchvision's is a ``nn.LayerNorm``. Other names pass unchanged.
    """
    return ChannelNorm if norm == "LN" else norm
