"""What a model takes of a file, what is new to it, refused or only reported."""

import re

import pytest
import torch
from deterministic import read_keys
from published_weights import R18, assert_complete, caffe2_name, detector, on_meta, report_of_start, shapes
from safetensors.torch import save_file
from tiny_run import arguments
from torch import nn
from torchvision.models import resnet18

from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.backbones.video.resnet3d import ResNet3D
from nlnet_d2.blocks.nonlocal_ import NonLocal
from nlnet_d2.checkpoint import load_weights
from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.convert import convert
from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.trainer import Trainer


def test_new_context_blocks_may_be_missing():
    """A file of ImageNet has none; they start as they are."""
    block = {"NAME": "NonLocal", "AT": {"res4": [-2]}}
    model = ContextResNet(blocks=[block], norm="BN", **R18)
    report = load_weights(model, resnet18().state_dict())
    assert report.missing and all(name.startswith("res4.0.after_add.0.") for name in report.missing)
    half = {name: tensor for name, tensor in model.state_dict().items() if "after_add.0.g." not in name}
    with pytest.raises(
        CheckpointError, match=r"2 tensors .* missing in the file.* res4\.\*\.after_add\.\*\.g\.\*"
    ):
        load_weights(model, half)
    with pytest.raises(CheckpointError, match=r"that the model's has not: res4\.\*\.after_add"):
        load_weights(ContextResNet(norm="BN", **R18), model.state_dict())


