"""Files of ``torch.save``, old and new: looked through with the restricted unpickler before torch sees them.

``torch.load(weights_only=True)`` alone has run code (CVE-2025-32434, torch <= 2.5.1), and trusts the sizes
that a file declares. The first look settles both: it follows the same pickle, builds nothing, refuses every
global that is not listed here, and compares each declared storage with the bytes that are there.
"""

import argparse
import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.plain_pickle import ADMITTED, PlainUnpickler

LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # begins a torch file of before version 1.6
DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class Storage:
    """A storage as declared: how many elements, and their size in bytes."""

    def __init__(self, numel: int, nbytes: int):
        self.numel, self.nbytes = numel, nbytes


class Placeholder:
    """What the first look puts in the place of a tensor or of any other harmless object."""

    def __init__(self, *_: Any):
        """Forget the arguments."""

    def __setstate__(self, _: Any) -> None:
        """Forget the state."""


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Placeholder:
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    numel = math.prod(size)
    inside = min((offset, *size, *stride)) >= 0 and (numel == 0 or last < storage.numel)
    if not inside or numel > storage.numel:
        raise CheckpointError(
            f"refused: a tensor of shape {list(size)} in a storage of {storage.numel} elements"
        )
    return Placeholder()


class TorchScanner(PlainUnpickler):
    """Follows the pickle of a torch file and collects the storages that it declares, by their key."""

    admitted = {
        **{name: value for name, value in ADMITTED.items() if name[0] in ("collections", "_codecs")},
        **{("torch", f"{name}Storage"): dtype for name, dtype in DTYPES.items()},
        **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in DTYPES.values()},
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): Placeholder,
        ("torch", "Size"): Placeholder,
        ("torch", "device"): Placeholder,
        ("collections", "Counter"): Placeholder,  # milestones of a schedule
        ("argparse", "Namespace"): Placeholder,  # the command line, in many training scripts
    }

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _location, numel = pid[:5]
        types = isinstance(dtype, torch.dtype) and isinstance(key, str) and isinstance(numel, int)
        if kind != "storage" or not types or numel < 0:
            raise CheckpointError("refused: an unknown kind of storage")
        storage = self.storages.setdefault(key, Storage(numel, numel * dtype.itemsize))
        if storage.nbytes != numel * dtype.itemsize:
            raise CheckpointError(f"refused: storage {key} is declared with two sizes")
        return storage


def _scan(file: BinaryIO) -> dict[str, Storage]:
    scanner = TorchScanner(file)
    scanner.load()
    return scanner.storages


def load_zip(path: Path, archive: zipfile.ZipFile) -> Any:
    """What a torch file of version 1.6 or later holds; ``archive`` is ``path``, opened."""
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.rsplit("/", 1)[-1] == "data.pkl"]
    if any(name.endswith("constants.pkl") for name in members):
        raise CheckpointError("refused: a TorchScript archive is a program, not weights")
    if len(pickles) != 1:
        raise CheckpointError("refused: a zip archive that is neither of torch.save nor of numpy.savez")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise CheckpointError("refused: torch.save compresses nothing, but this archive is compressed")
    root = pickles[0].removesuffix("data.pkl")
    for key, storage in _scan(io.BytesIO(archive.read(pickles[0]))).items():
        info = members.get(f"{root}data/{key}")
        found = info.file_size if info else 0
        if found < storage.nbytes:
            raise CheckpointError(f"refused: storage {key} declares {storage.nbytes} bytes and has {found}")
    return _load(path)


def load_legacy(path: Path) -> Any:
    """What a torch file of before version 1.6 holds: five pickles, then the storages."""
    content = path.read_bytes()
    file = io.BytesIO(content)
    # magic number, protocol, system, the object, keys of the storages
    storages = [storage for _ in range(5) for storage in _scan(file).values()]
    declared = sum(storage.nbytes for storage in storages)
    if declared > len(content):
        raise CheckpointError(f"refused: storages declare {declared} bytes, the file has {len(content)}")
    return _load(io.BytesIO(content))  # not the path: torch would also try it as a tar archive


def _load(file: Path | BinaryIO) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(file, map_location="cpu", weights_only=True)
