"""Scenes of plane shapes: geometry, placement, painting and COCO annotations.

The embedded data set ``shapes`` is made of these scenes; other synthetic data sets can be put together from
the same parts: ``scatter_objects`` decides what lies where, ``paint_scene`` draws it, ``annotate`` describes
what is visible.

Pixels are RGB. Points are (x, y), y downwards, in continuous pixel coordinates: pixel i covers [i, i + 1).
"""

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

SUBPIXELS = 4  # label maps are drawn at this multiple of the image size: outlines are exact to 1/4 pixel
MIN_VISIBLE = 0.5  # share of its area that a shape must show, or nobody could tell what it is
MIN_PIECE = 4  # pixels: smaller pieces of an object that is covered in part are not annotated
MAX_SHAPES = 7
RADII = (0.07, 0.27)  # smallest and largest shape, as a share of the shorter image side
MAX_TILT = np.pi / 6  # beyond, the "left" corner of a shape would no longer be the left one
CROWD_SHARE = 0.08  # of the images show a crowd of tiny shapes
EMPTY_SHARE = 0.05  # of the images show no object


def _circle_points(count: int, radii=(1.0,)) -> np.ndarray:
    """``count`` points around the origin, clockwise from the top; the radii are used in turn."""
    angles = 2 * np.pi * np.arange(count) / count
    radius = np.resize(radii, count)
    return np.stack([radius * np.sin(angles), -radius * np.cos(angles)], axis=1)


# Outlines inside the unit circle.
OUTLINES = {
    "circle": _circle_points(64),
    "square": np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.sqrt(0.5),
    "triangle": _circle_points(3),
    "star": _circle_points(10, radii=(1.0, 0.45)),
}
# Centre, top, left, right and bottom of each outline: its corners or tips where it has some, else its rim.
_RIM = np.array([[0, 0], [0, -1], [-1, 0], [1, 0], [0, 1]])
KEYPOINTS = {
    "circle": _RIM,
    "square": _RIM * np.sqrt(0.5),
    "triangle": np.array([[0, 0], *OUTLINES["triangle"][[0, 2, 1]], [0, 0.5]]),
    "star": np.array([[0, 0], *OUTLINES["star"][[0, 8, 2, 5]]]),
}


@dataclass(frozen=True)
class Shape:
    """One shape: ``form`` is a key of ``OUTLINES``, ``radius`` that of its circumscribed circle in pixels,
    ``tilt`` its clockwise rotation in radians, ``colour`` RGB in [0, 1]."""

    form: str
    centre: tuple[float, float]
    radius: float
    tilt: float
    colour: tuple[float, float, float]

    def outline(self) -> np.ndarray:
        return self._place(OUTLINES[self.form])  # (points, 2)

    def keypoints(self) -> np.ndarray:
        return self._place(KEYPOINTS[self.form])  # (5, 2)

    def _place(self, points: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        return points @ np.array([[cos, sin], [-sin, cos]]) * self.radius + self.centre


# One annotated object: a single shape, or a crowd of several. Later objects of a scene lie on top.
Object = tuple[Shape, ...]


def random_shape(rng: np.random.Generator, form: str, centre, radius: float) -> Shape:
    """A vivid shape, tilted at random (a circle has no tilt that one could see)."""
    tilt = 0.0 if form == "circle" else rng.uniform(-MAX_TILT, MAX_TILT)
    colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.55, 1), rng.uniform(0.45, 1))
    return Shape(form, tuple(centre), radius, tilt, colour)


def random_crowd(rng: np.random.Generator, form: str, centre, radius: float) -> Object:
    """Ten to sixteen tiny shapes of one form, scattered within ``radius`` of the centre."""
    offsets = rng.normal(scale=0.5, size=(rng.integers(10, 17), 2)).clip(-1, 1) * radius
    return tuple(random_shape(rng, form, centre + offset, 0.2 * radius) for offset in offsets)


