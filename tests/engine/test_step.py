import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from nlnet_d2.engine.errors import Diverged
from nlnet_d2.engine.step import TrainStep

ENOUGH = 20  # steps until the loss scale of float16 has come down to where nothing overflows


class Line(nn.Module):
    """Loss of y = a x on the samples of a batch, mean over the batch; notes the dtype it computes in."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(1, 1, bias=False)

    def forward(self, batch):
        prediction = self.a(torch.tensor([[d["x"]] for d in batch]))
        self.dtype = prediction.dtype
        return {"loss_fit": (prediction.float() - 1).square().mean(), "loss_size": self.a.weight.abs().sum()}


def make_step(batches, **kwargs):
    torch.manual_seed(0)
    model = Line()
    step = TrainStep(model, batches, torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.9), **kwargs)
    step.iter = 0
    return step


def test_a_loss_that_is_not_finite_stops_before_the_update():
    step = make_step([[{"x": 1.0, "file_name": "good.jpg"}, {"x": float("nan"), "file_name": "bad.jpg"}]])
    weight = step.model.a.weight.clone()
    step.iter = 41
    with EventStorage(), pytest.raises(Diverged) as stopped:
        step.run_step()
    assert torch.equal(step.model.a.weight, weight)
    for part in (
        "iteration 41",
        "learning rate 0.25",
        "loss_fit = nan",
        "loss_size = ",
        "good.jpg",
        "bad.jpg",
    ):
        assert part in str(stopped.value)


def test_a_model_that_finds_itself_diverged_is_reported_alike(monkeypatch):
    step = make_step([[{"x": 1.0, "file_name": "a.jpg"}]])

    def forward(batch):
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")

    monkeypatch.setattr(step.model, "forward", forward)
    with EventStorage(), pytest.raises(Diverged, match=r"iteration 0, .*contain Inf/NaN[\s\S]*a\.jpg"):
        step.run_step()


def test_losses_reach_the_storage():
    step = make_step([[{"x": 2.0}]])
    with EventStorage() as storage:
        step.run_step()
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["total_loss"] == pytest.approx(latest["loss_fit"] + latest["loss_size"])
    assert latest["data_time"] >= 0


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_precision(precision):
    step = make_step([[{"x": 2.0}]] * ENOUGH, precision=precision)
    before = step.model.a.weight.item()
    with EventStorage():
        for _ in range(ENOUGH):
            step.run_step()
    assert step.model.dtype == (precision or torch.float32)
    assert step.model.a.weight.item() != before
    assert bool(step.state_dict()["grad_scaler"]) == (precision == torch.float16)


def test_state_holds_momentum_and_loss_scale():
    step = make_step([[{"x": 2.0}]] * ENOUGH, precision=torch.float16)
    with EventStorage():
        for _ in range(ENOUGH):
            step.run_step()
    step.grad_scaler.update(64.0)
    state = step.state_dict()
    other = make_step([], precision=torch.float16)
    other.load_state_dict(state)
    assert other.grad_scaler.get_scale() == 64.0
    momentum = other.optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, state["optimizer"]["state"][0]["momentum_buffer"])


def test_mixed_precision_may_be_turned_on_by_a_resume():
    step = make_step([[{"x": 2.0}]], precision=torch.float16)
    step.load_state_dict(make_step([]).state_dict())
    assert step.grad_scaler.is_enabled()
