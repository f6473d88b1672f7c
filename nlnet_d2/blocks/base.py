"""What a context block is, and how a config says which one stands where.

The contract: ``Block(channels, *, dim, **options)`` is a module that maps x (N, C, H, W), or (N, C, T, H, W)
with ``dim=3``, to a tensor of the same shape; it is the identity at initialisation where its paper says so,
and trainable from there. To add one: a file in this folder with a class under ``@BLOCKS.register()``, and a
config. Tests over the registry cover it by existing.

A block is data, an entry of ``MODEL.CONTEXT.BLOCKS``::

    {NAME: NonLocal, AT: {res4: [-2]}, POSITION: after_add, MODE: dot_product}

AT names stages and residual blocks in them (indices from 0, negative ones from the end, or ``all``). POSITION
is ``after_conv1``, ``after_conv2``, ``after_conv3`` or ``after_add`` (the default); the last convolution of
the residual block is followed by the addition, the others by a ReLU that comes before the context block. The
remaining keys are the options of the block. Several blocks at one place run in the order of the list.
"""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from detectron2.utils.registry import Registry
from torch import nn

BLOCKS = Registry("BLOCKS")
BLOCKS.__doc__ = "Context blocks by name; see nlnet_d2/blocks/base.py for the contract."

KEY = "MODEL.CONTEXT.BLOCKS"
POSITIONS = ("after_conv1", "after_conv2", "after_conv3", "after_add")


class BlockSpec(NamedTuple):
    """One entry of ``MODEL.CONTEXT.BLOCKS``; ``at`` maps a stage to indices, ``options`` go to the block."""

    name: str
    at: dict
    position: str
    options: dict

    def build(self, channels: int, dim: int = 2) -> nn.Module:
        """The module for ``channels`` channels in ``dim`` dimensions."""
        try:
            return BLOCKS.get(self.name)(channels, dim=dim, **self.options)
        except ValueError as error:
            raise ValueError(f"{KEY}: {self.name} on {channels} channels: {error}") from error


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of an error message: what might have been meant, or what there is."""
    close = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


def parse_spec(entry: Mapping) -> BlockSpec:
    """Check one entry of ``MODEL.CONTEXT.BLOCKS`` (keys in either case).

    Raises:
        ValueError: a block, position or option that does not exist, or a missing NAME or AT; says which.
    """
    options = {key.lower(): value for key, value in entry.items()}
    missing = {"name", "at"} - set(options)
    if missing:
        raise ValueError(f"{KEY}: {dict(entry)} lacks {' and '.join(sorted(missing)).upper()}")
    name, at = options.pop("name"), options.pop("at")
    position = options.pop("position", "after_add")
    if name not in BLOCKS:
        raise ValueError(f"{KEY}: no block is named {name!r}; {nearest(name, [n for n, _ in BLOCKS])}")
    if not isinstance(at, Mapping):
        raise ValueError(
            f"{KEY}: AT of {name} is a map from stage to indices, such as {{res4: [-2]}}; got {at!r}"
        )
    if position not in POSITIONS:
        raise ValueError(
            f"{KEY}: POSITION of {name}: {position!r} is unknown; {nearest(position, POSITIONS)}"
        )
    known = [
        p.upper() for p in inspect.signature(BLOCKS.get(name)).parameters if p not in ("channels", "dim")
    ]
    for key in options:
        if key.upper() not in known:
            raise ValueError(f"{KEY}: {name} has no option {key.upper()}; {nearest(key.upper(), known)}")
    return BlockSpec(name, dict(at), position, options)


def place_blocks(entries: Sequence[Mapping], stages: Mapping[str, int]) -> dict[str, list[list[BlockSpec]]]:
    """Resolve where the entries of ``MODEL.CONTEXT.BLOCKS`` stand.

    Args:
        entries: the list of the config.
        stages: number of residual blocks per stage, for example {"res2": 3, "res3": 4, "res4": 6, "res5": 3}.

    Returns:
        For each stage, for each of its residual blocks, the specs in order.

    Raises:
        ValueError: a stage or index that does not exist.
    """
    placed = {stage: [[] for _ in range(depth)] for stage, depth in stages.items()}
    for spec in map(parse_spec, entries):
        for stage, indices in spec.at.items():
            if stage not in stages:
                hint = nearest(stage, list(stages))
                raise ValueError(f"{KEY}: AT of {spec.name}: the backbone has no stage {stage!r}; {hint}")
            depth = stages[stage]
            for index in range(depth) if indices == "all" else indices:
                if not -depth <= index < depth:
                    raise ValueError(
                        f"{KEY}: AT of {spec.name}: {stage} has {depth} residual blocks, so indices go from "
                        f"{-depth} to {depth - 1}; got {index}"
                    )
                placed[stage][index].append(spec)
    return placed
