"""Writing native weights: our names, tensors only, complete or absent."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from nlnet_d2.checkpoint.checkpointer import CheckpointError, atomic_write

SUFFIXES = (".safetensors", ".pth")


def write_weights(path: str | Path, state: Mapping[str, torch.Tensor], origin: str) -> None:
    """Write ``state`` to a ``.safetensors`` file, or to a ``.pth`` file as Detectron2's checkpoints are.

    Args:
        origin: where the weights come from, kept in the file as a note.

    Raises:
        CheckpointError: another suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: weights are written as {' or '.join(SUFFIXES)}")
    # Views would be saved with all of what they are a view of.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    try:
        with atomic_write(path) as file:
            if path.suffix == ".pth":
                torch.save({"model": state, "origin": origin}, file)
            else:
                file.write(safetensors.torch.save(state, metadata={"format": "pt", "origin": origin}))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
