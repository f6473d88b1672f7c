"""Meta-architectures and heads that Detectron2 lacks; importing a file registers what it defines."""

from nlnet_d2.modeling import action_head, action_rcnn, keypoint_head, layer_norm_heads, people

__all__ = ["action_head", "action_rcnn", "keypoint_head", "layer_norm_heads", "people"]
