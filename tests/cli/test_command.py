"""The table of sub-commands, and the small ones: models and doctor."""

import importlib
import json

import pytest

from nlnet_d2.cli import COMMANDS, benchmark, doctor
from nlnet_d2.config.zoo import CONFIGS, find_config, list_configs, table_rows


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "benchmark"])
def test_every_command_is_there_and_explains_itself(nlnet, command):
    assert callable(importlib.import_module(f"nlnet_d2.cli.{command.replace('-', '_')}").main)
    code, out, _ = nlnet(command, "--help")
    assert code == 0 and f"usage: nlnet-d2 {command}" in out


def test_benchmarks_are_run_in_a_checkout_only(nlnet, monkeypatch, tmp_path):
    tool = tmp_path / "benchmark.py"
    monkeypatch.setattr(benchmark, "TOOL", tool)
    code, _, err = nlnet("benchmark", "blocks")
    assert code == 2 and "part of the repository, not of the wheel" in err
    tool.write_text("import sys\nsys.exit(len(sys.argv))\n")
    assert nlnet("benchmark", "blocks", "--quick")[0] == 3


def test_without_a_command_all_are_listed(nlnet):
    for arguments in ([], ["--help"]):
        code, out, _ = nlnet(*arguments)
        assert code == 0 and all(f"  {command} " in out for command in COMMANDS)


def test_misspelt_command(nlnet):
    assert nlnet("trian") == (2, "", "error: nlnet-d2 has no command 'trian'; did you mean train?\n")
    code, _, err = nlnet("xyzzy")
    assert code == 2 and "there are train, eval," in err


def test_list_of_models(nlnet):
    code, out, _ = nlnet("models", "coco/*_nl_*")
    assert code == 0 and "coco/mask_rcnn_nl_R101_FPN.yaml" in out and "355.1" in out
    assert "mvitv2" not in out and "Base-" not in out
    _, out, _ = nlnet("models")
    assert f"{len(list_configs())} recipes" in out and len(list_configs()) > 100


@pytest.mark.parametrize("name", ["mask_rcnn_nl_R50_FPN", "coco/mask_rcnn_nl_R50_FPN.yaml"])
def test_one_model(nlnet, name):
    """Though the names of others begin with it."""
    code, out, _ = nlnet("models", name)
    assert code == 0 and "arXiv 1711.07971" in out and "{NAME: NonLocal, AT: {res4: [-2]}}" in out


def test_unknown_model(nlnet):
    code, out, err = nlnet("models", "mask_rcnn_nl_R50_FNP")
    assert code == 2 and not out and "did you mean coco/mask_rcnn_nl_R50_FPN.yaml or" in err


def test_configs_are_found_by_path_name_and_stem(tmp_path, monkeypatch):
    path = CONFIGS / "coco" / "mask_rcnn_nl_R50_FPN.yaml"
    for name in (path, "coco/mask_rcnn_nl_R50_FPN.yaml", "mask_rcnn_nl_R50_FPN", f"configs/coco/{path.name}"):
        assert find_config(str(name)).samefile(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / path.name).write_text("SEED: 1\n")
    assert find_config(path.name).samefile(tmp_path / path.name), "a file goes before a recipe"
    with pytest.raises(FileNotFoundError, match=r"did you mean coco/mask_rcnn_vitdet_b_100ep\.yaml or"):
        find_config("mask_rcnn_vitdet_b_10ep")
    with pytest.raises(FileNotFoundError, match="`nlnet-d2 models` lists"):
        find_config("xyzzy.yaml")


def test_table_has_a_row_for_every_recipe():
    rows = table_rows()
    assert sorted(rows) == list_configs()
    assert rows["coco/mask_rcnn_nl_R50_FPN.yaml"]["params (M)"] == "46.44"
    assert rows["coco/mask_rcnn_nl_R50_FPN.yaml"]["config"] == "coco/mask_rcnn_nl_R50_FPN.yaml"


def test_doctor_says_what_is_there(nlnet):
    code, out, _ = nlnet("doctor")
    assert code == 0 and "everything that is needed is there" in out
    for part in ("torch ", "detectron2 ", "CPU ", "DETECTRON2_DATASETS", "coco_2017_val", str(CONFIGS)):
        assert part in out


def test_doctor_says_what_is_missing(nlnet, monkeypatch):
    monkeypatch.setitem(doctor.NEEDED, "no_such_module", "pip install it")
    monkeypatch.setitem(doctor.OPTIONAL, "no_other_module", ("dreaming", "pip install dream"))
    code, out, _ = nlnet("doctor")
    assert code == 2 and out.endswith("missing: no_such_module\n")
    assert "get it with: pip install it" in out and "get it with: pip install dream (dreaming)" in out


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("0.6+nlnet1", "the repaired wheel"),
        ("0.6", r"installed from https://github.com/facebookresearch/detectron2 0a1b2c"),
    ],
)
def test_doctor_says_where_detectron2_is_from(nlnet, monkeypatch, version, text):
    class Distribution:
        def __init__(self, name):
            self.version = version

        def read_text(self, name):
            url = "https://github.com/facebookresearch/detectron2"
            return json.dumps({"url": url, "vcs_info": {"commit_id": "0a1b2c"}})

    monkeypatch.setattr(doctor.importlib.metadata, "distribution", Distribution)
    assert text in nlnet("doctor")[1]
