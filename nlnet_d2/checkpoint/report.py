"""What became of each tensor of a weights file and of each parameter of the model."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from tabulate import tabulate

from nlnet_d2.checkpoint.checkpointer import CheckpointError

GROUPS_SHOWN = 8


class Mismatch(NamedTuple):
    """A parameter whose tensor in the file has another shape."""

    name: str
    found: tuple[int, ...]
    expected: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.found} -> {self.expected}"


@dataclass
class LoadReport:
    """Result of loading weights; printed as a table.

    origin: name of the table in ``checkpoint/sources``.
    used, missing, mismatched: parameters and buffers of the model, in our names.
    unexpected: tensors of the file that the model has no place for, in the file's names.
    dropped: tensors of the file that its origin's table leaves out, with the reason.
    filled: those of ``used`` that are constants because the file leaves them out, with the reason.
    expects: settings that the weights were trained with and that nobody has checked.
    """

    origin: str
    used: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    filled: dict[str, str] = field(default_factory=dict)
    expects: str = ""

    def __str__(self) -> str:
        rows = [
            ("used", len(self.used), ""),
            ("missing", len(self.missing), grouped(self.missing)),
            ("unexpected", len(self.unexpected), grouped(self.unexpected)),
            ("other shape", len(self.mismatched), "\n".join(map(str, self.mismatched[:GROUPS_SHOWN]))),
            *(("constant", count, why) for why, count in Counter(self.filled.values()).items()),
            *(("left out", count, why) for why, count in Counter(self.dropped.values()).items()),
        ]
        title = f"weights of origin {self.origin}" + (
            f", trained with {self.expects}" if self.expects else ""
        )
        return f"{title}\n{tabulate(rows, headers=('', 'tensors', 'which'))}"

    def leftovers(self, allow_missing: Iterable[str] = ()) -> list[str]:
        """Names that keep the match from being complete and that no glob of ``allow_missing`` fits."""
        names = [*self.missing, *(m.name for m in self.mismatched), *self.unexpected]
        return [name for name in names if not allowed(name, allow_missing)]

    def require_complete(self, allow_missing: Iterable[str] = ()) -> None:
        """Raise a CheckpointError, which names them, if there are leftovers: an evaluation needs all."""
        if left := self.leftovers(allow_missing):
            raise CheckpointError(
                f"the weights and the model do not match: {len(left)} tensors, {grouped(left, ', ')}"
            )


def allowed(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the globs fits the name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def grouped(names: Iterable[str], separator: str = "\n") -> str:
    """The first few globs that together fit the names: one for all layers of a kind, ``res4.*.conv2.*``."""
    groups = list(dict.fromkeys(re.sub(r"(?<![a-z_])\d+|(?<=\.)\w+$", "*", name) for name in names))
    more = [f"and {len(groups) - GROUPS_SHOWN} more kinds"] if len(groups) > GROUPS_SHOWN else []
    return separator.join(groups[:GROUPS_SHOWN] + more)
