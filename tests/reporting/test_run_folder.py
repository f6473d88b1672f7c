"""What is read from an OUTPUT_DIR."""

import json

import pytest

from nlnet_d2.data.errors import DataError
from nlnet_d2.reporting.run_folder import COCO_RESULTS, read_run


def test_a_run(coco_run):
    run = read_run(coco_run)
    assert run.series("total_loss") == ([1, 2, 3, 4], [2.0, 1.9, 1.8, 1.7])
    assert run.series("bbox/AP") == ([3, 4], [20.0, 40.0])  # the second after the end
    assert run.series("absent") == ([], [])
    assert run.weights() == coco_run / "model_final.pth"
    assert run.detections("tiny_val", COCO_RESULTS).is_file()
    assert run.detections("tiny_val", "other.json") is None
    assert [set(launch) & {"started", "ended"} for launch in run.launches] == [{"started"}, {"ended"}]


def test_iterations_of_an_evaluation_between_lines_of_losses(coco_run, copy):
    folder = copy(coco_run)
    rows = [{"iteration": 19, "total_loss": 1.0}, {"iteration": 29, "bbox/AP": 5.0}]
    rows += [{"iteration": 39, "total_loss": 1.0}, {"iteration": 40, "bbox/AP": 6.0}]
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_run(folder).series("bbox/AP") == ([30, 40], [5.0, 6.0])


def test_a_resumed_run_counts_once(coco_run, copy):
    """What a killed run wrote after its last checkpoint is written again by the one that resumes it."""
    folder = copy(coco_run)
    with (folder / "metrics.json").open("a") as file:
        file.write(json.dumps({"iteration": 3, "total_loss": 7.0}) + "\n")
    assert read_run(folder).series("total_loss") == ([1, 2, 3, 4], [2.0, 1.9, 1.8, 7.0])


def test_a_line_cut_off_by_a_kill(coco_run, copy, caplog):
    folder = copy(coco_run)
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 9, "total_l')
    assert len(read_run(folder).metrics) == 5
    assert "the last line is cut off" in caplog.text


def test_a_damaged_line_is_named(coco_run, copy):
    folder = copy(coco_run)
    lines = (folder / "metrics.json").read_text().splitlines()
    (folder / "metrics.json").write_text("\n".join([lines[0], "{oops", *lines[1:]]))
    with pytest.raises(DataError, match=r"metrics.json:2: expected JSON"):
        read_run(folder)


def test_no_run(tmp_path):
    with pytest.raises(DataError, match=r"there is no config.yaml"):
        read_run(tmp_path)


def test_the_best_weights_that_there_are(coco_run, copy):
    folder = copy(coco_run)
    (folder / "model_final.pth").rename(folder / "model_0000001.pth")
    assert read_run(folder).weights() is None
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    assert read_run(folder).weights() == folder / "model_0000001.pth"


def test_a_config_of_a_gpu_is_read_without_one(coco_run, copy):
    folder = copy(coco_run)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("DEVICE: cpu", "DEVICE: cuda"))
    assert read_run(folder).cfg.MODEL.DEVICE in ("cpu", "cuda")
