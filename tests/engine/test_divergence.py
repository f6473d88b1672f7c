"""A training that diverges says where, with what, and leaves the batch and the last good checkpoint."""

import math
import re

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from test_step import make_step
from tiny_run import arguments
from torch import nn

from nlnet_d2.checkpoint.checkpointer import fault
from nlnet_d2.engine.diverged_batch import write_batch
from nlnet_d2.engine.errors import Diverged
from nlnet_d2.engine.run import main
from nlnet_d2.engine.step import TrainStep

LOSSES = ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")


def test_a_run_that_diverges(tiny_data, tmp_path, monkeypatch, capsys):
    """The third iteration has a loss that is infinite, the fourth would have been the last."""
    run_step = TrainStep._forward

    def forward(self, batch):
        losses = run_step(self, batch)
        factor = math.inf if self.iter == 2 else 1.0
        return losses | {"loss_mask": losses["loss_mask"] * factor}

    monkeypatch.setattr(TrainStep, "_forward", forward)
    assert main(arguments(tiny_data, tmp_path, "DATASETS.TEST", "[]")) == 4
    said = capsys.readouterr().err
    found = re.search(
        r"iteration 2, learning rate 0.01, norm of the last finite gradient ([\d.]+): the", said
    )
    assert float(found[1]) > 0 and "loss_mask = inf" in said and all(f"{name} = " in said for name in LOSSES)
    names = re.findall(r"in the batch: (\S+)", said)
    batch = torch.load(tmp_path / "diverged_batch_rank0.pth", weights_only=True)
    assert [sample["file_name"] for sample in batch] == names and len(names) == 2
    for sample in batch:
        height, width = sample["image"].shape[-2:]
        boxes = sample["instances"]["gt_boxes"]
        assert sample["instances"]["image_size"] == (height, width) and boxes.shape == (2, 4)
        assert (boxes <= torch.tensor([width, height, width, height])).all()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert fault(tmp_path / "model_0000001.pth") is None


def test_a_network_that_finds_itself_diverged(tiny_data, tmp_path, capsys):
    """A learning rate beyond all measure: the proposals look at themselves before there is a loss."""
    assert main(arguments(tiny_data, tmp_path, "SOLVER.BASE_LR", "1e30", "DATASETS.TEST", "[]")) == 4
    printed, said = capsys.readouterr()
    assert re.search(r"iteration 1, .*\n  in the batch: \S+\.png", said)
    assert "Traceback" not in printed + said and "Traceback" in (tmp_path / "log.txt").read_text()
    assert len(torch.load(tmp_path / "diverged_batch_rank0.pth", weights_only=True)) == 2


class Root(nn.Module):
    """A loss of zero whose gradient is infinite."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))

    def forward(self, batch):
        return {"loss_root": self.a.sqrt().sum()}


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    model = Root()
    step = TrainStep(model, [[{"file_name": "a.jpg"}]], torch.optim.SGD(model.parameters(), lr=1.0))
    step.iter = 0
    with (
        EventStorage(),
        pytest.raises(Diverged, match=r"the gradient is not finite: loss_root = 0\n.*a\.jpg"),
    ):
        step.run_step()
    assert torch.equal(model.a, torch.zeros(2))


def test_norm_of_the_gradient():
    """d/da of mean((2a - 1)^2) + |a|, in parts and under a loss scale too."""
    for kwargs in ({}, {"accumulate": 2}, {"precision": torch.float16}):
        step = make_step([[{"x": 2.0}, {"x": 2.0}]], **kwargs)
        a = step.model.a.weight.item()
        if step.grad_scaler.is_enabled():
            step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        with EventStorage():
            step.run_step()
        expected = abs(4 * (2 * a - 1) + math.copysign(1, a))
        assert step.gradient_norm == pytest.approx(expected, rel=5e-3)


def test_any_sample_becomes_plain(tmp_path):
    instances = Instances((8, 6))
    instances.gt_boxes = Boxes([[0.0, 0.0, 2.0, 3.0]])
    instances.gt_masks = PolygonMasks([[np.array([0.0, 0.0, 2.0, 0.0, 2.0, 3.0])]])
    instances.gt_keypoints = Keypoints(np.ones((1, 2, 3)))
    others = {"masks": BitMasks(torch.ones(1, 8, 6)), "second": np.int64(902), "when": complex(1)}
    sample = {"clip": torch.zeros(3, 2, 8, 6), "instances": instances, "video_id": "v", "other": others}
    write_batch(tmp_path / "batch.pth", [sample])
    (found,) = torch.load(tmp_path / "batch.pth", weights_only=True)
    assert torch.equal(found["clip"], sample["clip"]) and found["video_id"] == "v"
    assert found["instances"]["gt_boxes"].tolist() == [[0.0, 0.0, 2.0, 3.0]]
    assert found["instances"]["gt_masks"][0][0].tolist() == [0.0, 0.0, 2.0, 0.0, 2.0, 3.0]
    assert found["instances"]["gt_keypoints"].shape == (1, 2, 3)
    assert found["other"]["masks"].all() and found["other"]["second"] == 902
    assert found["other"]["when"] == "(1+0j)"
