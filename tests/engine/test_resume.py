"""A run that is killed and resumed gives, bit for bit, the weights of one that is not."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from tiny_run import PATIENCE, TORCHRUN, arguments, environment, train_net

from nlnet_d2.engine.loader import ReadError, SeededSamples
from nlnet_d2.engine.run import main
from nlnet_d2.engine.step import TrainStep

OPTIONS = ("SOLVER.MAX_ITER", "7", "SOLVER.CHECKPOINT_PERIOD", "3", "DATASETS.TEST", "[]")


# A child process imports the script again, so the patch holds there too.
KILLER = """
import os, signal, sys
from detectron2.utils import comm
from nlnet_d2.engine.run import main
from nlnet_d2.engine.step import TrainStep

stock = TrainStep.run_step

def run_step(self):
    if self.iter == 5 and comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    stock(self)

TrainStep.run_step = run_step
if __name__ == "__main__":
    sys.exit(main({arguments!r}))
"""


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


def tensors(tree, prefix=""):
    """All tensors of nested dicts and lists, by path."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = {prefix: tree} if isinstance(tree, torch.Tensor) else {}
    for key, value in items:
        found |= tensors(value, f"{prefix}/{key}")
    return found


def final_state(folder):
    return tensors(torch.load(folder / "model_final.pth", weights_only=True))


def assert_same_state(folder, reference):
    left, right = final_state(folder), final_state(reference)
    assert left.keys() == right.keys()
    assert any("momentum_buffer" in key for key in left)
    different = [key for key in left if not torch.equal(left[key], right[key])]
    assert not different


