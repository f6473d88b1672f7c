"""Checkpoints of a training that survives a kill: written atomically, verified, resumed from a good one."""

import itertools
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

logger = logging.getLogger(__name__)

TEMPORARY = ".tmp"  # suffix of a file that is being written
PERIODIC = re.compile(r"model_\d{7,}\.pth")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, written or used; the message names the file and the remedy."""


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file that appears under its name only when it is complete and on the disk.

    A kill leaves at most ``path`` + ``.tmp``; an error leaves nothing.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)  # the rename itself is on the disk after this
    os.fsync(directory)
    os.close(directory)


def fault(path: Path) -> str | None:
    """Why ``path`` is no intact ``.pth`` file, or None if it is one.

    Reads the whole file: torch.load does not look at the checksums, and takes a flipped bit for a weight.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except OSError as error:
        return str(error)
    except zipfile.BadZipFile as error:
        return f"incomplete or damaged ({error})"
    return f"damaged (the checksum of {broken} is wrong)" if broken else None


class TrainingCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for the checkpoints of one training run: file names and ``last_checkpoint``
    are the stock ones.

    A checkpoint is complete or absent, holds only tensors and Python's plain types (it loads with
    ``weights_only=True``), and fits the model exactly or is refused. It reads no foreign weights:
    ``nlnet_d2.load_weights`` does that.

    Args:
        model, save_dir, checkpointables: as in Detectron2; save_dir is a local directory.
        tag_last: whether ``last_checkpoint`` follows what is saved; False for the best model, from which
            training must not resume.
    """

    def __init__(self, model: nn.Module, save_dir: str, *, tag_last: bool = True, **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.directory = Path(save_dir)
        self.tag_last = tag_last

    def save(self, name: str, **extra: Any) -> None:
        """Write ``name``.pth with the model, the checkpointables and ``extra``, and point to it.

        Raises:
            FloatingPointError: a parameter is not finite: such a checkpoint would end every later run.
            CheckpointError: the disk is full or fails; what was saved before is intact.
        """
        if not self.save_to_disk:
            return
        self._refuse_non_finite()
        state = {key: value.state_dict() for key, value in self.checkpointables.items()}
        path = self.directory / f"{name}.pth"
        logger.info("Saving checkpoint to %s", path)
        try:
            with atomic_write(path) as file:
                torch.save({"model": self.model.state_dict(), **state, **extra}, file)
                file.flush()
                if problem := fault(Path(file.name)):
                    raise OSError(problem)
            if self.tag_last:
                self.tag_last_checkpoint(path.name)
            self._warn_of_a_full_disk(path.stat().st_size)
        except (OSError, RuntimeError) as error:  # torch hides a full disk in a RuntimeError
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise CheckpointError(
                f"{path} cannot be written ({cause}); earlier checkpoints are intact"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Let ``last_checkpoint`` name a file of this directory."""
        with atomic_write(self.directory / "last_checkpoint", "w") as file:
            file.write(last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is anything to resume from."""
        return bool(self.candidates())

    def periodic(self) -> list[Path]:
        """The numbered checkpoints, from old to new."""
        return sorted(p for p in self.directory.glob("model_*.pth") if PERIODIC.fullmatch(p.name))

    def candidates(self) -> list[Path]:
        """Files to resume from, in the order to try: ``last_checkpoint``'s, then from new to old."""
        files = [*reversed(self.periodic()), self.directory / "model_final.pth"]
        tag = self.directory / "last_checkpoint"
        tagged = tag.read_text().strip() if tag.is_file() else ""
        if tagged:
            files.insert(0, self.directory / Path(tagged).name)
        return [path for path in dict.fromkeys(files) if path.is_file()]

    def keep(self, count: int) -> None:
        """Remove the numbered checkpoints but the last ``count``, and but the one that would be resumed."""
        in_use = self.candidates()[:1]
        for path in self.periodic()[:-count]:
            if path not in in_use:
                path.unlink()

    def set_aside(self) -> None:
        """Move the checkpoints of an earlier run out of the way of a new one, to ``earlier-1`` and so on.

        A new run that is killed before its first checkpoint would else be resumed from them.
        """
        if not self.save_to_disk:
            return
        folders = (self.directory / f"earlier-{i}" for i in itertools.count(1))
        folder = next(folder for folder in folders if not folder.exists())
        folder.mkdir()
        logger.warning("%s holds an earlier run: its checkpoints go to %s", self.directory, folder)
        for path in [*self.directory.glob("model_*.pth"), *self.directory.glob("last_checkpoint")]:
            path.rename(folder / path.name)

    def resume(self, checkpointables: list[str] | None = None) -> Path:
        """Load the newest good checkpoint of the directory, on all processes the same one.

        Args:
            checkpointables: names of those to load besides the model; None for all.

        Raises:
            CheckpointError: no file is good, or the file does not fit the model.
        """
        path, problem = comm.all_gather(self._newest_good() if comm.is_main_process() else None)[0]
        if problem:
            raise CheckpointError(problem)
        if not all(comm.all_gather(path.is_file())):
            raise CheckpointError(
                f"{path} is not visible to all processes: OUTPUT_DIR must be on a shared disk"
            )
        self.load(str(path), checkpointables)
        return path

    def remove_unfinished(self) -> None:
        """Remove what a killed process had begun to write (call it when a training run starts)."""
        for path in self.directory.glob("*" + TEMPORARY) if self.save_to_disk else ():
            logger.info("Removing %s, left unfinished by a run that was killed", path)
            path.unlink()

    def _newest_good(self) -> tuple[Path | None, str]:
        skipped = []
        for path in self.candidates():
            problem = fault(path)
            if problem is None:
                return path, ""
            logger.warning("Skipping checkpoint %s: %s", path, problem)
            skipped.append(f"{path.name}: {problem}")
        what = "; ".join(skipped) or "there is none"
        return (
            None,
            f"no checkpoint in {self.directory} can be resumed ({what}); start again without --resume",
        )

    def _warn_of_a_full_disk(self, size: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < 2 * size:
            left = f"{free / 1e9:.1f} GB are left, a checkpoint takes {size / 1e9:.1f} GB"
            logger.warning("The disk of %s is nearly full: %s", self.directory, left)

    def _refuse_non_finite(self) -> None:
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise FloatingPointError(f"{name} is not finite: not saved, earlier checkpoints are intact")

    def _load_file(self, filename: str) -> dict:
        return torch.load(filename, map_location="cpu", weights_only=True)

    def _log_incompatible_keys(self, incompatible) -> None:
        reshaped = [name for name, *_ in incompatible.incorrect_shapes]
        wrong = {
            "missing": [name for name in incompatible.missing_keys if name not in reshaped],
            "unexpected": incompatible.unexpected_keys,
            "of another shape": reshaped,
        }
        wrong = [f"{len(names)} {kind} ({names[0]}, ...)" for kind, names in wrong.items() if names]
        if wrong:
            raise CheckpointError(
                f"the checkpoint in {self.directory} is not of this model: {', '.join(wrong)}. Resume with "
                "the config of that run (config.yaml), or start from its weights with MODEL.WEIGHTS"
            )
