"""Whatever happens while a checkpoint is written, there is one to resume from."""

import errno
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

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
    assert "Skipping checkpoint" in caplog.text
    assert re.search(r"model_0000002\.pth: (incomplete or )?damaged \(", caplog.text)


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


def save_to_a_small_disk(folder):
    """Here no file can have more than 4 kB: torch meets the limit in the middle of its writing."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        save(folder, 2, width=4000)
    except CheckpointError as error:
        (folder / "message").write_text(str(error))


def test_writing_stops_in_the_middle(tmp_path):
    save(tmp_path, 1)
    process = multiprocessing.get_context("fork").Process(target=save_to_a_small_disk, args=(tmp_path,))
    process.start()
    process.join()
    message = (tmp_path / "message").read_text()
    assert "model_0000002.pth cannot be written ([Errno 27] File too large)" in message
    assert "earlier checkpoints are intact" in message
    assert not list(tmp_path.glob("*.tmp")) and not (tmp_path / "model_0000002.pth").exists()
    assert resumed_value(tmp_path) == 1.0


def test_what_was_written_is_read_again(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save_file = torch.save

    def flip_a_bit(data, file):
        save_file(data, file)
        file.flush()
        damage(Path(file.name), "flipped")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", flip_a_bit)
        with pytest.raises(CheckpointError, match=r"model_0000002\.pth cannot be written \(.*intact"):
            save(tmp_path, 2)
    assert resumed_value(tmp_path) == 1.0


def test_a_disk_that_is_nearly_full_is_announced(tmp_path, monkeypatch, caplog):
    save(tmp_path, 1)
    assert not caplog.records
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    save(tmp_path, 2)
    assert "nearly full: 0.0 GB are left, a checkpoint takes 0.0 GB" in caplog.text


def test_old_checkpoints_are_removed_but_not_the_one_to_resume(tmp_path):
    for iteration in range(1, 6):
        save(tmp_path, iteration)
    checkpointer(tmp_path).keep(3)
    assert [path.name[12] for path in sorted(tmp_path.glob("model_*"))] == ["3", "4", "5"]
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    checkpointer(tmp_path).keep(1)
    assert [path.name[12] for path in sorted(tmp_path.glob("model_*"))] == ["3", "5"]


def test_an_earlier_run_is_set_aside(tmp_path):
    for run in (1, 2):
        save(tmp_path, run)
        checkpointer(tmp_path, tag_last=False).save("model_best")
        checkpointer(tmp_path).set_aside()
        assert not checkpointer(tmp_path).has_checkpoint()
        names = sorted(path.name for path in (tmp_path / f"earlier-{run}").iterdir())
        assert names == ["last_checkpoint", f"model_000000{run}.pth", "model_best.pth"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-1", "earlier-2"]
    assert resumed_value(tmp_path / "earlier-2") == 2.0


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
