"""The wheel alone, outside the repository: recipes, command line and a training."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("nlnet_d2", "nlnet_d2_command", "configs", "tools")
SOURCES = (*FOLDERS, "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, because setuptools leaves folders beside its sources."""
    copy, output = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", str(output)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True)
    (path,) = output.glob("nlnet_d2-*.whl")
    return path


@pytest.fixture
def installed(wheel, tmp_path):
    """Runs Python on the installed wheel, in an empty folder."""
    options = ["--quiet", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    (tmp_path / "empty").mkdir()

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path / "empty",
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def test_every_file_of_the_package_and_every_recipe_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in ROOT.glob("nlnet_d2*/**/*.py")}
    recipes = {f"nlnet_d2/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.*")}
    assert sources | recipes <= names
    assert any(name.endswith("share/nlnet_d2/install_detectron2.py") for name in names)
    assert not any("test" in name for name in names)


def test_recipes_are_found_without_the_repository(installed):
    ended = installed("-m", "nlnet_d2.cli", "models", "mask_rcnn_nl_R50_FPN")
    assert ended.returncode == 0, ended.stderr
    assert "/site/nlnet_d2/configs/coco/mask_rcnn_nl_R50_FPN.yaml" in ended.stdout


@pytest.mark.slow
def test_a_training_of_the_command_line(installed, tmp_path):
    script = str(tmp_path / "site" / "bin" / "nlnet-d2")
    data = ["DATASETS.TRAIN", "['shapes_val']", "DATASETS.TEST", "[]"]
    options = [*data, "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", "run"]
    ended = installed(script, "train", "--config-file", "mask_rcnn_nl_shapes", *options)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "empty" / "run" / "model_final.pth").exists()
