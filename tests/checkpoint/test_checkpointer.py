"""Whatever happens while a checkpoint is written, there is one to resume from."""

import errno
import logging
import multiprocessing
import os
import signal

import pytest
import torch
from torch import nn

from nlnet_d2.checkpoint.checkpointer import CheckpointError, TrainingCheckpointer


def checkpointer(folder, value=0.0, width=4, **kwargs):
    model = nn.Linear(width, 2)
    nn.init.constant_(model.weight, value)
    return TrainingCheckpointer(model, str(folder), **kwargs)


def save(folder, iteration, **kwargs):
    checkpointer(folder, value=float(iteration), **kwargs).save(f"model_{iteration:07d}", iteration=iteration)


def resumed_value(folder):
    fresh = checkpointer(folder, value=-1.0)
    fresh.resume()
    return fresh.model.weight[0, 0].item()


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = b""
    else:
        where = content.index(torch.full((4,), 2.0).numpy().tobytes())  # a weight of checkpoint 2
        content[where + 2] ^= 1
    path.write_bytes(content)


def test_names_are_the_stock_ones_and_content_is_plain(tmp_path):
    save(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    content = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    assert content["iteration"] == 1 and set(content["model"]) == {"weight", "bias"}


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped"])
def test_resume_skips_a_damaged_file_and_says_so(tmp_path, caplog, how):
    for iteration in (1, 2):
        save(tmp_path, iteration)
    damage(tmp_path / "model_0000002.pth", how)
    with caplog.at_level(logging.WARNING):
        assert resumed_value(tmp_path) == 1.0
    assert "Skipping checkpoint" in caplog.text and "model_0000002.pth" in caplog.text


@pytest.mark.parametrize("tag", ["", "model_0000009.pth", None])
def test_last_checkpoint_may_be_wrong_or_missing(tmp_path, tag):
    for iteration in (1, 2):
        save(tmp_path, iteration)
    if tag is None:
        (tmp_path / "last_checkpoint").unlink()
    else:
        (tmp_path / "last_checkpoint").write_text(tag)
    assert resumed_value(tmp_path) == 2.0


def test_last_checkpoint_is_followed_where_it_is_good(tmp_path):
    for iteration in (1, 2):
        save(tmp_path, iteration)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert resumed_value(tmp_path) == 1.0


def test_nothing_good_is_an_error_that_lists_what_was_tried(tmp_path):
    save(tmp_path, 2)
    damage(tmp_path / "model_0000002.pth", "truncated")
    with pytest.raises(CheckpointError, match=r"can be resumed \(model_0000002\.pth: .*--resume"):
        resumed_value(tmp_path)


def test_another_model_is_refused(tmp_path):
    save(tmp_path, 1, width=5)
    with pytest.raises(CheckpointError, match=r"not of this model: 1 of another shape \(weight, "):
        resumed_value(tmp_path)


def test_the_best_model_is_not_resumed_from(tmp_path):
    save(tmp_path, 1)
    checkpointer(tmp_path, value=5.0, tag_last=False).save("model_best")
    assert resumed_value(tmp_path) == 1.0
    (tmp_path / "last_checkpoint").unlink()
    assert resumed_value(tmp_path) == 1.0


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(FloatingPointError, match="weight is not finite"):
        checkpointer(tmp_path, value=float("nan")).save("model_0000001")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, failing):
    save(tmp_path, 1)

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(CheckpointError, match=r"model_0000002\.pth cannot be written \(.*No space left"):
            save(tmp_path, 2)
    assert not list(tmp_path.glob("*.tmp"))
    assert resumed_value(tmp_path) == 1.0


def kill_in_save(folder, point):
    """Save checkpoint 2 and die: at half the file, or before the ``point``-th step that makes it durable."""
    calls = iter(range(100))
    save_file = torch.save

    def die_at_half(data, file):
        save_file(data, file)
        file.truncate(file.tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(function):
        def call(*args):
            if next(calls) == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)

        return call

    if point < 0:
        torch.save = die_at_half
    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    save(folder, 2)


# fsync file, rename, fsync folder for the checkpoint (0-2), then for last_checkpoint (3-5).
@pytest.mark.parametrize(("point", "resumes_from"), [(-1, 1), (0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 2)])
def test_kill_at_any_point_of_a_save(tmp_path, point, resumes_from):
    save(tmp_path, 1)
    process = multiprocessing.get_context("fork").Process(target=kill_in_save, args=(tmp_path, point))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert resumed_value(tmp_path) == resumes_from
    checkpointer(tmp_path).remove_unfinished()
    assert not list(tmp_path.glob("*.tmp"))
    assert resumed_value(tmp_path) == resumes_from
