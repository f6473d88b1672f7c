"""Meta-architectures and heads that Detectron2 lacks; importing a file registers what it defines."""

from nlnet_d2.modeling import layer_norm_heads

__all__ = ["layer_norm_heads"]
