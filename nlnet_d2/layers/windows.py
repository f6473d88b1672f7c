"""Square, non-overlapping windows of a channels-last map (arXiv 2103.14030, 2203.16527)."""

import torch
from torch.nn import functional as F


def window_partition(x: torch.Tensor, size: int, padding: torch.Tensor | None = None) -> torch.Tensor:
    """Cut a map into windows, row by row; where they do not fit, the map is padded at the right and bottom.

    Args:
        x: (N, H, W, C).
        size: side of a window.
        padding: (C,), what the added positions hold; None for zeros.

    Returns:
        (N * ceil(H / size) * ceil(W / size), size, size, C)
    """
    count, height, width, channels = x.shape
    below, right = -height % size, -width % size
    if below or right:
        # Gathered out of the padding, row 0, and all positions: half as many passes as to pad, then to cut.
        padding = x.new_zeros(channels) if padding is None else padding
        rows = torch.cat((padding[None], x.flatten(0, 2)))
        numbers = torch.arange(1, count * height * width + 1, device=x.device).view(count, height, width, 1)
        numbers = window_partition(F.pad(numbers, (0, 0, 0, right, 0, below)), size)
        return F.embedding(numbers.squeeze(3), rows)
    x = x.view(-1, height // size, size, width // size, size, channels)
    return x.transpose(2, 3).reshape(-1, size, size, channels)


def window_unpartition(windows: torch.Tensor, hw: tuple[int, int]) -> torch.Tensor:
    """Inverse of ``window_partition``: (windows, size, size, C) -> (N, H, W, C), the padding cropped.

    Args:
        hw: height and width of the map before it was cut.
    """
    (height, width), size = hw, windows.shape[1]
    # No negative number is divided: ONNX rounds towards zero.
    rows, columns = (height + size - 1) // size, (width + size - 1) // size
    numbers = torch.arange(windows.shape[:3].numel(), device=windows.device)
    numbers = numbers.view(-1, rows, columns, size, size).transpose(2, 3)
    numbers = numbers.reshape(-1, rows * size, columns * size)[:, :height, :width]
    return F.embedding(numbers, windows.flatten(0, 2))
