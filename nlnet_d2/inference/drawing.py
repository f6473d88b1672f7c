"""Predictions over pictures, drawn by Detectron2's Visualizer with all of its labels inside the picture."""

import math

import numpy as np
from detectron2.data import Metadata
from detectron2.structures import Instances

from nlnet_d2.evaluation.gallery import COLOURS, PERSON_COLOUR, Drawing

READABLE = 360  # pixels of the shorter side: smaller pictures are enlarged until one can read the labels
ACTIONS_SHOWN = 3  # per person


def draw_objects(image: np.ndarray, instances: Instances, classes: Metadata, min_score: float) -> np.ndarray:
    """Boxes, masks and keypoints of the instances that score ``min_score`` or more.

    Args:
        image: (H, W, 3) uint8 RGB.
        classes: Detectron2's metadata.

    Returns:
        the same form, ``enlargement(image)`` times as large.
    """
    shown = instances[instances.scores >= min_score]
    visualizer = Drawing(image, classes, scale=enlargement(image))
    names = classes.get("thing_classes", None)
    found = zip(shown.pred_classes.tolist(), shown.scores.tolist(), strict=True)
    labels = [f"{names[c] if names else f'class {c}'} {score:.0%}" for c, score in found]
    visualizer.overlay_instances(
        boxes=shown.pred_boxes,
        labels=labels,
        masks=list(shown.pred_masks.numpy()) if shown.has("pred_masks") else None,
        keypoints=shown.pred_keypoints if shown.has("pred_keypoints") else None,
        assigned_colors=[COLOURS[c % len(COLOURS)] for c in shown.pred_classes.tolist()],
        alpha=0.4,
    )
    return _picture(visualizer)


def _picture(visualizer: Drawing) -> np.ndarray:
    """What was drawn; ends the visualizer.

    Matplotlib's figures are reference cycles. Without this their pixels wait for the garbage collector, which
    counts objects, not bytes: hundreds of megabytes in a long video.
    """
    image, axes = visualizer.output.get_image(), visualizer.output.ax
    for artist in (*axes.images, *axes.texts):  # before matplotlib 3.10, clear() leaves them in cycles
        artist.remove()
    axes.clear()
    del visualizer.output.canvas.renderer
    return image


def enlargement(image: np.ndarray) -> int:
    """How many times as large a picture is drawn."""
    return math.ceil(READABLE / min(image.shape[:2]))


def enlarge(image: np.ndarray) -> np.ndarray:
    """An image, ``enlargement(image)`` times as large."""
    times = enlargement(image)
    return image.repeat(times, axis=0).repeat(times, axis=1)


class ActionOverlay:
    """Boxes of people and their likeliest actions, drawn once and laid over many frames.

    Args:
        instances: with ``pred_boxes`` and ``scores`` (people, classes).
        names: of the classes.
        min_score: actions below it are not named.
    """

    def __init__(self, instances: Instances, names: list[str], min_score: float):
        self._drawing = None
        if len(instances) == 0:
            return
        labels = [_label(scores, names, min_score) for scores in instances.scores.tolist()]
        # What comes out on black is the drawing; where it differs from that on white, one sees through it.
        black, white = (self._draw(instances, labels, ground) for ground in (0, 255))
        see_through = white.astype(np.uint16) - black
        drawn = np.nonzero((see_through < 255).any(axis=2))
        if len(drawn[0]):
            self._where = tuple(slice(i.min(), i.max() + 1) for i in drawn)
            self._drawing, self._see_through = black[self._where], see_through[self._where]

    @staticmethod
    def _draw(instances: Instances, labels: list[str], ground: int) -> np.ndarray:
        image = np.full((*instances.image_size, 3), ground, np.uint8)
        # Enlarged before people are drawn: labels would stand beside small ones.
        visualizer = Drawing(enlarge(image))
        boxes = instances.pred_boxes.tensor.numpy() * enlargement(image)
        colours = [PERSON_COLOUR] * len(instances)
        visualizer.overlay_instances(boxes=boxes, labels=labels, assigned_colors=colours)
        return _picture(visualizer)

    def over(self, image: np.ndarray) -> np.ndarray:
        """The overlay on (H, W, 3) uint8 RGB, ``enlargement(image)`` times as large."""
        image = enlarge(image)
        if self._drawing is not None:
            under = image[self._where] * self._see_through // 255
            image[self._where] = self._drawing + under.astype(np.uint8)
        return image


def _label(scores: list[float], names: list[str], min_score: float) -> str:
    best = sorted(zip(scores, names, strict=True), reverse=True)[:ACTIONS_SHOWN]
    return "\n".join(f"{name} {score:.0%}" for score, name in best if score >= min_score)
