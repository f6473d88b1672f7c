"""What the package knows about one origin of weights: a table, and the few functions that read it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nlnet_d2.checkpoint.tensors import Target, TensorOp


@dataclass(frozen=True)
class Source:
    """An origin of weights, as a table of patterns (``re.search``).

    name: what the user calls it.
    files: example file names.
    marks: (pattern, dimensions): each must match the name of some tensor, of so many dimensions (0: any).
    absent: patterns that match no name. The origin is recognised by marks and absent.
    drops: (pattern, reason): tensors that no model here has a use for.
    stacked: parts of names; tensors whose names differ in these alone become one, see ``stack``.
    renames: (pattern, replacement), applied one after the other to each remaining name. The result is a name
        of ours, of the whole model or from the backbone on.
    ops: (pattern of our names, operation): changes to the tensors, all that match, in order.
    fills: (pattern of our names, value, reason): constants for parameters that a file leaves out altogether.
    expects: the settings that the weights were trained with and that no file records.
    refused: why nothing of this origin can be loaded; empty where it can.
    """

    name: str
    files: str
    marks: tuple[tuple[str, int], ...]
    absent: tuple[str, ...] = ()
    drops: tuple[tuple[str, str], ...] = ()
    stacked: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    ops: tuple[tuple[str, TensorOp], ...] = ()
    fills: tuple[tuple[str, float, str], ...] = ()
    expects: str = ""
    refused: str = ""

    def recognises(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether names and dimensions are those of this origin."""
        return all(
            any(re.search(pattern, name) and ndim in (0, t.ndim) for name, t in tensors.items())
            for pattern, ndim in self.marks
        ) and not any(re.search(pattern, name) for pattern in self.absent for name in tensors)

    def reason_to_drop(self, name: str) -> str | None:
        """Why a tensor of this origin is left out, or None if it is not."""
        return next((reason for pattern, reason in self.drops if re.search(pattern, name)), None)

    def stack(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """With those tensors put together whose names differ in a part of ``stacked`` alone, under the first
        name: N of (..., A, B) become (..., N, A, B). What lacks a partner of its shape stays as it is.
        """
        result = dict(tensors)
        for name in [n for n in tensors if self.stacked and self.stacked[0] in n]:
            names = [name.replace(self.stacked[0], part) for part in self.stacked]
            shapes = {tensors[n].shape if n in tensors else None for n in names}
            if len(shapes) == 1 and tensors[name].ndim > 1:
                result[name] = torch.stack([result.pop(n) for n in names], dim=-3)
        return result

    def rename(self, name: str) -> str:
        """Our name for a tensor of this origin."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def convert(self, name: str, tensor: torch.Tensor, target: Target) -> torch.Tensor:
        """The tensor for the parameter that we call ``name``."""
        for pattern, op in self.ops:
            if re.search(pattern, name):
                tensor = op(tensor, target)
        return tensor
