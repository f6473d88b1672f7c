import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.backbones.vit import ViT
from nlnet_d2.backbones.vit_pyramid import SimpleFeaturePyramid
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


class Detector(nn.Module):
    """Two tasks on a feature pyramid of GN or LN, losses as means over the images."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, batch):
        maps = self.backbone(torch.stack([d["image"] for d in batch]))
        return {name: level.square().mean() for name, level in maps.items()}


def small_vit():
    net = ViT(img_size=64, embed_dim=32, depth=1, num_heads=2, global_block_indexes=[0], window_size=2)
    return SimpleFeaturePyramid(net, out_channels=16)


@pytest.mark.parametrize(
    "backbone", [small_vit, lambda: ContextResNet(depth=18, norm="GN")], ids=["LN", "GN"]
)
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_make_its_update(backbone, parts):
    """Gradients and reported losses of 1 x 4 images are those of 2 x 2 and 4 x 1, to float32's rounding."""
    images = [{"image": torch.randn(3, 64, 64)} for _ in range(4)]
    found = []
    for accumulate in (1, parts):
        torch.manual_seed(0)
        model = Detector(backbone().eval())  # eval: no drop path
        step = TrainStep(model, [images], torch.optim.SGD(model.parameters(), lr=0.1), accumulate=accumulate)
        step.iter = 0
        with EventStorage() as storage:
            step.run_step()
            losses = {name: value for name, (value, _) in storage.latest().items() if name != "data_time"}
        found.append((losses, [p.grad for p in model.parameters()], list(model.parameters())))
    (losses, gradients, weights), (losses_of_parts, *of_parts) = found
    assert losses_of_parts == pytest.approx(losses, rel=1e-5) and len(losses) == 5
    for expected, got in zip(gradients + weights, of_parts[0] + of_parts[1], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_every_image_is_in_one_part():
    seen = []
    step = make_step([[{"x": float(x)} for x in range(6)]], accumulate=3)
    forward = step.model.forward
    step.model.forward = lambda batch: seen.append([d["x"] for d in batch]) or forward(batch)
    with EventStorage():
        step.run_step()
    assert [len(part) for part in seen] == [2, 2, 2] and sorted(sum(seen, [])) == [0, 1, 2, 3, 4, 5]
