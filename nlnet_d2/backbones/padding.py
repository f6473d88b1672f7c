"""Padding of a batch to one fixed square, on every Detectron2.

``GeneralizedRCNN`` pads a batch to its largest image and up to a multiple of ``backbone.size_divisibility``:
with the side of the square there, every image that fits becomes exactly that square. Upstream's
``square_size`` is not used: it crops an image larger than the square without a word.
"""

import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from nlnet_d2.layers.norm import norm_argument


class SquarePadding:
    """Adds ``square_pad`` to a backbone: a side in pixels; 0 pads to a multiple of its largest stride."""

    square_pad = 0

    def set_square_pad(self, square_pad: int) -> None:
        """Raises ValueError where the largest stride does not divide the side."""
        stride = self._size_divisibility
        if square_pad % stride:
            raise ValueError(
                f"MODEL.FPN.SQUARE_PAD {square_pad} is not a multiple of {stride}, the largest stride"
            )
        self.square_pad = square_pad

    @property
    def size_divisibility(self) -> int:
        return self.square_pad or self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"size_divisibility": self.size_divisibility}

    def check_square(self, images: torch.Tensor) -> None:
        """Refuse a batch (N, C, H, W) that was padded to several squares: one of its images is too large."""
        height, width = images.shape[2:]
        side = self.square_pad
        if side and max(height, width) > side and height % side == 0 and width % side == 0:
            raise ValueError(
                f"an image is larger than MODEL.FPN.SQUARE_PAD {side}: the batch is {height} x {width}; "
                "lower INPUT.MAX_SIZE_TRAIN and MAX_SIZE_TEST to it, raise it, or set it to 0"
            )


class SquarePadFPN(SquarePadding, FPN):
    """Detectron2's feature pyramid (arXiv 1612.03144) with ``square_pad``."""

    def __init__(self, *args, square_pad: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.set_square_pad(square_pad)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.check_square(x)
        return super().forward(x)


def fpn_from_config(cfg: CfgNode, bottom_up: Backbone) -> SquarePadFPN:
    """The pyramid p2 ... p6 of ``MODEL.FPN`` on all maps of ``bottom_up``."""
    return SquarePadFPN(
        bottom_up=bottom_up,
        in_features=list(bottom_up.output_shape()),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=norm_argument(cfg.MODEL.FPN.NORM),
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        square_pad=cfg.MODEL.FPN.SQUARE_PAD,
    )
