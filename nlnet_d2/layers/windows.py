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
    height, width, channels = x.shape[1:]
    below, right = -height % size, -width % size
    if (below or right) and padding is None:
        x = F.pad(x, (0, 0, 0, right, 0, below))
    elif below or right:
        x = torch.cat((x, padding.expand(len(x), height, right, -1)), 2)
        x = torch.cat((x, padding.expand(len(x), below, width + right, -1)), 1)
    x = x.view(-1, (height + below) // size, size, (width + right) // size, size, channels)
    return x.transpose(2, 3).reshape(-1, size, size, channels)


def window_unpartition(windows: torch.Tensor, hw: tuple[int, int]) -> torch.Tensor:
    """Inverse of ``window_partition``: (windows, size, size, C) -> (N, H, W, C), the padding cropped.

    Args:
        hw: height and width of the map before it was cut.
    """
    (height, width), (size, channels) = hw, windows.shape[2:]
    # No negative number is divided: ONNX rounds towards zero.
    rows, columns = (height + size - 1) // size, (width + size - 1) // size
    x = windows.view(-1, rows, columns, size, size, channels).transpose(2, 3)
    return x.reshape(-1, rows * size, columns * size, channels)[:, :height, :width]
