"""What a context block is, and how a config says which one stands where.

The contract: ``Block(channels, *, dim, **options)`` is a module that maps x (N, C, H, W), or (N, C, T, H, W)
with ``dim=3``, to a tensor of the same shape; it is the identity at initialisation where its paper says so,
and trainable from there. To add one: a file in this folder with a class under ``@BLOCKS.register()``, and a
config. The tests run over the whole registry, so they cover it at once.

A block is data, an entry of ``MODEL.CONTEXT.BLOCKS``::

    {NAME: NonLocal, AT: {res4: [-2]}, POSITION: after_add, MODE: dot_product}

AT names stages and residual blocks in them (indices from 0, negative ones from the end, or ``all``). POSITION
is ``after_conv1``, ``after_conv2``, ``after_conv3`` or ``after_add`` (the default); the last convolution of
the residual block is followed by the addition, the others by a ReLU that comes before the context block. The
remaining keys are the options of the block. Several blocks at one place run in the order of the list.
Heads may have such a list of their own, under a key of their own.
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


def bottleneck_channels(channels: int, reduction: int) -> int:
    """C / r, for blocks with a REDUCTION.

    Raises:
        ValueError: it is less than one channel.
    """
    if not 1 <= reduction <= channels:
        raise ValueError(f"REDUCTION {reduction} leaves no channels")
    return channels // reduction


class BlockSpec(NamedTuple):
    """One entry of the list at ``key``; ``at`` maps a stage to indices, ``options`` go to the block."""

    key: str
    name: str
    at: dict
    position: str
    options: dict

    def build(self, channels: int, dim: int = 2) -> nn.Module:
        """The module for ``channels`` channels in ``dim`` dimensions."""
        try:
            return BLOCKS.get(self.name)(channels, dim=dim, **self.options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.key}: {self.name} on {channels} channels: {error}") from error


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of an error message: what might have been meant, or what there is."""
    close = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


def parse_spec(entry: Mapping, key: str = KEY) -> BlockSpec:
    """Check one entry of the list at ``key`` of a config (names of its fields in either case).

    Raises:
        ValueError: a block, position or option that does not exist, or a missing NAME or AT; says which.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"{key}: an entry is a map, such as {{NAME: NonLocal, AT: {{res4: [-2]}}}}; got {entry!r}"
        )
    options = {field.lower(): value for field, value in entry.items()}
    missing = {"name", "at"} - set(options)
    if missing:
        raise ValueError(f"{key}: {dict(entry)} lacks {' and '.join(sorted(missing)).upper()}")
    name, at = options.pop("name"), options.pop("at")
    position = options.pop("position", "after_add")
    if name not in BLOCKS:
        raise ValueError(f"{key}: no block is named {name!r}; {nearest(name, [n for n, _ in BLOCKS])}")
    if not isinstance(at, Mapping):
        raise ValueError(
            f"{key}: AT of {name} is a map from stage to indices, such as {{res4: [-2]}}; got {at!r}"
        )
    if position not in POSITIONS:
        raise ValueError(
            f"{key}: POSITION of {name}: {position!r} is unknown; {nearest(position, POSITIONS)}"
        )
    known = [
        p.upper() for p in inspect.signature(BLOCKS.get(name)).parameters if p not in ("channels", "dim")
    ]
    for field in options:
        if field.upper() not in known:
            raise ValueError(f"{key}: {name} has no option {field.upper()}; {nearest(field.upper(), known)}")
    return BlockSpec(key, name, dict(at), position, options)


def place_blocks(
    entries: Sequence[Mapping], stages: Mapping[str, int], key: str = KEY
) -> dict[str, list[list[BlockSpec]]]:
    """Resolve where the entries of the list at ``key`` stand.

    Args:
        entries: the list of the config.
        stages: number of residual blocks per stage, for example {"res2": 3, "res3": 4, "res4": 6, "res5": 3}.
        key: where the list stands in the config, for error messages.

    Returns:
        For each stage, for each of its residual blocks, the specs in order.

    Raises:
        ValueError: a stage or index that does not exist.
    """
    placed = {stage: [[] for _ in range(depth)] for stage, depth in stages.items()}
    for spec in (parse_spec(entry, key) for entry in entries):
        for stage, indices in spec.at.items():
            if stage not in stages:
                hint = nearest(stage, list(stages))
                raise ValueError(f"{key}: AT of {spec.name}: there is no stage {stage!r}; {hint}")
            for index in _resolve(indices, stages[stage], f"{key}: AT of {spec.name}: {stage}"):
                placed[stage][index].append(spec)
    return placed


def _resolve(indices: object, depth: int, where: str) -> Sequence[int]:
    """The indices of a stage with ``depth`` residual blocks, checked."""
    if indices == "all":
        return range(depth)
    if not isinstance(indices, Sequence) or not all(type(index) is int for index in indices):
        raise ValueError(f"{where} takes a list of indices, or all; got {indices!r}")
    for index in indices:
        if not -depth <= index < depth:
            raise ValueError(f"{where} has {depth} places, {-depth} to {depth - 1}; got {index}")
    return indices
