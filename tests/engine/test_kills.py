"""SIGKILL at many points, also within a save: the resumed run ends as one that was never killed."""

import random
import signal
import subprocess
import sys

import pytest
from test_resume import assert_same_state
from tiny_run import PATIENCE, arguments, environment

OPTIONS = {"SOLVER.MAX_ITER": "9", "SOLVER.CHECKPOINT_PERIOD": "2", "DATASETS.TEST": "[]"}
EMA = {"SOLVER.EMA.ENABLED": "True", "SOLVER.EMA.DECAY": "0.5"}
# By number of processes: (point, rank) of each kill. Two: half of the first checkpoint is written; the other
# process begins its fourth iteration; the name of the second checkpoint is about to become the last.
KILLS = {
    1: [(point, 0) for point in (5, 19, 3, 9, 4, 16, 15)],
    2: [(7, 0), (4, 1), (12, 0)],
}
# Counts down at every step of an iteration and of a save; at 0 the process of the given rank kills itself.
SCRIPT = """
import io, os, signal, sys
import torch
from detectron2.utils import comm
from nlnet_d2.engine.run import main
from nlnet_d2.engine.step import TrainStep

left, victim, log = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def point(kind):
    global left
    left -= comm.get_rank() == victim
    if left == 0 and comm.get_rank() == victim:
        with open(log, "a") as file:
            file.write(kind + "\\n")
        os.kill(os.getpid(), signal.SIGKILL)


def counted(kind, function):
    def call(*args, **kwargs):
        point(kind)
        return function(*args, **kwargs)

    return call


def half_then_whole(data, file):
    buffer = io.BytesIO()
    save(data, buffer)
    content = buffer.getvalue()
    file.write(content[: len(content) // 2])
    file.flush()
    point("half a file")
    file.write(content[len(content) // 2 :])


save, torch.save = torch.save, half_then_whole
os.fsync, os.replace = counted("fsync", os.fsync), counted("rename", os.replace)
TrainStep.run_step = counted("iteration", TrainStep.run_step)
if __name__ == "__main__":
    sys.exit(main(sys.argv[4:]))
"""


def run(script, log, command, point=0, victim=0):
    words = [sys.executable, script, str(point), str(victim), log, *command]
    return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_again_and_again(tiny_data, tmp_path, processes):
    script, log = tmp_path / "run.py", tmp_path / "kills"
    script.write_text(SCRIPT)
    words = [word for pair in (OPTIONS | EMA).items() for word in pair]

    def command(name, *flags):
        if processes > 1:
            flags += ("--num-gpus", str(processes), "--dist-url", f"file://{tmp_path}/{random.random()}")
        return arguments(tiny_data, tmp_path / name, *words, "DATALOADER.NUM_WORKERS", "1", flags=flags)

    assert run(script, log, command("whole")).returncode == 0
    for kills, (point, victim) in enumerate(KILLS[processes], start=1):
        ended = run(script, log, command("killed", "--resume"), point, victim)
        assert ended.returncode != 0 and len(log.read_text().splitlines()) == kills, ended.stderr
        assert processes > 1 or ended.returncode == -signal.SIGKILL
    ended = run(script, log, command("killed", "--resume"))
    assert ended.returncode == 0, ended.stderr
    kinds = log.read_text().split("\n")
    assert {"iteration", "half a file", "rename"} <= set(kinds), kinds
    assert_same_state(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed").glob("*.tmp"))
