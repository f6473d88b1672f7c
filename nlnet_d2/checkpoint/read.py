"""Reading a file of weights, of any container that is in use, as a dict of names to tensors.

No file can run code, and none makes the reader allocate more than a fixed multiple of its own size. The
container is recognised by its content: suffixes lie (PySlowFast's zoo has torch files and Caffe2 pickles
under the same ``.pkl``).
"""

import logging
import math
import mmap
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.plain_pickle import PickledArray, load_plain_pickle
from nlnet_d2.checkpoint.torch_file import LEGACY_MAGIC, load_legacy, load_zip

logger = logging.getLogger(__name__)

EXPANSION = 4  # a file may hold at most so many times its own size in tensors (it may be compressed)
SLACK = 1 << 20  # bytes, for tiny files
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Where training scripts keep the weights inside their checkpoint, in the order to look.
CONTAINERS = ("model_state", "state_dict", "model", "blobs")


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, on the CPU, under the names of its origin.

    Reads ``torch.save`` (both formats), pickles of numpy arrays (Caffe2, Detectron, Detectron2), ``.npz`` and
    safetensors; takes the weights out of a training checkpoint.

    Raises:
        CheckpointError: no such file, not one of these, damaged, or refused because it could run code or
            exhaust the memory; the message names the file and what was refused.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        tensors = select_tensors(_read(path), EXPANSION * size + SLACK)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: a folder; name the file of weights in it") from error
    except Exception as error:  # the parsers of five formats, on damaged input
        text = f"{path}: truncated, damaged or of an unknown format ({type(error).__name__}: {error})"
        raise CheckpointError(text) from error
    logger.info("Read %d tensors from %s", len(tensors), path)
    return tensors


def _read(path: Path) -> Any:
    with open(path, "rb") as file:
        head = file.read(len(LEGACY_MAGIC))
        if head.startswith(b"PK\x03\x04"):
            return _read_archive(path)
        if head[8:9] == b"{":
            return load_file(path)
        if head == LEGACY_MAGIC:
            return load_legacy(path)
        if not head or head.startswith((b"<", b"version ", b"\x1f\x8b", b"GIF", b"\x89PNG")):
            raise CheckpointError(f"no weights: the file begins with {head!r}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return load_plain_pickle(content)


def _read_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        _check_archive(archive, path.stat().st_size)
        if all(name.endswith(".npy") for name in archive.namelist()):
            _check_npz(archive)
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        return load_zip(path, archive)


def _check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse what is harmful in an archive before anything is read from it, then what is damaged."""
    members = archive.infolist()
    names = {info.filename.lower() for info in members}
    if len(names) != len(members):
        raise CheckpointError("refused: two members of the archive have the same name")
    for info in members:
        parts = PurePosixPath(info.filename.replace("\\", "/")).parts
        if ".." in parts or info.filename.startswith(("/", "\\")) or ":" in info.filename:
            raise CheckpointError(f"refused: the path {info.filename!r} in the archive leads outside it")
    unpacked = sum(info.file_size for info in members)
    if unpacked > EXPANSION * size + SLACK:
        raise CheckpointError(f"refused: an archive of {size} bytes that unpacks to {unpacked}")
    if broken := archive.testzip():  # torch.load would take a flipped bit for a weight
        raise CheckpointError(f"damaged: the checksum of {broken} is wrong")


def _check_npz(archive: zipfile.ZipFile) -> None:
    """Refuse an array that declares another size than its member has: numpy would allocate it first."""
    for info in archive.infolist():
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            shape, _, dtype = NPY_HEADERS[version](member)
            declared = dtype.itemsize * math.prod(shape)
            if declared != info.file_size - member.tell():
                raise CheckpointError(f"refused: {info.filename} declares {declared} bytes, and has others")


def select_tensors(content: Any, limit: int | None = None) -> dict[str, torch.Tensor]:
    """The weights in what a file held, or in a mapping of names to tensors or arrays.

    Takes them out of the usual containers and strips the ``module.`` of DistributedDataParallel. Numbers and
    strings beside the weights are left out.

    Raises:
        CheckpointError: no tensors, other things among the weights, or more than ``limit`` bytes of them.
    """
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"no weights: a {type(content).__name__} instead of names and tensors")
    found = {
        name: value for name, value in content.items() if not isinstance(value, (int, float, str, type(None)))
    }
    for name, value in found.items():
        if not isinstance(name, str):
            raise CheckpointError(f"no weights: a {type(name).__name__} in the place of a name")
        if not isinstance(value, (torch.Tensor, np.ndarray, PickledArray)):
            raise CheckpointError(f"no weights: {name[:80]!r} is a {type(value).__name__}, not a tensor")
    if limit is not None and sum(value.nbytes for value in found.values()) > limit:
        raise CheckpointError(f"refused: its tensors take more than {limit} bytes")
    if not found:
        raise CheckpointError("no weights: it holds no tensors")
    prefix = "module." if all(name.startswith("module.") for name in found) else ""
    return {name.removeprefix(prefix): _as_tensor(value) for name, value in found.items()}


def _as_tensor(value: torch.Tensor | np.ndarray | PickledArray) -> torch.Tensor:
    if isinstance(value, PickledArray):
        value = value.build()
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value.detach()
