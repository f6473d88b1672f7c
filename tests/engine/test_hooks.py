"""Signals, full disks, the best model and old checkpoints, in runs of a tiny model."""

import errno
import os
import signal

import pytest
import torch
from tiny_run import arguments

from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.run import main
from nlnet_d2.engine.step import TrainStep
from nlnet_d2.engine.trainer import Trainer

QUIET = ("DATASETS.TEST", "[]", "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "100")


def iteration_of(path):
    return torch.load(path, weights_only=True)["trainer"]["iteration"]


def files_of(folder):
    return sorted(path.name for path in folder.glob("model_*.pth"))


@pytest.fixture
def disk_full(monkeypatch):
    """Let checkpoints of these iterations meet a full disk, after half of the file."""

    def arrange(*iterations):
        stock = torch.save

        def save(data, file):
            stock(data, file)
            if data["iteration"] in iterations:
                file.truncate(file.tell() // 2)
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(torch, "save", save)

    return arrange


@pytest.fixture
def signal_at(monkeypatch):
    """Send this process a signal in the middle of an iteration."""

    def arrange(number, iteration):
        stock = TrainStep.run_step

        def run_step(self):
            if self.iter == iteration:
                os.kill(os.getpid(), number)
            stock(self)

        monkeypatch.setattr(TrainStep, "run_step", run_step)

    return arrange


def test_sigterm_ends_the_iteration_and_saves(tiny_data, tmp_path, signal_at, capsys):
    signal_at(signal.SIGTERM, 3)
    with pytest.raises(SystemExit) as left:
        main(arguments(tiny_data, tmp_path, *QUIET))
    assert left.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert iteration_of(tmp_path / "model_0000003.pth") == 3
    assert "Saved after iteration 3; continue with --resume" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigusr1_saves_too(tiny_data, tmp_path, signal_at):
    """What Slurm sends before the time is up, with --signal=USR1@120."""
    signal_at(signal.SIGUSR1, 2)
    with pytest.raises(SystemExit) as left:
        main(arguments(tiny_data, tmp_path, *QUIET))
    assert left.value.code == 128 + signal.SIGUSR1
    assert iteration_of(tmp_path / "model_0000002.pth") == 2


def test_ctrl_c_gives_130(tiny_data, tmp_path, signal_at):
    signal_at(signal.SIGINT, 2)
    assert main(arguments(tiny_data, tmp_path, *QUIET)) == 128 + signal.SIGINT
    assert (tmp_path / "model_0000002.pth").exists()


def test_signal_in_the_last_iteration_leaves_out_the_evaluation(tiny_data, tmp_path, signal_at, monkeypatch):
    monkeypatch.setattr(Trainer, "test", lambda *_: pytest.fail("evaluated after SIGTERM"))
    signal_at(signal.SIGTERM, 5)
    with pytest.raises(SystemExit) as left:
        main(arguments(tiny_data, tmp_path, *QUIET))
    assert left.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_signal_in_an_evaluation_saves_the_iteration_before(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "test", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        main(arguments(tiny_data, tmp_path, *QUIET, "TEST.EVAL_PERIOD", "2"))
    assert left.value.code == 128 + signal.SIGTERM
    assert iteration_of(tmp_path / "model_0000001.pth") == 1


def test_best_model_is_kept_also_over_a_resume(tiny_data, tmp_path, monkeypatch, signal_at):
    metrics = iter([10.0, 30.0, 20.0, 25.0, 5.0])
    monkeypatch.setattr(Trainer, "test", lambda *_: {"bbox": {"AP": next(metrics)}})
    options = (
        *QUIET,
        "DATASETS.TEST",
        "['tiny_val']",
        "TEST.EVAL_PERIOD",
        "1",
        "SOLVER.CHECKPOINT_PERIOD",
        "1",
    )
    signal_at(signal.SIGTERM, 2)
    with pytest.raises(SystemExit):
        main(arguments(tiny_data, tmp_path, *options))
    best, second = (
        torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("model_best", "model_0000001")
    )
    assert best["iteration"] == 1
    assert all(torch.equal(value, second["model"][name]) for name, value in best["model"].items())
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "test", lambda *_: {"bbox": {"AP": next(metrics)}})
    assert main(arguments(tiny_data, tmp_path, *options, flags=("--resume",))) == 0
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 1
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_old_checkpoints_are_removed_also_those_of_before_a_resume(tiny_data, tmp_path):
    options = ("DATASETS.TEST", "[]", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINTS_TO_KEEP", "2")
    main(arguments(tiny_data, tmp_path, *options, "SOLVER.MAX_ITER", "3"))
    main(arguments(tiny_data, tmp_path, *options, "SOLVER.MAX_ITER", "4", flags=("--resume",)))
    numbered = sorted(path.name for path in tmp_path.glob("model_0*.pth"))
    assert numbered == ["model_0000002.pth", "model_0000003.pth"]


def test_a_disk_that_is_full_for_a_while_does_not_end_the_training(tiny_data, tmp_path, disk_full, capsys):
    options = (*QUIET[:4], "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINTS_TO_KEEP", "2")
    disk_full(1, 2, 4)
    assert main(arguments(tiny_data, tmp_path, *options, "SOLVER.EMA.ENABLED", "True")) == 0
    kept = ["model_0000003.pth", "model_0000005.pth", "model_ema.pth", "model_final.pth"]
    assert files_of(tmp_path) == kept
    output = capsys.readouterr().out
    for text in ("model_0000002.pth cannot be written", "No space left", "training goes on, 2 of 2 times"):
        assert text in output


@pytest.mark.parametrize(("full", "last"), [((1, 2, 3), "model_0000000"), ((5,), "model_0000004")])
def test_a_disk_that_stays_full_does(tiny_data, tmp_path, disk_full, capsys, full, last):
    """After the third failure in a row, and after the last iteration."""
    disk_full(*full)
    assert main(arguments(tiny_data, tmp_path, *QUIET[:4], "SOLVER.CHECKPOINT_PERIOD", "1")) == 3
    assert "No space left on device); earlier checkpoints are intact" in capsys.readouterr().err
    assert (tmp_path / "last_checkpoint").read_text() == f"{last}.pth"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_best_model_that_cannot_be_written_is_not_the_best(tiny_data, tmp_path, monkeypatch, disk_full):
    metrics = iter([10.0, 30.0, 20.0, 5.0, 5.0, 5.0])
    monkeypatch.setattr(Trainer, "test", lambda *_: {"bbox": {"AP": next(metrics)}})
    disk_full(1)
    options = ("DATASETS.TEST", "['tiny_val']", "TEST.EVAL_PERIOD", "1")
    assert main(arguments(tiny_data, tmp_path, *QUIET, *options)) == 0
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 2


def test_a_new_run_does_not_continue_an_earlier_one(tiny_data, tmp_path, signal_at, capsys):
    """Killed before its first checkpoint and resumed, it starts again."""
    assert main(arguments(tiny_data, tmp_path, *QUIET)) == 0
    own = ("MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
    trainer = Trainer(load_config(argument_parser().parse_args(arguments(tiny_data, tmp_path, *QUIET, *own))))
    trainer.resume_or_load(resume=False)
    assert files_of(tmp_path) == [] and files_of(tmp_path / "earlier-1") == ["model_final.pth"]
    saved = torch.load(tmp_path / "earlier-1" / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())
    signal_at(signal.SIGTERM, 1)
    with pytest.raises(SystemExit):
        main(arguments(tiny_data, tmp_path, *QUIET, flags=("--resume",)))
    assert "Nothing to resume" in capsys.readouterr().out
    assert iteration_of(tmp_path / "model_0000001.pth") == 1
