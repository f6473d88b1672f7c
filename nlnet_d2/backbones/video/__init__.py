"""Backbones for clips, (N, 3, T, H, W) -> dict of (N, C, T', H', W'); importing a file registers them."""

from nlnet_d2.backbones.video import resnet3d, slowfast

__all__ = ["resnet3d", "slowfast"]
