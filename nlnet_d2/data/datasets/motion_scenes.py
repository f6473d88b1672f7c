"""Scenes of drawn figures that do things: who does what in which second, and how it looks.

The embedded data set ``motions`` is made of them. Some actions show in one frame (crouch, carry), some in
motion alone (walking, waving), some only in relation to another figure (approach). Waving fast and slowly
differ in nothing but the speed: at a quarter of the frame rate the two look alike.

Pixels are RGB; x runs to the right, y downwards. What a figure does changes once a second.
"""

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

SIZE = (160, 96)  # width, height
REACH = 20  # of a figure to either side, in pixels
GAP = 44  # between the middles of two figures, at least
SPEEDS = (18.0, 28.0)  # pixels per second
# Frames per cycle. Sampled every 4 or 5 frames, both advance by 0.2 to 0.5 of a cycle, forwards or backwards.
PERIODS = {"wave slowly": (11.0, 16.0), "wave fast": (2.8, 3.4)}
SUBPIXEL_BITS = 4  # of OpenCV's drawing


@dataclass(frozen=True)
class Figure:
    """What a figure looks like; ``side`` (1 right, -1 left) is that of the arm it waves with."""

    color: tuple[int, int, int]
    height: float
    side: int


@dataclass(frozen=True)
class Deed:
    """What a figure does for one second; ``wave`` is "" or a name of ``PERIODS``."""

    x: float
    velocity: float
    crouches: bool
    carries: bool
    wave: str
    period: float
    phase: float

    def place(self, time: float) -> float:
        """x at a time in 0..1 of the second."""
        return self.x + self.velocity * time


@dataclass(frozen=True)
class Scene:
    """Figures, and the deeds of each, second by second."""

    figures: list[Figure]
    deeds: list[list[Deed]]
    ground: int
    background: np.ndarray

    @property
    def seconds(self) -> int:
        return len(self.deeds[0])


def random_scene(rng: np.random.Generator, seconds: int) -> Scene:
    """One figure, or more often two, on a plain ground."""
    count = int(rng.choice([1, 2], p=[0.2, 0.8]))
    figures = [_random_figure(rng, hue) for hue in (rng.random() + np.arange(count) / 3) % 1]
    places = rng.uniform(REACH, SIZE[0] - REACH, count)
    while not _have_room(places, places):
        places = rng.uniform(REACH, SIZE[0] - REACH, count)
    deeds = [[] for _ in figures]
    for _ in range(seconds):
        velocities = _random_velocities(rng, places)
        for mine, x, velocity in zip(deeds, places, velocities, strict=True):
            mine.append(_random_deed(rng, float(x), float(velocity)))
        places = places + velocities
    ground = int(rng.integers(SIZE[1] - 10, SIZE[1] - 3))
    return Scene(figures, deeds, ground, _random_background(rng))


def _random_figure(rng: np.random.Generator, hue: float) -> Figure:
    color = colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 0.9), rng.uniform(0.8, 1))
    return Figure(tuple(round(255 * c) for c in color), rng.uniform(52, 62), int(rng.choice([-1, 1])))


