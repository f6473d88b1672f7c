"""Layer normalisation (arXiv 1607.06450) with the epsilon of the transformer papers."""

from functools import partial

from torch import nn
from torchvision.models.convnext import LayerNorm2d

EPS = 1e-6  # torch's own default, 1e-5, is not what the published weights were trained with

TokenNorm = partial(nn.LayerNorm, eps=EPS)  # normalises the last dimension of (..., C)
ChannelNorm = partial(LayerNorm2d, eps=EPS)  # normalises the channels of (N, C, H, W)
