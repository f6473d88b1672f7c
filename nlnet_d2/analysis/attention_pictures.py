"""Pictures of attention: heat maps over the frames, and arrows to the strongest positions.

Brightness grows with the square root of a weight, so that one strong position does not hide all others. The
brightest colour stands for the strongest weight of a map, but at least for twice the average: a map that
prefers nothing is not all bright.

The arrows are those of figure 3 of "Non-local Neural Networks" (arXiv 1711.07971): from the query to the 20
positions with the highest weights, in all frames; those with less than ``FAINT`` of the highest are left out.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from nlnet_d2.analysis.attention_views import BlockView, View

ARROWS = 20
FAINT = 0.01
PICTURE, FRAME, HEAD = 400, 240, 190  # pixels along the longer side of a picture, of a frame, for one head
MARGIN = 10
CAPTION = 26  # height in pixels of a line of text
WHITE, INK, QUERY, ARROW = (255, 255, 255), (30, 30, 30), (60, 255, 90), (255, 225, 60)  # RGB


def draw_view(view: View, query: int) -> np.ndarray:
    """All modules below each other, as seen from one query: (H, W, 3) uint8 RGB."""
    return _stack([_draw_block(view, block, query) for block in view.blocks])


def _draw_block(view: View, block: BlockView, query: int) -> np.ndarray:
    """Arrows and heat map of the mean over the heads, then each head."""
    rows = block.rows[query]  # (heads, *grid)
    mean = rows.mean(0)
    is_clip = rows.ndim == 4
    size = FRAME if is_clip else PICTURE
    name = "mean of the heads" if len(rows) > 1 else "map"
    panels = [
        _caption(draw_arrows(view, mean, view.points[query], size), f"{ARROWS} strongest positions"),
        _caption(draw_heat(view, mean, view.points[query], size), f"{name}{_peak(mean)}"),
    ]
    if len(rows) > 1:
        heads = [draw_heat(view, row, view.points[query], HEAD) for row in rows]
        heads = [_caption(head, f"head {i}") for i, head in enumerate(heads)]
        panels.append(_stack(heads) if is_clip else _in_two_lines(heads))
    picture = _stack(panels) if is_clip else _beside(panels)
    grid = " x ".join(map(str, rows.shape[1:]))
    text = f"{block.name}: {len(rows)} head(s), {grid} positions; queries differ by "
    return _caption(picture, f"{text}{block.difference.cosine:.3f} (cosine)")


def _peak(weights: np.ndarray) -> str:
    """How far the strongest weight stands out, in words."""
    mean = np.nanmean(weights)
    return f", up to {np.nanmax(weights) / mean:.1f} x the average" if mean > 0 else ""


def draw_heat(view: View, weights: np.ndarray, point: np.ndarray, size: int) -> np.ndarray:
    """The frames under the weights (H', W') or (T', H', W'): the stronger, the brighter and more opaque."""
    weights = weights if weights.ndim == 3 else weights[None]
    strongest = max(np.nanmax(weights), 2 * np.nanmean(weights), 1e-12)
    frames = [
        _heat(view, frame, np.nan_to_num(row).clip(0) / strongest, size)
        for frame, row in zip(_seen_frames(view, len(weights)), weights, strict=True)
    ]
    canvas = _beside(frames)
    _mark(canvas, _query_pixel(view, point, len(weights), size))
    return canvas


def draw_arrows(view: View, weights: np.ndarray, point: np.ndarray, size: int) -> np.ndarray:
    """The frames side by side, with arrows from the query to the strongest positions of any frame."""
    weights = weights if weights.ndim == 3 else weights[None]
    canvas = _beside([_resize(frame, size) for frame in _seen_frames(view, len(weights))])
    start = _query_pixel(view, point, len(weights), size)
    strongest = strongest_positions(view, weights)
    highest = max(float(weights[strongest[0]]), 1e-12)
    for cell in reversed(strongest):
        end = _cell_pixel(view, cell, weights.shape, size)
        share = float(weights[cell] / highest)
        if share < FAINT:
            continue
        thickness = 1 + round(1.5 * share)
        length = max(float(np.hypot(end[0] - start[0], end[1] - start[1])), 1.0)
        cv2.arrowedLine(canvas, start, end, INK, thickness + 2, cv2.LINE_AA, tipLength=8 / length)
        cv2.arrowedLine(canvas, start, end, ARROW, thickness, cv2.LINE_AA, tipLength=8 / length)
    _mark(canvas, start)
    return canvas


def strongest_positions(view: View, weights: np.ndarray) -> list[tuple[int, int, int]]:
    """The cells (t, y, x) of ``weights`` (T', H', W') with the highest weights, the highest first.

    Cells of the padding are left out, though the network may look there.
    """
    ratios = (side / pad for side, pad in zip(view.frames.shape[1:3], view.padded, strict=True))
    inside = [max(1, round(cells * ratio)) for cells, ratio in zip(weights.shape[1:], ratios, strict=True)]
    weights = weights[:, : inside[0], : inside[1]]
    order = np.argsort(np.nan_to_num(-weights, nan=np.inf), axis=None)[: min(ARROWS, weights.size)]
    cells = np.stack(np.unravel_index(order, weights.shape), 1)
    return [tuple(cell) for cell in cells.tolist() if not np.isnan(weights[tuple(cell)])]


def _seen_frames(view: View, count: int) -> np.ndarray:
    """The ``count`` frames that stand for the T' slices of a map."""
    return view.frames[((np.arange(count) + 0.5) / count * len(view.frames)).astype(int)]


def _heat(view: View, frame: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """One frame under weights (H', W') in 0..1 that cover the padded input."""
    scale = size / max(frame.shape[:2])
    frame = _resize(frame, size)
    sides = tuple(max(1, round(side * scale)) for side in reversed(view.padded))
    weights = cv2.resize(weights.astype(np.float32).clip(0, 1), sides, interpolation=cv2.INTER_NEAREST)
    weights = np.sqrt(weights[: frame.shape[0], : frame.shape[1]])[..., None]
    colours = cv2.applyColorMap((weights * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
    opacity = 0.35 + 0.5 * weights
    return ((1 - opacity) * grey + opacity * colours).astype(np.uint8)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    scale = size / max(image.shape[:2])
    sides = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    return cv2.resize(image, sides, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)


def _query_pixel(view: View, point: np.ndarray, slices: int, size: int) -> tuple[int, int]:
    """x, y of a query on the canvas of ``slices`` frames side by side."""
    *time, y, x = point
    number = int(time[0] / len(view.frames) * slices) if time else 0
    return _pixel(view, number, x, y, size)


def _cell_pixel(view: View, cell: Sequence[int], grid: Sequence[int], size: int) -> tuple[int, int]:
    """x, y of the middle of a cell on that canvas."""
    number, row, column = cell
    y, x = ((at + 0.5) * pad / n for at, pad, n in zip((row, column), view.padded, grid[1:], strict=True))
    return _pixel(view, number, x, y, size)


def _pixel(view: View, number: int, x: float, y: float, size: int) -> tuple[int, int]:
    height, width = view.frames.shape[1:3]
    scale = size / max(height, width)
    left = number * (max(1, round(width * scale)) + MARGIN)
    return left + round(min(x, width - 1) * scale), round(min(y, height - 1) * scale)


def _mark(canvas: np.ndarray, at: tuple[int, int]) -> None:
    cv2.circle(canvas, at, 6, INK, 4, cv2.LINE_AA)
    cv2.circle(canvas, at, 6, QUERY, 2, cv2.LINE_AA)


def _caption(picture: np.ndarray, text: str) -> np.ndarray:
    """A line of text above a picture, which is widened where the text needs it."""
    (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
    line = np.full((CAPTION, max(wide + 4, picture.shape[1]), 3), 255, np.uint8)
    cv2.putText(line, text, (2, CAPTION - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)
    return _join([line, picture], axis=0, gap=0)


def _beside(pictures: Sequence[np.ndarray]) -> np.ndarray:
    return _join(pictures, axis=1, gap=MARGIN)


def _stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    return _join(pictures, axis=0, gap=MARGIN)


def _in_two_lines(pictures: Sequence[np.ndarray]) -> np.ndarray:
    half = -(-len(pictures) // 2)
    return _stack([_beside(pictures[:half]), _beside(pictures[half:])])


def _join(pictures: Sequence[np.ndarray], axis: int, gap: int) -> np.ndarray:
    """Pictures in a line on white, as wide (or high) as the widest."""
    across = max(picture.shape[1 - axis] for picture in pictures)
    padded = []
    for i, picture in enumerate(pictures):
        fill = [(0, 0), (0, 0), (0, 0)]
        fill[axis] = (0, gap if i < len(pictures) - 1 else 0)
        fill[1 - axis] = (0, across - picture.shape[1 - axis])
        padded.append(np.pad(picture, fill, constant_values=255))
    return np.concatenate(padded, axis=axis)
