"""The results of a model on one data set as the page shows them, the same for objects and actions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nlnet_d2.reporting.matching import Objects

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table of the page. ``note`` says what the numbers mean; floats are shown with ``digits``."""

    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""
    digits: int = 1

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers, some of which may be unknown (None)."""
        return all(isinstance(row[column], int | float | None) for row in self.rows)

    def show(self, value: Cell) -> str:
        """A cell as text."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "–"
        return f"{value:.{self.digits}f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Curve:
    """Precision (P,) over recall (P,), both 0..1."""

    label: str
    recall: np.ndarray
    precision: np.ndarray


@dataclass(frozen=True)
class Compared:
    """One image or key frame.

    Attributes:
        name: what it is called on the page.
        truth, found: its objects.
        image: reads it, (H, W, 3) uint8 RGB.
        draw: gives two such pictures, ground truth and prediction.
        record: of the data set.
    """

    name: str
    truth: Objects
    found: Objects
    image: Callable[[], np.ndarray]
    draw: Callable[[], tuple[np.ndarray, np.ndarray]]
    record: dict


@dataclass(frozen=True)
class SetResults:
    """All of one data set.

    Attributes:
        name: of the data set.
        classes: their names, in the order of the class indices.
        tables: of average precision.
        curves: title -> curves of one chart.
        compared: all images or key frames.
    """

    name: str
    classes: list[str]
    tables: list[Table]
    curves: dict[str, list[Curve]]
    compared: list[Compared]
