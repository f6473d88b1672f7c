"""Square, non-overlapping windows of a channels-last map (arXiv 2103.14030, 2203.16527)."""

import torch
from torch.nn import functional as F


def window_numbers(shape: torch.Size, size: int, device: torch.device) -> torch.Tensor:
    """Cut maps into windows, row by row; where they do not fit, at the right and bottom, there is padding.

    Args:
        shape: (N, H, W).
        size: side of a window.

    Returns:
        (N * ceil(H / size) * ceil(W / size), size, size): which position stands there, counted from 1 through
        all maps; 0 for padding. What is gathered by it is moved once, not padded and then cut.
    """
    count, height, width = shape
    numbers = torch.arange(1, count * height * width + 1, device=device).view(count, height, width)
    rows, columns = _count((height, width), size)
    numbers = F.pad(numbers, (0, columns * size - width, 0, rows * size - height))
    return numbers.view(-1, rows, size, columns, size).transpose(2, 3).reshape(-1, size, size)


def window_partition(x: torch.Tensor, size: int) -> torch.Tensor:
    """The windows of ``window_numbers`` of a map, padded with zeros: (N, H, W, C) -> (N', size, size, C)."""
    rows = F.pad(x.flatten(0, 2), (0, 0, 1, 0))
    return F.embedding(window_numbers(x.shape[:3], size, x.device), rows)


def window_unpartition(windows: torch.Tensor, hw: tuple[int, int]) -> torch.Tensor:
    """Inverse of ``window_partition``: (windows, size, size, C) -> (N, H, W, C), the padding cropped.

    Args:
        hw: height and width of the map before it was cut.
    """
    (height, width), size = hw, windows.shape[1]
    rows, columns = _count(hw, size)
    numbers = torch.arange(windows.shape[:3].numel(), device=windows.device)
    numbers = numbers.view(-1, rows, columns, size, size).transpose(2, 3)
    numbers = numbers.reshape(-1, rows * size, columns * size)[:, :height, :width]
    return F.embedding(numbers, windows.flatten(0, 2))


def _count(hw: tuple[int, int], size: int) -> list[int]:
    """How many windows there are in each direction."""
    # No negative number is divided: ONNX rounds towards zero, and PyTorch compiles no such remainder.
    return [(side + size - 1) // size for side in hw]
