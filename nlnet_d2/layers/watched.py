"""Which modules have to be called, so that a product of their weights may not stand for them."""

from torch import nn


def is_watched(module: nn.Module, *own: type[nn.Module]) -> bool:
    """Whether hooks want to see what goes through it, or something else, such as a parametrisation or an
    adapter (LoRA, arXiv 2106.09685), has taken the place of a module of the types ``own``."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks
    return type(module) not in own or any(hooks)
