"""Folders of drawn data sets: complete or not there at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

from iopath.common.file_io import file_lock


def draw_once(folder: Path, draw: Callable[[Path], None]) -> Path:
    """``draw`` into an empty folder that becomes ``folder`` when done; nothing to do if that exists.

    Several processes may ask for it at once; one of them draws, the others wait.
    """
    folder = folder.absolute()
    with file_lock(str(folder)):
        if not folder.exists():
            unfinished = folder.with_name(folder.name + ".partial")  # a killed process may have left one
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            draw(unfinished)
            unfinished.rename(folder)
    return folder
