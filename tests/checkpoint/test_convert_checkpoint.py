"""The command line of the converter: what it prints, what it writes, how it ends."""

import re
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.read import read_tensors
from nlnet_d2.checkpoint.sources import SOURCES
from nlnet_d2.checkpoint.write import write_weights
from nlnet_d2.cli.convert import main

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/coco/mask_rcnn_nl_R50_FPN.yaml"
NEW = ("backbone.fpn_*", "*.after_add.*", "proposal_generator.*", "roi_heads.*")


R18 = ["--opts", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
TENSORS = 100  # of R18: 20 convolutions, each with a norm of four


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of torchvision's ResNet-18."""
    path = tmp_path_factory.mktemp("published") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), path)
    return path


def run(*arguments, allow=()):
    allowed = [word for pattern in allow for word in ("--allow-missing", pattern)]
    return main([*map(str, arguments), "--config-file", str(CONFIG), *allowed, *R18])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_writes_what_was_used(published, tmp_path, capsys, suffix):
    output = tmp_path / f"native{suffix}"
    assert run(published, output, allow=NEW) == 0
    printed = capsys.readouterr().out
    assert "weights of origin torchvision" in printed and re.search(rf"used\s+{TENSORS}", printed)
    found = read_tensors(output)
    assert len(found) == TENSORS and all(name.startswith("backbone.bottom_up.") for name in found)
    expected = read_tensors(published)["layer3.1.conv2.weight"]
    assert torch.equal(found["backbone.bottom_up.res4.1.conv2.weight"], expected)
    assert run(output, tmp_path / "again.pth", allow=NEW) == 0
    again = read_tensors(tmp_path / "again.pth")
    assert found.keys() == again.keys() and all(torch.equal(found[k], v) for k, v in again.items())


def test_leftovers_are_an_error(published, tmp_path, capsys):
    assert run(published, tmp_path / "x.pth", allow=NEW[1:]) == 3
    captured = capsys.readouterr()
    assert "16 tensors have no counterpart" in captured.err and "backbone.fpn_lateral2.*" in captured.err
    assert "missing" in captured.out and not list(tmp_path.iterdir())


def test_wrong_origin_and_wrong_file(published, tmp_path, capsys):
    assert run(published, tmp_path / "x.pth", "--origin", "vit", allow=NEW) == 3
    assert "not one tensor of origin vit" in capsys.readouterr().err
    assert run(tmp_path / "absent.pth", tmp_path / "x.pth", allow=NEW) == 3
    assert "absent.pth: no such file" in capsys.readouterr().err
    assert run(published, tmp_path / "x.bin", allow=NEW) == 3
    assert ".safetensors or .pth" in capsys.readouterr().err


def test_reversed_channels(published, tmp_path):
    assert run(published, tmp_path / "bgr.pth", "--reverse-channels", allow=NEW) == 0
    expected = read_tensors(published)["conv1.weight"].flip(1)
    found = read_tensors(tmp_path / "bgr.pth")["backbone.bottom_up.stem.conv1.weight"]
    assert torch.equal(found, expected)


def test_views_are_written_alone(tmp_path):
    large = torch.arange(1000.0)
    for suffix in (".pth", ".safetensors"):
        write_weights(tmp_path / f"x{suffix}", {"a": large[::10], "b": large[:10]}, "native")
        assert (tmp_path / f"x{suffix}").stat().st_size < 3000
        assert torch.equal(read_tensors(tmp_path / f"x{suffix}")["a"], large[::10])
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_weights(tmp_path / "absent" / "x.pth", {"a": large}, "native")


def test_list_of_origins(capsys):
    assert main(["--list-origins"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines()[2:]] == list(SOURCES)
    document = ROOT / "nlnet_d2/checkpoint/sources/README.md"
    assert printed in document.read_text(), "write the table anew: tools/convert_checkpoint.py --list-origins"


def test_arguments_are_needed(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["only.pth"])
    assert exit_.value.code == 2 and "--config-file are needed" in capsys.readouterr().err
