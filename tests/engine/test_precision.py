"""Mixed precision: what the config asks for is what the network computes in."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from tiny_run import arguments

from nlnet_d2 import add_nlnet_config
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.engine.precision import keep_coordinates, training_precision
from nlnet_d2.engine.run import main
from nlnet_d2.engine.trainer import Trainer


def config(enabled, device, precision):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.SOLVER.AMP.ENABLED, cfg.MODEL.DEVICE, cfg.SOLVER.AMP.PRECISION = enabled, device, precision
    return cfg


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cuda", "auto", torch.float16),
        ("cuda", "fp16", torch.float16),
        ("cuda:1", "bf16", torch.bfloat16),
        ("cpu", "auto", torch.bfloat16),
        ("cpu", "bf16", torch.bfloat16),
    ],
)
def test_choice(device, precision, expected):
    assert training_precision(config(True, device, precision)) == expected
    assert training_precision(config(False, device, precision)) is None


def test_fp16_on_a_cpu():
    with pytest.raises(ConfigError, match="fp16 does not train on a CPU: use bf16, or auto"):
        training_precision(config(True, "cpu", "fp16"))


@pytest.mark.parametrize("amp", [True, False])
def test_training_on_a_cpu_computes_in_bfloat16(tiny_data, tmp_path, monkeypatch, amp):
    """In training, where asked for; evaluation and weights stay in float32."""
    seen = {}
    stock = Trainer.build_model.__func__

    def build_model(cls, cfg):
        model = stock(cls, cfg)
        layers = [model.backbone.bottom_up.stem.conv1, model.proposal_generator.rpn_head.conv]
        for layer in layers:
            layer.register_forward_hook(
                lambda m, _, out: seen.setdefault(model.training, set()).add(out.dtype)
            )
        seen["weights"] = {p.dtype for p in model.parameters()}
        return model

    monkeypatch.setattr(Trainer, "build_model", classmethod(build_model))
    options = ("MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", str(amp), "SOLVER.MAX_ITER", "1")
    assert main(arguments(tiny_data, tmp_path, *options)) == 0
    in_training = torch.bfloat16 if amp else torch.float32
    assert seen == {True: {in_training}, False: {torch.float32}, "weights": {torch.float32}}


def test_boxes_keep_their_coordinates():
    """In mixed precision a pooler gives what it does for the same maps in float32."""
    pooler = ROIPooler(2, [1 / 4, 1 / 8], 2, "ROIAlignV2")
    maps = [torch.randn(1, 8, size, size).bfloat16() for size in (300, 150)]
    boxes = [Boxes(torch.tensor([[1001.0, 1001, 1021, 1031], [701.0, 501, 1001, 803]]))]
    expected = pooler([x.float() for x in maps], boxes)
    with torch.autocast("cpu", torch.bfloat16):
        stock = pooler(maps, boxes)
        keep_coordinates(pooler)
        ours = pooler(maps, boxes)
    assert torch.equal(ours, expected)
    assert abs(stock - expected).max() > 0.1
