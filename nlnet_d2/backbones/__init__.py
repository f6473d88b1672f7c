"""Backbones of this package; importing a file registers what it defines."""
