"""Context blocks; importing a file registers what it defines."""

from nlnet_d2.blocks import context, nonlocal_
from nlnet_d2.blocks.base import BLOCKS, BlockSpec, parse_spec, place_blocks

__all__ = ["BLOCKS", "BlockSpec", "context", "nonlocal_", "parse_spec", "place_blocks"]
