"""``launches.jsonl`` in OUTPUT_DIR: with which command and versions a run was started, and how it ended.

One JSON object per line, two for each start (a resumed run has several): ``started`` (ISO 8601, UTC),
``command``, ``processes``, ``device``, ``versions``; then ``ended``, ``seconds``, ``outcome``.
"""

import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch
from detectron2.utils import comm

FILE = "launches.jsonl"
PACKAGES = ("nlnet_d2", "detectron2", "torch", "torchvision", "numpy", "pycocotools", "faster-coco-eval")


@contextmanager
def noted(output_dir: str) -> Iterator[None]:
    """Note the start and the end of what runs within the context, in the main process."""
    if not comm.is_main_process():
        yield
        return
    path, start = Path(output_dir, FILE), time.monotonic()
    _append(path, {"started": _now(), **_circumstances()})
    outcome = "done"
    try:
        yield
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}".rstrip(": ")
        raise
    finally:
        _append(path, {"ended": _now(), "seconds": round(time.monotonic() - start, 1), "outcome": outcome})


def _circumstances() -> dict:
    cuda = torch.cuda.is_available()
    return {
        "command": f"{sys.argv[0]} {shlex.join(sys.argv[1:])}".rstrip(),
        "processes": comm.get_world_size(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "versions": {
            "Python": platform.python_version(),
            **_versions(),
            "CUDA": torch.version.cuda or "none",
        },
    }


def _versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # on the path, but not installed
            installed[package] = "not installed"
    return installed


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _append(path: Path, entry: dict) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
