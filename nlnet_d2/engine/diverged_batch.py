"""The batch on which a training diverged, as a file to look at: ``torch.load(path, weights_only=True)``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from nlnet_d2.checkpoint.checkpointer import atomic_write


def write_batch(path: Path, batch: Sequence[Mapping]) -> None:
    """Write the samples of a batch as the model got them; structures become their tensors.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as file:
        torch.save(plain(batch), file)


def plain(value: Any) -> Any:
    """``value`` of tensors and Python's plain types only."""
    if isinstance(value, Instances):
        return {"image_size": tuple(value.image_size), **plain(value.get_fields())}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return torch.as_tensor(value)
    if isinstance(value, (torch.Tensor, str, int, float, type(None))):
        return value
    # Boxes, BitMasks and Keypoints have a tensor, PolygonMasks lists of arrays
    inside = getattr(value, "tensor", getattr(value, "polygons", None))
    return str(value) if inside is None else plain(inside)
