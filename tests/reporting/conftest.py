"""OUTPUT_DIRs as runs leave them, with detections whose faults are known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_clips
import tiny_run
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from nlnet_d2.data.datasets.ava_files import AvaTable, write_detections
from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.launches import noted
from nlnet_d2.evaluation.ava import DETECTIONS_FILE
from nlnet_d2.reporting.run_folder import COCO_RESULTS


def write_run(folder: Path, argv: list[str], metrics: list[dict]) -> None:
    """Config, random weights, metrics and launches of a run of this command line."""
    cfg = load_config(argument_parser().parse_args(argv))
    (folder / "inference").mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    with noted(str(folder)):
        pass


def faulty_detections(json_file: Path) -> list[dict]:
    """Of three images with two objects each: the first is right, the second confuses one class, the third
    misses one object and finds one that is not there."""
    truth = json.loads(json_file.read_text())["annotations"]
    found = [
        {key: thing[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for thing in truth
    ]
    found[2]["category_id"] = found[2]["category_id"] % 3 + 1
    found[4] |= {"bbox": [0.0, 0.0, 5.0, 4.0], "score": 0.8}
    return found


TIMES = {"lr": 0.01, "time": 0.2, "data_time": 0.1}
METRICS = [{"iteration": i, "total_loss": 2.0 - i / 10, "loss_cls": 1.0 - i / 20, **TIMES} for i in range(4)]


@pytest.fixture(scope="session")
def coco_run(tiny_data, tmp_path_factory):
    """OUTPUT_DIR of a run on ``tiny_data``."""
    folder = tmp_path_factory.mktemp("coco") / "a run"
    evaluated = [{"iteration": i, "bbox/AP": 10.0 * i, "bbox/AP-disc": float("nan")} for i in (2, 4)]
    write_run(folder, tiny_run.arguments(tiny_data, folder), METRICS + evaluated)
    results = faulty_detections(tiny_data / "val.json")
    (folder / "inference" / COCO_RESULTS).write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="session")
def ava_run(tiny_clips, tmp_path_factory):
    """OUTPUT_DIR of a run on ``tiny_clips``; the detections say of every annotated person what it does, and
    that it carries something."""
    folder = tmp_path_factory.mktemp("ava") / "clips"
    write_run(folder, clip_arguments(tiny_clips, folder), METRICS)
    names, seconds, boxes, scores = [], [], [], []
    for record in DatasetCatalog.get("tiny_clips_val"):
        people = record["annotated"]
        names += [record["video_id"]] * people.sum()
        seconds += [record["second"]] * people.sum()
        boxes.append(record["boxes"][people])
        scores.append(record["actions"][people] * 0.9)
    scores = np.concatenate(scores)
    scores[:, 6] = 0.7
    table = AvaTable.from_scores(names, seconds, np.concatenate(boxes), scores, list(range(1, 10)))
    write_detections(folder / "inference" / DETECTIONS_FILE, table)
    return folder


def clip_arguments(data: Path, output: Path) -> list[str]:
    return tiny_clips.arguments(
        data, output, "MODEL.CONTEXT.BLOCKS", "[{'NAME': 'NonLocal', 'AT': {'res4': [0]}}]"
    )


@pytest.fixture
def copy(tmp_path):
    """A function: folder -> a copy of it that may be changed."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))
