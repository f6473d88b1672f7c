"""Backbones of this package; importing a file registers what it defines."""

from nlnet_d2.backbones import mvit, resnet, video, vit, vit_pyramid

__all__ = ["mvit", "resnet", "video", "vit", "vit_pyramid"]