def scatter_objects(rng: np.random.Generator, height: int, width: int) -> list[Object]:
    """Random objects, back to front. A shape that would hide, or punch a hole into, another is left out."""
    if rng.random() < EMPTY_SHARE:
        return []
    size, forms = np.array([width, height]), list(OUTLINES)
    objects = []
    if rng.random() < CROWD_SHARE:
        centre = rng.uniform(0.2, 0.8, 2) * size
        objects.append(random_crowd(rng, rng.choice(forms), centre, 0.15 * size.min()))
    labels = label_map(objects, height, width)
    for _ in range(rng.integers(1, MAX_SHAPES + 1)):
        radius = size.min() * np.exp(rng.uniform(*np.log(RADII)))
        candidate = (random_shape(rng, rng.choice(forms), rng.uniform(0.1, 0.9, 2) * size, radius),)
        after = _cover(labels.copy(), candidate, len(objects) + 1)
        if all(_recognisable(thing, after == i) for i, thing in enumerate([*objects, candidate], start=1)):
            objects.append(candidate)
            labels = after
    return objects


def label_map(objects: list[Object], height: int, width: int) -> np.ndarray:
    """Which object is seen where: (SUBPIXELS * height, SUBPIXELS * width), 0 for none, else 1 + index."""
    labels = np.zeros((height * SUBPIXELS, width * SUBPIXELS), np.uint8)
    for i, shapes in enumerate(objects, start=1):
        _cover(labels, shapes, i)
    return labels


