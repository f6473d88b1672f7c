"""Backbones of this package; importing a file registers what it defines."""

from nlnet_d2.backbones import mvit, resnet, resnet_v2, video, vit, vit_pyramid

__all__ = ["mvit", "resnet", "resnet_v2", "video", "vit", "vit_pyramid"]
