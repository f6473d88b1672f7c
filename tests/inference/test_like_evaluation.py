"""A prediction of the files that a data set is made of equals the evaluation on that data set."""

import csv
import json

import pytest
import tiny_clips as clips
import tiny_run as images

from nlnet_d2.engine.run import main as train_net
from nlnet_d2.evaluation.ava import DETECTIONS_FILE
from nlnet_d2.inference.command import main as demo


def rows_of(path) -> dict[tuple, float]:
    """(video, second, box, action) -> score."""
    with open(path, newline="") as file:
        return {tuple(row[:7]): float(row[7]) for row in csv.reader(file)}


def test_actions(tiny_clips, tmp_path, weights_of):
    """The frame rate and the classes come from the config that the run has left."""
    val = clips.motions_source(clips.PARAMETERS["val"], tiny_clips)
    weights = ("MODEL.WEIGHTS", weights_of(clips.CONFIG, "MODEL.ACTION_HEAD.NUM_CLASSES", "9"))
    assert train_net(clips.arguments(tiny_clips, tmp_path, *weights, flags=("--eval-only",))) == 0
    command = ["--config-file", str(tmp_path / "config.yaml"), "--boxes", val.boxes[0]]
    assert demo([*command, "--input", val.videos, "--output", str(tmp_path / "out"), *weights]) == 0
    evaluated = rows_of(tmp_path / "inference" / DETECTIONS_FILE)
    predicted = rows_of(tmp_path / "out" / "predictions.csv")
    assert len(evaluated) > 50 and set(evaluated) == set(predicted)
    assert all(predicted[key] == pytest.approx(score, abs=1e-5) for key, score in evaluated.items())
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".csv", ".mp4"}


def test_objects(tiny_data, tmp_path, weights_of):
    weights = ["MODEL.WEIGHTS", weights_of(images.CONFIG, "MODEL.ROI_HEADS.NUM_CLASSES", "3")]
    weights += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    assert train_net(images.arguments(tiny_data, tmp_path, *weights, flags=("--eval-only",))) == 0
    command = ["--config-file", str(tmp_path / "config.yaml"), "--batch-size", "1", "--input"]
    assert demo([*command, str(tiny_data / "val"), "--output", str(tmp_path / "out"), *weights]) == 0
    evaluated = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    predicted = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(evaluated) == len(predicted) > 10
    for one, other in zip(evaluated, predicted, strict=True):
        assert f"{one['image_id']:03d}.png" == other["file_name"]
        assert one["category_id"] == other["category_id"] and one["segmentation"] == other["segmentation"]
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