def test_model_of_several_processes():
    """What DistributedDataParallel wraps is loaded; its own names have one more part."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(ContextResNet(norm="BN", **R18))
        load_weights(model, published := resnet18().state_dict())
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(model.module.stem.conv1.weight, published["conv1.weight"])


def test_parts_that_a_trained_detector_lacks_must_be_allowed():
    """They are new to a backbone of ImageNet; a detector was trained without them, or they got lost."""
    plain, block = detector(), "[{'NAME': 'NonLocal', 'AT': {'res4': [-2]}}]"
    model = detector(["MODEL.CONTEXT.BLOCKS", block])
    published = shapes({k: v.shape for k, v in plain.state_dict().items()})
    with pytest.raises(
        CheckpointError, match=r"missing in the file.* backbone\.bottom_up\.res4\.\*\.after_add"
    ):
        report_of_start(model, published)
    report_of_start(model, published, allow_missing=["*.after_add.*"])
    with pytest.raises(CheckpointError, match="missing in the file"):  # the model is the backbone alone
        report_of_start(model.backbone.bottom_up, published)
    trunk = {name: tensor for name, tensor in published.items() if name.startswith("backbone.bottom_up.")}
    report_of_start(model, trunk)
    report_of_start(model.backbone.bottom_up, trunk)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip(tmp_path, suffix):
    model = ResNet3D(depth=14, arch="slow")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / f"native{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    other = ResNet3D(depth=14, arch="slow")
    assert_complete(load_weights(other, path), "native")
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_part_of_a_detector():
    """A bare backbone takes its part, and says what it left."""
    model = detector()
    conversion = convert(shapes({k: v.shape for k, v in model.state_dict().items()}), on_meta(ContextResNet))
    assert_complete(conversion.report, "native")
    assert set(conversion.report.dropped.values()) == {"outside backbone.bottom_up, which the model is"}


def test_incomplete_backbone_is_refused_and_unchanged():
    published, model = resnet18().state_dict(), ContextResNet(norm="BN", **R18)
    del published["layer3.1.conv2.weight"]
    published["layer2.1.bn1.bias"] = torch.ones(3)
    before = model.stem.conv1.weight.clone()
    with pytest.raises(CheckpointError, match="2 tensors of the backbone are missing") as error:
        load_weights(model, published)
    assert "there: res4.*.conv2.*, res3.*.conv1.norm.*" in str(error.value)
    assert torch.equal(model.stem.conv1.weight, before)
    report = load_weights(model, published, allow_missing=["res4.1.conv2.weight", "res3.1.*"])
    assert report.missing == ["res4.1.conv2.weight"]
    assert [str(m) for m in report.mismatched] == ["res3.1.conv1.norm.bias (3,) -> (128,)"]
    with pytest.raises(CheckpointError, match="do not match: 2 tensors"):
        report.require_complete()
    report.require_complete(allow_missing=["res4.*", "res3.1.*"])


def test_other_classes_are_reported_not_refused():
    model, other = detector(["MODEL.ROI_HEADS.NUM_CLASSES", "3"]), detector()
    report = convert(shapes({k: v.shape for k, v in other.state_dict().items()}), model).report
    assert {m.name.split(".")[1] for m in report.mismatched} == {"box_predictor"} and not report.missing
    for name in ("cls_score", "bbox_pred"):
        assert f"roi_heads.box_predictor.{name}.bias" in str(report)


def test_batch_norm_weights_in_a_group_norm_model():
    """The scales would fit and mean something else."""
    published, model = resnet18().state_dict(), on_meta(ContextResNet, norm="GN", **R18)
    with pytest.raises(CheckpointError, match=r"the model's has not: stem.conv1.norm.\*"):
        report_of_start(model, published)
    own = on_meta(ContextResNet, norm="GN").state_dict()
    group_norm = shapes({caffe2_name(k, norm="gn"): v.shape for k, v in own.items()})
    with pytest.raises(CheckpointError, match=r"there: stem.conv1.norm.\*"):
        report_of_start(on_meta(ContextResNet, norm="BN"), group_norm)


def test_a_deeper_network_is_another_one():
    """All tensors of R50 are in a file of R101, and mean something else."""
    overrides = ["MODEL.RESNETS.NUM_GROUPS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"]
    deeper = shapes(read_keys("resnext101_32x8d_keys")["keys"])
    with pytest.raises(CheckpointError, match="the file's backbone has .* depth, norm or blocks differ"):
        report_of_start(detector(overrides), deeper)
    report_of_start(detector(overrides), deeper, allow_missing=["backbone.bottom_up.res4.*"])


def test_unknown_heads_of_a_classifier_are_reported(caplog):
    state = resnet18().state_dict() | {"extra_head.weight": torch.ones(3)}
    report = load_weights(ContextResNet(norm="BN", **R18), state)
    assert report.unexpected == ["extra_head.weight"]
    assert [record.levelname for record in caplog.records if "extra_head" in record.message] == ["WARNING"]


def test_pyramid_and_heads_are_new_to_a_converted_backbone():
    """What the converter wrote for an ImageNet file loads by itself into the detector it was written for."""
    model = detector(["MODEL.CONTEXT.BLOCKS", "[{'NAME': 'NonLocal', 'AT': {'res4': [-2]}}]"])
    keys = {k: v.shape for k, v in model.state_dict().items()}
    trunk = {k: v for k, v in keys.items() if k.startswith("backbone.bottom_up.") and "after_add" not in k}
    report = report_of_start(model, shapes(trunk))
    assert report.origin == "native" and len(report.used) == len(trunk)
    bare = {k.removeprefix("backbone.bottom_up."): v for k, v in trunk.items()} | {
        "stem.fc.weight": (1000, 2048)
    }
    report = report_of_start(model, shapes(bare))
    assert len(report.used) == len(trunk) and list(report.dropped) == ["stem.fc.weight"]


def test_what_fits_nothing():
    model = ContextResNet()
    with pytest.raises(CheckpointError, match="names of no known origin: encoder"):
        load_weights(model, {"encoder.0.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match="not one tensor of origin vit fits"):
        load_weights(model, {"blocks.0.norm1.weight": torch.ones(3)}, origin="vit")
    with pytest.raises(CheckpointError, match="origin 'caffe' is unknown; choose one of native"):
        load_weights(model, {"a": torch.ones(3)}, origin="caffe")


def test_numbers_that_are_not_finite():
    model = ContextResNet(norm="BN", **R18)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["res3.0.conv1.weight"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="res3.0.conv1.weight is not finite"):
        load_weights(model, state)


def test_two_tensors_for_one_parameter():
    state = {"g.conv.weight": torch.ones(2, 4, 1, 1), "g.0.conv.weight": torch.ones(2, 4, 1, 1)}
    with pytest.raises(CheckpointError, match="are the same parameter"):
        load_weights(NonLocal(4), state, origin="mmcv")


def test_errors_name_the_file(tmp_path):
    torch.save({"encoder.weight": torch.ones(3)}, tmp_path / "strange.pth")
    with pytest.raises(CheckpointError, match="strange.pth: names of no known origin"):
        load_weights(ContextResNet(), tmp_path / "strange.pth")


def test_report_is_a_table():
    report = load_weights(ContextResNet(norm="BN", **R18), resnet18().state_dict())
    lines = str(report).splitlines()
    assert lines[0].startswith("weights of origin torchvision, trained with INPUT.FORMAT RGB")
    assert re.match(r"used\s+120", lines[3]) and re.match(r"left out\s+2\s+classifier", lines[-1])


def test_the_config_may_allow_it(tiny_data, tmp_path):
    """What load_weights refuses at the start of a training, MODEL.WEIGHTS_ALLOW_MISSING lets pass."""

    def trainer(*options):
        args = arguments(tiny_data, tmp_path / "run", "MODEL.DEVICE", "cpu", *options)
        return Trainer(load_config(argument_parser().parse_args(args)))

    state = trainer().model.state_dict()
    lacking = next(name for name in state if name.startswith("backbone.") and name.endswith(".weight"))
    torch.save({name: tensor for name, tensor in state.items() if name != lacking}, tmp_path / "w.pth")
    options = ["MODEL.WEIGHTS", str(tmp_path / "w.pth")]
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS_ALLOW_MISSING"):
        trainer(*options).resume_or_load(resume=False)
    allowing = trainer(*options, "MODEL.WEIGHTS_ALLOW_MISSING", f"['{lacking}']")
    allowing.resume_or_load(resume=False)
    loaded = allowing.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items() if name != lacking)
