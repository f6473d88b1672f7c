"""What a detector's backbone looks at in one picture or clip, from chosen points and on the whole."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from detectron2.structures import ImageList
from torch import nn

from nlnet_d2.analysis.attention_maps import (
    QueryDifference,
    attention_modules,
    grid_points,
    query_difference,
    record_attention,
)
from nlnet_d2.modeling.action_rcnn import ActionRCNN

GRID = {2: (8, 8), 3: (4, 4, 4)}  # the queries whose maps are compared, for pictures and for clips


@dataclass(frozen=True)
class BlockView:
    """What one module sees.

    Attributes:
        name: of the module in the backbone.
        rows: (Q, heads, H', W') or (Q, heads, T', H', W'), NaN out of reach, over the padded input.
        difference: between queries spread evenly over the picture or clip.
    """

    name: str
    rows: np.ndarray
    difference: QueryDifference


@dataclass(frozen=True)
class View:
    """What all modules of a backbone see.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB, what the network was given, of any size; T = 1 for a picture.
        padded: height and width of its input in their pixels, padding at the right and bottom included.
        points: (Q, 2): y, x in pixels of the frames, or (Q, 3): frame, y, x.
        blocks: by the order in which they run.
    """

    frames: np.ndarray
    padded: tuple[float, float]
    points: np.ndarray
    blocks: list[BlockView]

    def on(self, image: np.ndarray) -> "View":
        """The same with another version (H', W', 3) of the picture, such as the one at full size."""
        scale = np.array(image.shape[:2]) / self.frames.shape[1:3]
        return replace(
            self, frames=image[None], padded=tuple(self.padded * scale), points=self.points * scale
        )


def view(model: nn.Module, sample: dict, frames: np.ndarray, points: np.ndarray) -> View:
    """Run the backbone of a model on one input and keep what it looks at.

    Args:
        model: in evaluation mode, with ``backbone``: a detector of Detectron2, or an ``ActionRCNN``.
        sample: its input, with "image" or "clip".
        frames, points: see ``View``.

    Raises:
        ValueError: the backbone has no attention.
    """
    with torch.no_grad():
        images = _preprocess(model, sample)
        sides = np.array([*images.tensor.shape[2:]])  # padded
        inside = np.array([len(frames), *frames.shape[1:3]][-len(sides) :])
        spread = grid_points(GRID[len(sides)]).numpy() * inside / sides
        queries = torch.from_numpy(np.concatenate([points / sides, spread])).float()
        with record_attention(model.backbone, queries) as maps:
            model.backbone(images.tensor)
    blocks = [
        BlockView(name, rows[0, : len(points)].numpy(), query_difference(rows[:, len(points) :]))
        for name, rows in maps.items()
    ]
    return View(frames, tuple(sides[-2:].tolist()), points, blocks)


def what_is_not_drawn(model: nn.Module) -> str:
    """A sentence about the blocks of heads, which look at one object each; empty if there are none."""
    names = [name for name in attention_modules(model) if not name.startswith("backbone.")]
    how = "record_attention in nlnet_d2/analysis/attention_maps.py records them"
    return f"Not drawn, for they are outside of the backbone: {', '.join(names)}; {how}." if names else ""


def _preprocess(model: nn.Module, sample: dict) -> ImageList:
    prepare = model.preprocess if isinstance(model, ActionRCNN) else model.preprocess_image
    return prepare([sample])
