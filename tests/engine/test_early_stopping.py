"""Trainings that end because nothing gets better, and what is said of the best on the way."""

import pytest
from tiny_run import arguments

from nlnet_d2.engine.run import main
from nlnet_d2.engine.trainer import Trainer

OPTIONS = ("SOLVER.MAX_ITER", "9", "SOLVER.CHECKPOINT_PERIOD", "100", "TEST.EVAL_PERIOD", "1")


@pytest.fixture
def scores(monkeypatch):
    """Let the evaluations give these, one after the other."""

    def arrange(*values):
        metrics = iter(values)
        monkeypatch.setattr(Trainer, "test", lambda *_: {"bbox": {"AP": next(metrics)}})

    return arrange


def test_training_ends_after_so_many_evaluations_without_a_better_one(tiny_data, tmp_path, scores, capsys):
    scores(10.0, 5.0, 12.0, 11.0, 12.0, 99.0)
    assert main(arguments(tiny_data, tmp_path, *OPTIONS, "TEST.PATIENCE", "2")) == 0
    printed = capsys.readouterr().out
    assert "2 evaluations in a row were not better than the best" in printed
    assert "Exception" not in printed, "it is no failure"
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    assert (tmp_path / "model_best.pth").exists() and not (tmp_path / "model_final.pth").exists()
    # Detectron2's words, which say the score beside the best so far.
    assert "bbox/AP is 5.00000, not better than best score 10.00000" in printed
    assert "12.00000, better than last best score 10.00000" in printed


def test_it_goes_on_where_the_best_is_recent_and_also_after_a_resume(tiny_data, tmp_path, scores):
    scores(10.0, 9.0, 9.0, 11.0, 12.0, 12.0, 13.0, 13.0, 13.0)
    assert main(arguments(tiny_data, tmp_path, *OPTIONS, "TEST.PATIENCE", "3")) == 0
    assert (tmp_path / "model_final.pth").exists()
    scores(13.0, 13.0, 99.0)
    longer = ("SOLVER.MAX_ITER", "20", "TEST.PATIENCE", "3")
    assert main(arguments(tiny_data, tmp_path, *OPTIONS, *longer, flags=("--resume",))) == 0
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000009.pth"