def _cover(labels: np.ndarray, shapes: Object, value: int) -> np.ndarray:
    """Write ``value`` wherever a sub-pixel lies inside one of the shapes (in place)."""
    for shape in shapes:
        fixed_point = np.round((shape.outline() * SUBPIXELS - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(labels, [fixed_point], value, shift=4)
    return labels


def _recognisable(shapes: Object, visible: np.ndarray) -> bool:
    """Enough of the object is seen, and what is seen can be told by polygons, which have no holes."""
    full = sum(cv2.contourArea(shape.outline().astype(np.float32)) for shape in shapes) * SUBPIXELS**2
    if np.count_nonzero(visible) < MIN_VISIBLE * full:
        return False
    return len(shapes) > 1 or not _contours(visible)[1]


def _contours(mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
    """Outer contours of a sub-pixel mask, as (points, 2) in sub-pixels, and whether there are holes in it."""
    # OpenCV's contours run through pixel centres: grown by one to the right and downwards, along the edges.
    grown = cv2.copyMakeBorder(mask.astype(np.uint8), 0, 1, 0, 1, cv2.BORDER_CONSTANT)
    grown = cv2.dilate(grown, np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, hierarchy = cv2.findContours(grown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    is_hole = [] if hierarchy is None else hierarchy[0][:, 3] >= 0
    outer = [c for c, hole in zip(contours, is_hole, strict=True) if not hole]
    return [cv2.approxPolyDP(c, 1.0, closed=True)[:, 0] for c in outer], bool(np.any(is_hole))


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One of four random patterns: noise, stripes, checks, a gradient. (height, width) in [0, 1]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.25) * max(height, width)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind = rng.choice(["noise", "stripes", "checks", "gradient"])
    if kind == "noise":
        grids = [rng.random((n, n), np.float32) for n in (4, 9, 25)]
        layers = [cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) for grid in grids]
        return np.clip(np.average(layers, axis=0, weights=(3, 2, 1)), 0, 1)
    if kind == "stripes":
        return 0.5 + 0.5 * np.sin(2 * np.pi * along / period)
    if kind == "checks":
        return (np.sin(np.pi * along / period) * np.sin(np.pi * across / period) > 0).astype(np.float32)
    return (along - along.min()) / np.ptp(along)


def random_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Two muted colours mixed by a texture: (height, width, 3) in [0, 1]."""
    hue, value = rng.random(), rng.uniform(0.25, 0.9)
    first = np.float32(colorsys.hsv_to_rgb(hue, rng.uniform(0, 0.4), value))
    second = np.float32(colorsys.hsv_to_rgb(hue + rng.uniform(-0.1, 0.1), rng.uniform(0, 0.4), value * 0.75))
    return first + (second - first) * texture(rng, height, width)[..., None]


def paint_scene(rng: np.random.Generator, objects: list[Object], height: int, width: int) -> np.ndarray:
    """The picture of a scene: uint8 RGB (height, width, 3)."""
    image = random_background(rng, height, width)
    for shape in (shape for shapes in objects for shape in shapes):
        alpha = _coverage(shape, height, width)
        shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, _SHADOW_SHIFT, (width, height)), (9, 9), 0)
        image *= 1 - 0.4 * shadow[..., None]
        pattern = 1 - 0.25 * texture(rng, height, width)
        image *= 1 - alpha[..., None]
        image += (alpha * pattern)[..., None] * np.float32(shape.colour)
    image += 0.015 * rng.standard_normal(image.shape, np.float32)
    return np.round(image.clip(0, 1) * 255).astype(np.uint8)


_SHADOW_SHIFT = np.float32([[1, 0, 2], [0, 1, 2]])  # two pixels to the right and downwards


def _coverage(shape: Shape, height: int, width: int) -> np.ndarray:
    """Share of each pixel that lies inside the shape: float32 (height, width)."""
    inside = _cover(np.zeros((height * SUBPIXELS, width * SUBPIXELS), np.uint8), (shape,), 255)
    return cv2.resize(inside, (width, height), interpolation=cv2.INTER_AREA) / np.float32(255)


def annotate(objects: list[Object], height: int, width: int) -> list[dict]:
    """COCO annotations (without ids) of the visible part of each object; ``form`` names its class.

    A shape gets polygons, one per visible piece; a crowd gets a run-length mask and no keypoints.
    """
    labels = label_map(objects, height, width)
    return [
        _annotate_shape(shapes[0], labels, i) if len(shapes) == 1 else _annotate_crowd(shapes, labels == i)
        for i, shapes in enumerate(objects, start=1)
    ]


def _annotate_shape(shape: Shape, labels: np.ndarray, label: int) -> dict:
    contours, _ = _contours(labels == label)
    pieces = [piece for piece in contours if cv2.contourArea(piece) >= MIN_PIECE * SUBPIXELS**2]
    corner, end = np.concatenate(pieces).min(axis=0), np.concatenate(pieces).max(axis=0)
    keypoints = _visible_keypoints(shape, labels, label)
    return {
        "form": shape.form,
        "iscrowd": 0,
        "bbox": (np.concatenate([corner, end - corner]) / SUBPIXELS).tolist(),
        "area": sum(cv2.contourArea(piece) for piece in pieces) / SUBPIXELS**2,
        "segmentation": [(piece / SUBPIXELS).ravel().tolist() for piece in pieces],
        "keypoints": keypoints.ravel().tolist(),
        "num_keypoints": int(np.count_nonzero(keypoints[:, 2])),
    }


def _visible_keypoints(shape: Shape, labels: np.ndarray, label: int) -> np.ndarray:
    """(5, 3): COCO's x, y (pixel indices) and visibility: 0 outside the image, 1 covered, 2 seen."""
    points = shape.keypoints()
    size = np.array(labels.shape[::-1])
    inside = np.all((points >= 0.5) & (points <= size / SUBPIXELS - 0.5), axis=1)
    # Looked up a little inside the rim, where the pixel is the shape's own unless another covers it.
    inner = 0.9 * points[inside] + 0.1 * points[0]
    x, y = (inner * SUBPIXELS).astype(int).clip(0, size - 1).T
    result = np.zeros((len(points), 3))
    result[inside, :2] = np.round(points[inside] - 0.5, 2)
    result[inside, 2] = np.where(labels[y, x] == label, 2, 1)
    return result


def _annotate_crowd(shapes: Object, visible: np.ndarray) -> dict:
    height, width = np.array(visible.shape) // SUBPIXELS
    mask = cv2.resize(visible.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) >= 0.5
    x, y, box_width, box_height = cv2.boundingRect(mask.astype(np.uint8))
    return {
        "form": shapes[0].form,
        "iscrowd": 1,
        "bbox": [x, y, box_width, box_height],
        "area": int(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
        "keypoints": [0] * 3 * len(KEYPOINTS[shapes[0].form]),
        "num_keypoints": 0,
    }


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a boolean mask: column by column, starting with the zeros."""
    pixels = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
