"""Detectron2's box and mask heads for ``NORM: LN``, which ViTDet uses (arXiv 2203.16527).

detectron2 0.6 does not know that norm; see ``layers/norm.py``. All else, names included, is stock.
"""

from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead

from nlnet_d2.layers.norm import norm_argument


@ROI_BOX_HEAD_REGISTRY.register()
class LayerNormBoxHead(FastRCNNConvFCHead):
    """``FastRCNNConvFCHead`` whose NORM may be LN."""

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        options = super().from_config(cfg, input_shape)
        return options | {"conv_norm": norm_argument(options["conv_norm"])}


@ROI_MASK_HEAD_REGISTRY.register()
class LayerNormMaskHead(MaskRCNNConvUpsampleHead):
    """``MaskRCNNConvUpsampleHead`` whose NORM may be LN."""

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        options = super().from_config(cfg, input_shape)
        return options | {"conv_norm": norm_argument(options["conv_norm"])}
