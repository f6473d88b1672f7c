"""Schedules that follow the number of processes (SOLVER.REFERENCE_WORLD_SIZE) or of samples (SOLVER.UNIT)."""

import json

import pytest
import torch
from detectron2.config import get_cfg
from tiny_run import TORCHRUN, arguments, train_net

from nlnet_d2 import add_nlnet_config
from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.engine.trainer import Trainer, in_iterations, scaled_to_processes

OPTIONS = {
    "SOLVER.REFERENCE_WORLD_SIZE": 1,
    "SOLVER.MAX_ITER": 8,
    "SOLVER.STEPS": [6],
    "SOLVER.CHECKPOINT_PERIOD": 4,
    "DATASETS.TEST": [],
}


@pytest.mark.parametrize("by", ["torchrun", "flags"])
def test_two_processes_take_half_the_iterations(tiny_data, tmp_path, by):
    """Written for one process with batches of 2, at 0.01: two take batches of 4, at 0.02."""
    words = [str(word) for pair in OPTIONS.items() for word in pair]
    flags = () if by == "torchrun" else ("--num-gpus", "2", "--dist-url", f"file://{tmp_path}/rendezvous")
    launcher = TORCHRUN if by == "torchrun" else ()
    ended = train_net(*arguments(tiny_data, tmp_path, *words, flags=flags), launcher=launcher)
    assert ended.returncode == 0, ended.stderr
    assert "batch_size=4, learning_rate=0.02, max_iter=4, warmup=0" in (tmp_path / "log.txt").read_text()
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"model_0000001.pth", "model_0000003.pth", "model_final.pth"}
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == 3
    rates = [group["lr"] for group in final["trainer"]["_trainer"]["optimizer"]["param_groups"]]
    assert rates == [pytest.approx(0.002)] * len(rates), "after the step at iteration 3 of 4"
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert rows[-1]["iteration"] == 3


def test_fewer_processes_than_written_for():
    """One GPU instead of 64: an image a time, the rate of one image, all images seen as often."""
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.merge_from_file("configs/coco/mask_rcnn_vitdet_b_100ep.yaml", allow_unsafe=False)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 64
    one = scaled_to_processes(cfg).SOLVER
    assert one.IMS_PER_BATCH == 1 and pytest.approx(cfg.SOLVER.BASE_LR / 64) == one.BASE_LR
    assert one.MAX_ITER == 64 * cfg.SOLVER.MAX_ITER and one.WARMUP_ITERS == 64 * cfg.SOLVER.WARMUP_ITERS


def test_off_by_default():
    cfg = get_cfg()
    assert scaled_to_processes(cfg) is cfg


def test_a_batch_that_the_reference_does_not_divide():
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE = 16, 3
    with pytest.raises(
        ConfigError, match="IMS_PER_BATCH = 16 is not a multiple of .*REFERENCE_WORLD_SIZE = 3"
    ):
        scaled_to_processes(cfg)


def in_epochs(tiny_data, tmp_path, *options):
    """12 images, in batches of 5."""
    words = [
        "SOLVER.UNIT",
        "epochs",
        "SOLVER.IMS_PER_BATCH",
        "5",
        "SOLVER.MAX_ITER",
        "10",
        "TEST.EVAL_PERIOD",
        "2",
    ]
    words += ["SOLVER.STEPS", "[5, 9]", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.WARMUP_ITERS", "4", *options]
    return load_config(argument_parser().parse_args(arguments(tiny_data, tmp_path, *words)))


def test_a_schedule_in_epochs(tiny_data, tmp_path):
    cfg = in_iterations(in_epochs(tiny_data, tmp_path))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (24, (12, 22))  # 21.6 iterations are rounded up
    assert (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.WARMUP_ITERS) == (3, 5, 4)
    assert in_iterations(cfg) is cfg, "once"


def test_a_checkpoint_period_longer_than_the_run_is_an_epoch(tiny_data, tmp_path, caplog):
    """Detectron2's default is meant in iterations."""
    with caplog.at_level("INFO", "nlnet_d2"):
        stock = in_iterations(in_epochs(tiny_data, tmp_path, "SOLVER.CHECKPOINT_PERIOD", "5000"))
    assert stock.SOLVER.CHECKPOINT_PERIOD == 3 and "a checkpoint every epoch instead" in caplog.text
    last = in_iterations(in_epochs(tiny_data, tmp_path, "SOLVER.CHECKPOINT_PERIOD", "10"))
    assert last.SOLVER.CHECKPOINT_PERIOD == last.SOLVER.MAX_ITER == 24, "only at the end, as asked"


def test_the_trainer_counts_epochs_of_the_reference(tiny_data, tmp_path):
    """Written for 5 processes and run by one: one image an iteration, as many epochs."""
    trainer = Trainer(in_epochs(tiny_data, tmp_path, "SOLVER.REFERENCE_WORLD_SIZE", "5"))
    assert trainer.max_iter == 120 and trainer.cfg.SOLVER.IMS_PER_BATCH == 1
