"""The command line from end to end."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny_run import PATIENCE, TRAIN_NET, arguments, environment, train_net, write_tiny_data

from nlnet_d2.engine.run import main

QUIET = ("DATASETS.TEST", "[]")


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """OUTPUT_DIR of a run of two iterations with an evaluation, on data given by --dataset."""
    folder = tmp_path_factory.mktemp("trained")
    ended = train_net(*arguments(tiny_data, folder, "SOLVER.MAX_ITER", "2"))
    assert ended.returncode == 0, ended.stderr
    assert "copypaste: AP,AP50" in ended.stdout
    return folder


def test_training_leaves_the_stock_files(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.yaml",
        "log.txt",
        "metrics.json",
        "model_final.pth",
        "last_checkpoint",
        "inference",
    }
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (trained / "inference" / "coco_instances_results.json").exists()
    rows = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert any("total_loss" in row and "lr" in row for row in rows) and any("segm/AP" in row for row in rows)


def test_resume_and_evaluate(trained, tiny_data, tmp_path):
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    ended = train_net(*arguments(tiny_data, tmp_path, *QUIET, "SOLVER.MAX_ITER", "4", flags=("--resume",)))
    assert ended.returncode == 0, ended.stderr
    assert "at iteration 2 of 4" in ended.stdout
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert content["iteration"] == 3 and content["trainer"]["_trainer"]["optimizer"]["state"]
    weights = str(tmp_path / "model_final.pth")
    ended = train_net(*arguments(tiny_data, tmp_path / "e", "MODEL.WEIGHTS", weights, flags=("--eval-only",)))
    assert ended.returncode == 0, ended.stderr
    assert "copypaste: Task: segm" in ended.stdout
    assert not list((tmp_path / "e").glob("*.pth"))


def test_evaluation_of_the_last_checkpoint(trained, tiny_data, capsys):
    assert main(arguments(tiny_data, trained, flags=("--eval-only", "--resume"))) == 0
    assert "copypaste: Task: bbox" in capsys.readouterr().out


def test_resuming_a_finished_run_evaluates_it(trained, tiny_data, capsys):
    assert main(arguments(tiny_data, trained, "SOLVER.MAX_ITER", "2", flags=("--resume",))) == 0
    assert "copypaste: Task: bbox" in capsys.readouterr().out
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_to_all_processes_of_the_run(tiny_data, tmp_path, processes):
    """As a cluster or a terminal sends it: to the loader's workers too."""
    options = (*QUIET, "SOLVER.MAX_ITER", "100000", "DATALOADER.NUM_WORKERS", "2")
    flags = ("--num-gpus", str(processes), "--dist-url", f"file://{tmp_path}/rendezvous")
    command = [sys.executable, str(TRAIN_NET), *arguments(tiny_data, tmp_path, *options, flags=flags)]
    run = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while not (tmp_path / "last_checkpoint").exists() and run.poll() is None:
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGTERM)
        output, _ = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert run.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: stopping after this iteration" in output
    name = (tmp_path / "last_checkpoint").read_text()
    assert f"Saved after iteration {int(name[6:13])}; continue with --resume" in output


KILLED_IN_SAVE = """
import os, signal, sys
import torch
from nlnet_d2.engine.run import main

save = torch.save

def die_at_half(data, file):
    save(data, file)
    if data["iteration"] == 3:
        file.truncate(file.tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = die_at_half
main({arguments!r})
"""


def test_kill_in_the_middle_of_a_save(tiny_data, tmp_path, capsys):
    script = KILLED_IN_SAVE.format(arguments=arguments(tiny_data, tmp_path, *QUIET))
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, timeout=PATIENCE
    )
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "model_0000003.pth.tmp").exists()
    assert main(arguments(tiny_data, tmp_path, *QUIET, flags=("--resume",))) == 0
    output = capsys.readouterr().out
    assert "model_0000003.pth.tmp, left unfinished" in output
    assert "Resuming from" in output and "at iteration 2 of 4" in output


def test_exit_codes(tiny_data, tmp_path, capsys):
    def code(*options, flags=()):
        return main(arguments(tiny_data, tmp_path, *QUIET, *options, flags=flags))

    assert code("MODEL.WEIGHT", "x") == 2
    assert code("MODEL.CONTEXT.BLOCKS", "[{'NAME': 'NonLocal', 'AT': {'res4': [9]}}]") == 2
    assert code("SOLVER.IMS_PER_BATCH", "0") == 2
    assert code("DATASETS.TRAIN", "[]") == 2
    assert code("MODEL.WEIGHTS", str(tmp_path / "nowhere.pth")) == 3
    assert code("DATASETS.TEST", "['tiny_val']", flags=("--eval-only",)) == 3
    assert code(flags=("--eval-only",)) == 2
    assert code("SOLVER.BASE_LR", "1e12") == 4
    messages = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    parts = (
        "did you mean MODEL.WEIGHTS",
        "MODEL.CONTEXT.BLOCKS",
        "SOLVER.IMS_PER_BATCH = 0",
        "DATASETS.TRAIN is empty",
        "nowhere.pth",
        "--eval-only needs weights",
        "DATASETS.TEST is empty",
        "learning rate 1e+12",
    )
    assert len(messages) == len(parts)
    for message, part in zip(messages, parts, strict=True):
        assert part in message


def test_wrong_flag_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--config-fil"])
    assert left.value.code == 2


def test_weights_that_match_nothing_stop_before_training(tiny_data, tmp_path, capsys):
    torch.save({"model": {"some.other.layer": torch.zeros(3)}}, tmp_path / "foreign.pth")
    weights = ("MODEL.WEIGHTS", str(tmp_path / "foreign.pth"))
    assert main(arguments(tiny_data, tmp_path, *QUIET, *weights)) == 3
    assert "foreign.pth" in capsys.readouterr().err
    assert not list(tmp_path.glob("model_*.pth"))


def test_bad_data_stop_before_training(tiny_data, tmp_path, capsys):
    json_file, images = write_tiny_data(tmp_path / "broken", images=3)
    content = json.loads(json_file.read_text())
    content["annotations"][1]["category_id"] = 77
    (images / "000.png").rename(tmp_path / "secret.png")
    content["images"][0]["file_name"] = "../secret.png"
    json_file.write_text(json.dumps(content))
    data = ("--dataset", "broken", str(json_file), str(images))
    options = (*QUIET, "DATASETS.TRAIN", "['broken']")
    assert main(arguments(tiny_data, tmp_path / "output", *options, flags=data)) == 3
    error = capsys.readouterr().err
    assert "broken.json" in error and "annotation 2" in error and "77" in error
    assert "../secret.png" in error and "a path in the image folder" in error
