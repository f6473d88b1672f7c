"""Names and tensors of a file become those of a model: every tensor is matched, or named in the report.

A file names its tensors from the detector on, or from the backbone on, or is one block; and so may the model
be. ``ROOTS`` lists what may have to be put in front of a name, or taken away; nothing else is tried.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.report import LoadReport, Mismatch, grouped
from nlnet_d2.checkpoint.source import Source
from nlnet_d2.checkpoint.sources import NATIVE, SOURCES
from nlnet_d2.checkpoint.tensors import Target

ROOTS = (
    *("", "backbone.", "bottom_up.", "net.", "slow."),
    *("backbone.bottom_up.", "backbone.net.", "backbone.slow.", "bottom_up.net.", "backbone.bottom_up.net."),
)
COUNTER = "num_batches_tracked"  # of batch norms; nothing depends on it


@dataclass(frozen=True)
class Placement:
    """How names of a file become names of the model: ``strip`` is taken away, then ``add`` put in front."""

    add: str = ""
    strip: str = ""

    def to_model(self, name: str) -> str | None:
        """The model's name, or None for what lies outside ``strip``."""
        return self.add + name.removeprefix(self.strip) if name.startswith(self.strip) else None

    def to_file(self, name: str) -> str | None:
        """The file's name of a parameter of the model, or None for what lies outside ``add``."""
        return self.strip + name.removeprefix(self.add) if name.startswith(self.add) else None

    def stage(self, name: str) -> str:
        """First part of a model's name below ``add``: "res4"."""
        return name.removeprefix(self.add).split(".")[0]


PLACEMENTS = (*(Placement(add=root) for root in ROOTS), *(Placement(strip=root) for root in ROOTS[1:]))


@dataclass
class Conversion:
    """The tensors of a file as the model names and shapes them, and the report of how they came about."""

    source: Source
    placement: Placement
    report: LoadReport
    state: dict[str, torch.Tensor] = field(default_factory=dict)


def convert(tensors: Mapping[str, torch.Tensor], model: nn.Module, origin: str | None = None) -> Conversion:
    """The tensors of a file for ``model``, which stays as it is.

    Raises:
        CheckpointError: the origin is unknown, ambiguous or refused, nothing fits, or a number is not finite.
    """
    sources = recognise(tensors, model, origin)
    for source in sources:
        if source.refused:
            raise CheckpointError(f"these are weights of origin {source.name}: {source.refused}")
    candidates = [_convert(tensors, model, source) for source in sources]
    conversions = [c for c in candidates if c.report.used] or candidates
    first, *others = conversions
    if any(not _same(first.state, other.state) for other in others):
        names = ", ".join(c.source.name for c in conversions)
        raise CheckpointError(
            f"ambiguous origin, the names fit {names}, with different results: name one of them, by origin= "
            "or with nlnet-d2 convert --origin"
        )
    if not first.report.used:
        raise CheckpointError(
            f"not one tensor of origin {first.source.name} fits the model. In the file: "
            f"{grouped(tensors, ', ')}. In the model: {grouped(model.state_dict(), ', ')}"
        )
    for name in first.report.used:
        if not math.isfinite(first.state[name].sum(dtype=torch.float64)):
            raise CheckpointError(f"{name} is not finite")
    return first


def recognise(
    tensors: Mapping[str, torch.Tensor], model: nn.Module, origin: str | None = None
) -> list[Source]:
    """The origins that a file may have; more than one where their names are the same."""
    if origin is not None:
        if origin not in SOURCES:
            raise CheckpointError(f"origin {origin!r} is unknown; choose one of {', '.join(SOURCES)}")
        return [SOURCES[origin]]
    own = model.state_dict()
    if any(all(p.to_model(name) in own for name in tensors) for p in PLACEMENTS):
        return [NATIVE]
    found = [source for source in SOURCES.values() if source.recognises(tensors)]
    if not found:
        raise CheckpointError(
            f"names of no known origin: {grouped(tensors, ', ')}. Known are {', '.join(SOURCES)}"
        )
    return found


def _convert(tensors: Mapping[str, torch.Tensor], model: nn.Module, source: Source) -> Conversion:
    own, tensors = model.state_dict(), source.stack(tensors)
    report = LoadReport(source.name, expects=source.expects)
    report.dropped = {name: why for name in tensors if (why := source.reason_to_drop(name))}
    renamed: dict[str, str] = {}
    for name in tensors:
        if name not in report.dropped and (first := renamed.setdefault(source.rename(name), name)) != name:
            raise CheckpointError(f"{first} and {name} of origin {source.name} are the same parameter")
    conversion = Conversion(source, _place(renamed, own), report)
    for name, original in renamed.items():
        _convert_one(conversion, name, original, tensors[original], model, own)
    _fill(conversion, renamed, own)
    handled = {*conversion.state, *(m.name for m in report.mismatched)}
    report.missing = [name for name in own if name not in handled and not name.endswith(COUNTER)]
    report.used = list(conversion.state)
    return conversion


def _place(names: Collection[str], own: Mapping[str, torch.Tensor]) -> Placement:
    """The placement under which most names are names of the model."""
    counts = {p: sum(p.to_model(name) in own for name in names) for p in PLACEMENTS}
    best = max(counts.values())
    found = [p for p, count in counts.items() if count == best]
    if best and len(found) > 1:
        roots = ", ".join(repr(p.add or p.strip) for p in found)
        raise CheckpointError(f"the tensors fit the model equally well below each of {roots}")
    return found[0]


def _convert_one(
    conversion: Conversion,
    name: str,
    original: str,
    tensor: torch.Tensor,
    model: nn.Module,
    own: Mapping[str, torch.Tensor],
) -> None:
    """Convert one tensor; ``name`` is our name of it, ``original`` the file's."""
    report, key = conversion.report, conversion.placement.to_model(name)
    if key is None:
        report.dropped[original] = f"outside {conversion.placement.strip[:-1]}, which the model is"
        return
    if key not in own:
        if not name.endswith(COUNTER):
            report.unexpected.append(original)
        return
    block = model.get_submodule(".".join(key.split(".")[:-2]))
    tensor = conversion.source.convert(name, tensor, Target(own[key].shape, block))
    if tensor.shape != own[key].shape:
        report.mismatched.append(Mismatch(key, tuple(tensor.shape), tuple(own[key].shape)))
        return
    conversion.state[key] = tensor


def _fill(conversion: Conversion, names: Collection[str], own: Mapping[str, torch.Tensor]) -> None:
    """Set the constants that a file leaves out altogether, in layers whose weight it has."""
    for pattern, constant, reason in conversion.source.fills:
        if any(re.search(pattern, name) for name in names):
            continue
        for key, value in own.items():
            weight = key.rsplit(".", 1)[0] + ".weight"
            if re.search(pattern, key) and weight in conversion.state:
                conversion.state[key] = torch.full_like(value, constant)
                conversion.report.filled[key] = reason


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