def _random_velocities(rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    """Pixels per second; nobody leaves the picture or comes too close to another."""
    while True:
        velocities = rng.choice([0, -1, 1], len(places), p=[0.4, 0.3, 0.3]) * rng.uniform(
            *SPEEDS, len(places)
        )
        if _have_room(places, places + velocities):
            return velocities


def _have_room(before: np.ndarray, after: np.ndarray) -> bool:
    order = np.argsort(before)
    inside = (after >= REACH).all() and (after <= SIZE[0] - REACH).all()
    return bool(inside and (np.diff(after[order]) >= GAP).all())


def _random_deed(rng: np.random.Generator, x: float, velocity: float) -> Deed:
    wave = str(rng.choice(["", *PERIODS], p=[0.3, 0.35, 0.35]))
    return Deed(
        x=x,
        velocity=velocity,
        crouches=velocity == 0 and rng.random() < 0.4,
        carries=rng.random() < 0.35,
        wave=wave,
        period=rng.uniform(*PERIODS[wave]) if wave else 1.0,
        phase=rng.uniform(0, 2 * np.pi),
    )


def _random_background(rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3): dark, with soft blots, so that a figure stands out but no pixel is constant over videos."""
    blots = rng.uniform(10, 90, (4, 6, 3)).astype(np.float32)
    return cv2.resize(blots, SIZE, interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def actions_of(scene: Scene, figure: int, second: int) -> list[str]:
    """Names of what a figure does in a second."""
    deed = scene.deeds[figure][second]
    if deed.velocity == 0:
        actions = ["crouch" if deed.crouches else "stand"]
    else:
        actions = ["walk right" if deed.velocity > 0 else "walk left"]
    if deed.wave:
        actions.append(deed.wave)
    if deed.carries:
        actions.append("carry")
    others = [deeds[second] for i, deeds in enumerate(scene.deeds) if i != figure]
    if others and deed.velocity != 0:
        towards = (others[0].x - deed.x) * deed.velocity > 0
        actions.append("approach" if towards else "move away")
    return actions


def box_of(scene: Scene, figure: int, second: int, time: float = 0.5) -> np.ndarray:
    """(4,) XYXY pixels, the same whatever the arms do."""
    deed = scene.deeds[figure][second]
    x, height = deed.place(time), _height(scene.figures[figure], deed)
    return np.array([x - REACH, scene.ground - height - 4, x + REACH, scene.ground + 2])


def _height(figure: Figure, deed: Deed) -> float:
    return figure.height * (0.62 if deed.crouches else 1.0)


def paint_scene(scene: Scene, fps: int) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8, one frame after the other; second s is from frame s * fps on."""
    for second in range(scene.seconds):
        for frame in range(fps):
            image = scene.background.copy()
            cv2.line(image, (0, scene.ground), (SIZE[0], scene.ground), (120, 120, 120), 1)
            for figure, deeds in zip(scene.figures, scene.deeds, strict=True):
                deed = deeds[second]
                _paint_figure(image, figure, deed, (deed.place(frame / fps), scene.ground), frame)
            yield image


def _paint_figure(image: np.ndarray, figure: Figure, deed: Deed, feet: tuple, frame: int) -> None:
    height, (x, ground) = _height(figure, deed), feet
    hip, shoulder, head = (ground - share * height for share in (0.4, 0.72, 0.87))
    arm = 0.3 * figure.height
    waving, other = x + 3 * figure.side, x - 3 * figure.side
    _line(image, (x, hip), (x, shoulder), figure.color, 8)
    for foot in (-6, 6):
        _line(image, (x, hip), (x + foot, ground), figure.color, 4)
    hand = (other - 0.45 * arm * figure.side, shoulder + 0.9 * arm)
    _line(image, (other, shoulder), hand, figure.color, 3)
    if deed.carries:
        corner = np.array(hand)
        cv2.rectangle(
            image, *(_fixed(corner + d) for d in (-5, 5)), (250, 250, 250), -1, cv2.LINE_AA, SUBPIXEL_BITS
        )
    angle = np.pi / 4 + 0.7 * np.sin(2 * np.pi * frame / deed.period + deed.phase) if deed.wave else -1.1
    tip = (waving + arm * np.cos(angle) * figure.side, shoulder - arm * np.sin(angle))
    _line(image, (waving, shoulder), tip, figure.color, 3)
    radius = round(0.13 * figure.height * 2**SUBPIXEL_BITS)
    cv2.circle(image, _fixed((x, head)), radius, figure.color, -1, cv2.LINE_AA, SUBPIXEL_BITS)


def _line(image: np.ndarray, start, end, color: tuple[int, int, int], thickness: int) -> None:
    cv2.line(image, _fixed(start), _fixed(end), color, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def _fixed(point) -> tuple[int, int]:
    """A point in OpenCV's fixed-point coordinates."""
    return tuple(round(float(c) * 2**SUBPIXEL_BITS) for c in point)
