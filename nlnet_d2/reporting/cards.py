"""The gallery of the page: the best and worst images, missed objects and false detections."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nlnet_d2.reporting.matching import Verdict
from nlnet_d2.reporting.results import Compared

PER_KIND = 6  # cards of each kind
WIDTH = 640  # pixels of a picture
QUALITY = 82  # of JPEG


@dataclass(frozen=True)
class Card:
    """Ground truth and prediction of one image.

    Attributes:
        kind: "best", "worst", "missed" or "false".
        name: of the image.
        text: why it is shown.
        classes: names of the classes that the text speaks of, or that the image shows.
        truth, found: pictures as data URLs.
    """

    kind: str
    name: str
    text: str
    classes: list[str]
    truth: str
    found: str


def choose_cards(pairs: Sequence[tuple[Compared, Verdict]], classes: Sequence[str]) -> list[Card]:
    """Cards of all kinds."""
    ranked = sorted(pairs, key=lambda pair: pair[1].quality, reverse=True)
    best = [pair for pair in ranked if pair[1].right][:PER_KIND]
    worst = [pair for pair in reversed(ranked) if pair[1].quality[0] < 1][:PER_KIND]
    cards = [_ranked("best", *pair, classes) for pair in best]
    cards += [_ranked("worst", *pair, classes) for pair in worst]
    cards += [_singled_out("missed", *item, classes) for item in _missed(pairs)]
    return cards + [_singled_out("false", *item, classes) for item in _false(pairs, classes)]


def _missed(pairs: Sequence[tuple[Compared, Verdict]]) -> list[tuple[Compared, int, str]]:
    """The largest objects that nothing stands for, one per image."""
    items = [(c, t) for c, v in pairs for t in v.missed]
    items.sort(key=lambda item: -item[0].truth.boxes[item[1], 2:].prod())
    return [
        (c, int(c.truth.classes[t]), f"missed, {_size(c.truth.boxes[t])}") for c, t in _one_per_image(items)
    ]


def _false(pairs: Sequence[tuple[Compared, Verdict]], classes: Sequence[str]) -> list[tuple]:
    """The surest detections of what is not there or is something else, one per image."""
    items = [(c, f, "nothing is there") for c, v in pairs for f in v.false]
    items += [(c, f, f"the truth is {classes[c.truth.classes[t]]}") for c, v in pairs for t, f in v.confused]
    items.sort(key=lambda item: -item[0].found.scores[item[1]])
    return [
        (c, int(c.found.classes[f]), f"{c.found.scores[f]:.0%}, but {why}: {_size(c.found.boxes[f])}")
        for c, f, why in _one_per_image(items)
    ]


def _one_per_image(items: Sequence[tuple]) -> list[tuple]:
    """The first item of each image, which comes first in an item; as many as there are cards of a kind."""
    first = {}
    for compared, *rest in items:
        first.setdefault(compared.name, (compared, *rest))
    return list(first.values())[:PER_KIND]


def _size(box: np.ndarray) -> str:
    x, y, width, height = box.round().astype(int)
    return f"{width} x {height} at ({x}, {y})"


def _ranked(kind: str, compared: Compared, verdict: Verdict, classes: Sequence[str]) -> Card:
    f1, overlap = verdict.quality
    text = f"F1 {f1:.2f}, {len(verdict.right)} right"
    text += f" with mean overlap {overlap:.2f}" if verdict.right else ""
    counts = (len(verdict.confused), len(verdict.missed), len(verdict.false))
    for count, what in zip(counts, ("confused", "missed", "false"), strict=True):
        text += f", {count} {what}" if count else ""
    shown = np.unique(np.concatenate([compared.truth.classes, compared.found.classes]))
    return _card(kind, compared, text, [classes[k] for k in shown])


def _singled_out(kind: str, compared: Compared, class_: int, text: str, classes: Sequence[str]) -> Card:
    return _card(kind, compared, f"{classes[class_]}: {text}", [classes[class_]])


def _card(kind: str, compared: Compared, text: str, classes: list[str]) -> Card:
    truth, found = (data_url(picture) for picture in compared.draw())
    return Card(kind, compared.name, text, classes, truth, found)


def data_url(picture: np.ndarray, width: int = WIDTH) -> str:
    """An (H, W, 3) uint8 RGB picture as a JPEG inside a URL, at most ``width`` pixels wide."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((width, image.height))
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
