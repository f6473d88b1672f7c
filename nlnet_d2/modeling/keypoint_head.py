"""Keypoint head with context blocks between its convolutions ("Non-local Neural Networks", section 6)."""

from collections.abc import Sequence

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_KEYPOINT_HEAD_REGISTRY
from detectron2.modeling.roi_heads import KRCNNConvDeconvUpsampleHead
from torch import nn

from nlnet_d2.blocks.base import place_blocks

KEY = "MODEL.ROI_KEYPOINT_HEAD.BLOCKS"


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class ContextKeypointHead(KRCNNConvDeconvUpsampleHead):
    """Detectron2's head of Keypoint R-CNN (8 convolutions, then upsampling) with context blocks.

    A block follows the ReLU of its convolution, inside the same child: after ``conv_fcn2`` it is
    ``conv_fcn_relu2.1``. All other names are Detectron2's, so its weights fit.

    Args:
        input_shape: of the pooled features, (boxes, C, H, W).
        conv_dims: output channels of each convolution.
        blocks: entries of ``MODEL.ROI_KEYPOINT_HEAD.BLOCKS``, whose only stage is ``convs``, with indices
            from 0: ``{NAME: NonLocal, AT: {convs: [1, 3, 5, 7]}}`` is a block after every second convolution.
        The rest as in Detectron2.

    Raises:
        ValueError: an impossible block spec; a POSITION other than ``after_add`` has no meaning here.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, conv_dims: Sequence[int], blocks: Sequence[dict] = (), **kwargs
    ):
        super().__init__(input_shape, conv_dims=conv_dims, **kwargs)
        places = place_blocks(blocks, {"convs": len(conv_dims)}, KEY)["convs"]
        for number, (channels, specs) in enumerate(zip(conv_dims, places, strict=True), start=1):
            for spec in specs:
                if spec.position != "after_add":
                    raise ValueError(f"{KEY}: {spec.name}: a convolution of the head has no {spec.position}")
            if specs:
                context = [spec.build(channels) for spec in specs]
                setattr(self, f"conv_fcn_relu{number}", nn.Sequential(nn.ReLU(), *context))

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        return super().from_config(cfg, input_shape) | {"blocks": cfg.MODEL.ROI_KEYPOINT_HEAD.BLOCKS}
