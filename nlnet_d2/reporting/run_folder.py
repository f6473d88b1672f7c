"""What a training or evaluation left in its OUTPUT_DIR."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode

from nlnet_d2.data.errors import DataError
from nlnet_d2.engine import launches
from nlnet_d2.inference.config import predict_config

logger = logging.getLogger(__name__)

CONFIG, METRICS, INFERENCE = "config.yaml", "metrics.json", "inference"
COCO_RESULTS = "coco_instances_results.json"
WEIGHTS = ("model_final.pth", "model_best.pth", "last_checkpoint")


@dataclass(frozen=True)
class RunFolder:
    """An OUTPUT_DIR.

    Attributes:
        path: the folder.
        cfg: its config; without data sets where their files are not there.
        metrics: rows of metrics.json by ``iteration``, ascending, each iteration once.
        launches: lines of launches.jsonl.
    """

    path: Path
    cfg: CfgNode
    metrics: list[dict]
    launches: list[dict]

    def detections(self, dataset_name: str, file: str) -> Path | None:
        """The file with the detections of a data set, if there is one."""
        several = len(self.cfg.DATASETS.TEST) > 1
        path = self.path / INFERENCE / (dataset_name if several else "") / file
        return path if path.is_file() else None

    def weights(self) -> Path | None:
        """The final checkpoint, or else the best or last one, if there is one."""
        for name in WEIGHTS:
            path = self.path / name
            if name == "last_checkpoint" and path.is_file():
                path = self.path / Path(path.read_text().strip()).name
            if path.is_file():
                return path
        return None

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """How many iterations were done, and the value of a metric then; both empty if it was not written."""
        rows = [row for row in self.metrics if name in row]
        return [self.iterations_done(row) for row in rows], [row[name] for row in rows]

    def iterations_done(self, row: dict) -> int:
        """How many iterations were done when a row of ``metrics`` was written.

        They are numbered from 0, and an evaluation after the last one has the next number.
        """
        trained = [other["iteration"] for other in self.metrics if "total_loss" in other]
        return min(row["iteration"], max(trained, default=row["iteration"])) + 1


def read_run(folder: str | Path) -> RunFolder:
    """Read an OUTPUT_DIR.

    Raises:
        DataError: it is none, or its files are malformed.
    """
    folder = Path(folder)
    config = folder / CONFIG
    if not config.is_file():
        raise DataError(
            f"{folder}: expected the OUTPUT_DIR of a run, but there is no {CONFIG}; correct the path"
        )
    rows = {}
    for row in _json_lines(folder / METRICS):
        rows[row["iteration"]] = rows.get(row["iteration"], {}) | row  # a resumed run repeats some
    return RunFolder(
        path=folder,
        cfg=predict_config(str(config), device_options()),
        metrics=[rows[iteration] for iteration in sorted(rows)],
        launches=list(_json_lines(folder / launches.FILE)),
    )


def device_options() -> list[str]:
    """Config options that bring a run which was trained on a GPU to the CPU, where there is no GPU."""
    return [] if torch.cuda.is_available() else ["MODEL.DEVICE", "cpu"]


def _json_lines(path: Path) -> Iterator[dict]:
    """The objects of a file of JSON lines; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise DataError(f"{path}:{number}: expected JSON, got {error}; remove the line") from error
            logger.warning("%s: the last line is cut off, as by a kill; it is left out", path)
