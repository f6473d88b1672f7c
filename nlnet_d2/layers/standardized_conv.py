"""Weight standardisation (arXiv 1903.10520), which goes with group normalisation in small batches."""

import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-10  # of BiT


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose kernels are shifted and scaled to mean 0 and variance 1, output by output.

    The parameters are those of ``nn.Conv2d``: ``weight`` is what is standardised.
    """

    folded = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W) -> (N, C', H', W')."""
        return self._conv_forward(x, self.weight if self.folded else self._standardized(), self.bias)

    def fold(self) -> None:
        """Replace ``weight`` by the standardised kernels, once and for all: for inference only."""
        if not self.folded:
            self.weight = nn.Parameter(self._standardized().detach(), requires_grad=False)
            self.folded = True

    def _standardized(self) -> torch.Tensor:
        return F.layer_norm(self.weight, self.weight.shape[1:], eps=EPS)  # C' "samples" of (C, H, W)
