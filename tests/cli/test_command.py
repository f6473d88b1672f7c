"""The table of sub-commands, and the small ones: models and doctor."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nlnet_d2.cli import COMMANDS
from nlnet_d2.config.zoo import CONFIGS, find_config, list_configs, table_rows
from nlnet_d2_command import doctor


def command_without(*modules, arguments):
    """``nlnet-d2`` in a process where these modules cannot be imported; that command is all it imports."""
    script = (
        f"import sys\nsys.modules.update(dict.fromkeys({modules}))\n"
        f"from nlnet_d2_command import main\nsys.exit(main({arguments}))"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_there_and_explains_itself(nlnet, command):
    code, out, _ = nlnet(command, "--help")
    assert code == 0 and f"usage: nlnet-d2 {command}" in out


@pytest.mark.parametrize("command", ["train", "eval"])
def test_help_speaks_of_what_the_command_takes(nlnet, command):
    _, out, _ = nlnet(command, "--help")
    assert "pairs KEY VALUE" in out and "LazyConfig" not in out


def test_a_long_example_stands_on_several_lines(nlnet):
    _, out, _ = nlnet("evaluate-ava", "--help")
    assert re.search(r"--detections ava_detections.csv \\\n +--labelmap ", out)


@pytest.mark.parametrize("folder", ["nlnet_d2/cli", "tools"])
def test_help_is_the_same_in_every_version_of_python(folder):
    """From 3.13 on, a docstring loses the blanks that all lines after its first begin with."""
    for path in (Path(__file__).parents[2] / folder).glob("*.py"):
        text = ast.get_docstring(ast.parse(path.read_text()), clean=False)
        assert inspect.cleandoc(text) == text.strip(), path


def test_without_a_command_all_are_listed(nlnet):
    for arguments in ([], ["--help"]):
        code, out, _ = nlnet(*arguments)
        assert code == 0 and all(f"  {command} " in out for command in COMMANDS)


def test_misspelt_command(nlnet):
    assert nlnet("trian") == (2, "", "error: nlnet-d2 has no command 'trian'; did you mean train?\n")
    code, _, err = nlnet("xyzzy")
    assert code == 2 and "there are train, eval," in err


def test_output_that_nobody_reads_to_its_end():
    """As of ``nlnet-d2 models | head -1``: no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "nlnet_d2.cli", "models"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")


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
    with pytest.raises(FileNotFoundError, match=f"did you mean {tmp_path / path.name}"):
        find_config(str(tmp_path))
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


def test_doctor_on_a_detectron2_that_was_not_built(nlnet, monkeypatch):
    """As a checkout on PYTHONPATH: it can be imported, and there is no detectron2._C."""
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "detectron2._C" else find(name)
    )
    assert re.search("detectron2 .* no compiled operators", nlnet("doctor")[1])


@pytest.mark.parametrize("module", ["detectron2", "torch", "fvcore"])
def test_doctor_works_without_what_it_looks_for(module):
    """Each row is there as far as it can be, and names the remedy; no traceback."""
    ended = command_without(module, arguments=["doctor"])
    assert ended.returncode == 2 and not ended.stderr
    rows = dict(re.findall(r"^(\S+) +(ok|absent|MISSING) +", ended.stdout, re.M))
    assert rows["numpy"] == rows["Python"] == rows["disk"] == "ok"
    if module == "detectron2":
        assert rows["torch"] == "ok" and rows["detectron2"] == "MISSING" and "nlnet_d2" not in rows
        ((python, installer),) = re.findall(r"^ +(.+) (.+install_detectron2\.py)$", ended.stdout, re.M)
        assert os.path.normpath(python) == os.path.normpath(sys.executable)
        assert Path(installer).is_file() and ended.stdout.endswith("\nmissing: detectron2\n")
    else:
        assert rows["nlnet_d2"] == "MISSING" and f"cannot be imported: import of {module}" in ended.stdout
        assert ("get it with: pip install torch torchvision" in ended.stdout) == (module == "torch")


def test_a_command_without_its_packages_sends_to_the_doctor():
    ended = command_without("detectron2", arguments=["models"])
    assert ended.returncode == 2 and "Traceback" not in ended.stderr and not ended.stdout
    assert ended.stderr.startswith("error: nlnet_d2 extends detectron2, which is not installed. Get it,")
    assert ended.stderr.endswith("`nlnet-d2 doctor` says what is missing, and how to get it\n")


def test_the_list_of_commands_is_printed_without_importing_anything():
    ended = command_without("torch", "detectron2", "numpy", "nlnet_d2", arguments=["--help"])
    assert ended.returncode == 0 and "usage: nlnet-d2 COMMAND" in ended.stdout and not ended.stderr
    ended = command_without("torch", "nlnet_d2", arguments=["trian"])
    assert ended.returncode == 2 and "did you mean train?" in ended.stderr