@pytest.fixture(scope="module")
def uninterrupted(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert main(arguments(tiny_data, folder, *OPTIONS)) == 0
    return folder


def kill_at(monkeypatch, iteration):
    stock = TrainStep.run_step

    def run_step(self):
        if self.iter == iteration:
            raise Killed
        stock(self)

    monkeypatch.setattr(TrainStep, "run_step", run_step)


@pytest.mark.parametrize(("iteration", "workers"), [(4, (0, 0)), (3, (0, 2)), (6, (2, 0))])
def test_resume_is_exact(tiny_data, tmp_path, uninterrupted, monkeypatch, iteration, workers):
    before, after = (("DATALOADER.NUM_WORKERS", str(n)) for n in workers)
    with monkeypatch.context() as patch:
        kill_at(patch, iteration)
        with pytest.raises(Killed):
            main(arguments(tiny_data, tmp_path, *OPTIONS, *before))
    assert not (tmp_path / "model_final.pth").exists()
    assert main(arguments(tiny_data, tmp_path, *OPTIONS, *after, flags=("--resume",))) == 0
    assert_same_state(tmp_path, uninterrupted)


def test_resume_from_the_checkpoint_before_a_damaged_one_is_exact(
    tiny_data, tmp_path, uninterrupted, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        kill_at(patch, 6)
        with pytest.raises(Killed):
            main(arguments(tiny_data, tmp_path, *OPTIONS))
    newest = tmp_path / "model_0000005.pth"
    assert (tmp_path / "last_checkpoint").read_text() == newest.name
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert main(arguments(tiny_data, tmp_path, *OPTIONS, flags=("--resume",))) == 0
    output = capsys.readouterr().out
    assert (
        f"Skipping checkpoint {newest}: incomplete or damaged (File is" in output
        and "at iteration 3 of 7" in output
    )
    assert_same_state(tmp_path, uninterrupted)
    for path in tmp_path.glob("model_*.pth"):
        path.write_bytes(path.read_bytes()[:1000])
    assert main(arguments(tiny_data, tmp_path, *OPTIONS, flags=("--resume",))) == 3
    assert "can be resumed (model_final.pth: " in capsys.readouterr().err


def test_a_run_without_a_good_checkpoint_does_not_begin_anew(tiny_data, tmp_path, capsys):
    for iteration in (2, 5):
        (tmp_path / f"model_000000{iteration}.pth").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    assert main(arguments(tiny_data, tmp_path, *OPTIONS, flags=("--resume",))) == 3
    message = capsys.readouterr().err
    assert re.search("model_0000005.pth: .*; model_0000002.pth: .* again without --resume", message)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000005.pth"


def test_average_parts_and_precision_resume_exactly(tiny_data, tmp_path, monkeypatch):
    """With SOLVER.EMA, ACCUMULATE and AMP; model_ema.pth is that of the uninterrupted run too."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = (*OPTIONS, "SOLVER.EMA.ENABLED", "True", "SOLVER.EMA.DECAY", "0.9")
    options += ("SOLVER.ACCUMULATE", "2", "SOLVER.AMP.ENABLED", "True")
    assert main(arguments(tiny_data, whole, *options)) == 0
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            main(arguments(tiny_data, resumed, *options))
    assert main(arguments(tiny_data, resumed, *options, flags=("--resume",))) == 0
    assert_same_state(resumed, whole)
    averages = [
        torch.load(folder / "model_ema.pth", weights_only=True)["model"] for folder in (whole, resumed)
    ]
    final = final_state(whole)
    for name, value in averages[0].items():
        assert torch.equal(value, averages[1][name])
        assert torch.equal(value, final[f"/trainer/hooks/AverageWeights/module.{name}"])


@pytest.mark.parametrize("how", ["killed", "unreadable"])
def test_a_failing_loader_process_costs_no_iteration(
    tiny_data, tmp_path, uninterrupted, monkeypatch, capsys, how
):
    """It reads ahead; what the samples before it gave is trained and saved."""
    stock = SeededSamples.__getitem__

    def read(self, item):
        if item[0] == 9 and how == "killed":  # in the fifth or sixth batch of two
            os.kill(os.getpid(), signal.SIGKILL)
        if item[0] == 9:
            raise ReadError("training sample 3, 003.png, cannot be read: it is truncated")
        return stock(self, item)

    options = (*OPTIONS, "SOLVER.CHECKPOINT_PERIOD", "100", "DATALOADER.NUM_WORKERS", "1")
    with monkeypatch.context() as patch:
        patch.setattr(SeededSamples, "__getitem__", read)
        assert main(arguments(tiny_data, tmp_path, *options)) == 3
    message = capsys.readouterr().err
    if how == "unreadable":
        assert "003.png, cannot be read" in message
    else:
        assert "error: a process that loads data was killed" in message
        assert re.search(r"one of these samples:\n  \d+, .*/train/\d{3}\.png\n", message)
    iteration = int((tmp_path / "last_checkpoint").read_text()[6:13])
    assert 2 <= iteration <= 5
    assert main(arguments(tiny_data, tmp_path, *options, flags=("--resume",))) == 0
    assert f"at iteration {iteration + 1} of 7" in capsys.readouterr().out
    assert_same_state(tmp_path, uninterrupted)


def test_a_seed_drawn_at_random_survives(tiny_data, tmp_path, monkeypatch):
    """With SEED -1 the uninterrupted run cannot be repeated, but its seed is in the checkpoint."""
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            main(arguments(tiny_data, tmp_path, *OPTIONS, "SEED", "-1"))
    first = torch.load(tmp_path / "model_0000002.pth", weights_only=True)["trainer"]["seed"]
    assert main(arguments(tiny_data, tmp_path, *OPTIONS, "SEED", "-1", flags=("--resume",))) == 0
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["trainer"]["seed"] == first


def test_two_processes_resume_exactly(tiny_data, tmp_path):
    """Two gloo processes, one of which gets SIGKILL in the middle: by Detectron2's flags, and by torchrun."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    ended = train_net(*arguments(tiny_data, whole, *OPTIONS), launcher=TORCHRUN)
    assert ended.returncode == 0, ended.stderr
    flags = ("--num-gpus", "2", "--dist-url", f"file://{tmp_path}/rendezvous")
    script = tmp_path / "killed.py"
    script.write_text(KILLER.format(arguments=arguments(tiny_data, resumed, *OPTIONS, flags=flags)))
    assert subprocess.run([sys.executable, script], env=environment(), timeout=PATIENCE).returncode != 0
    assert (resumed / "last_checkpoint").read_text() == "model_0000002.pth"
    ended = train_net(*arguments(tiny_data, resumed, *OPTIONS, flags=("--resume",)), launcher=TORCHRUN)
    assert ended.returncode == 0, ended.stderr
    assert "Resuming from" in ended.stdout
    assert_same_state(resumed, whole)
