"""Backbones of this package; importing a file registers what it defines."""

from nlnet_d2.backbones import resnet

__all__ = ["resnet"]
