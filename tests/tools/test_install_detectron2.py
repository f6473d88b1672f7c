"""The installer of detectron2: its repairs on a small tree, and what the installed package can do."""

import importlib.metadata
from pathlib import Path

import install_detectron2 as installer
import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils.collect_env import collect_env_info

NOTICE = Path(__file__).parents[2] / "NOTICE"

installed_by_us = pytest.mark.skipif(
    "+nlnet" not in importlib.metadata.version("detectron2"), reason="this detectron2 is another one"
)


@pytest.fixture
def tree(tmp_path):
    """A package with what REPAIRS are about, and nothing else."""
    for file in {repair.file for repair in installer.REPAIRS}:
        path = tmp_path / "detectron2" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(r.old * r.count for r in installer.REPAIRS if r.file == file))
    (tmp_path / "setup.py").write_text("raise SystemExit('needs a compiler')")
    return tmp_path


def test_repairs_replace_every_occurrence(tree):
    installer.repair(tree)
    for repair in installer.REPAIRS:
        text = (tree / "detectron2" / repair.file).read_text()
        assert text.count(repair.new) >= repair.count
        assert repair.old not in text.replace(repair.new, "")
    assert "deform_conv2d" in (tree / "detectron2" / "_C.py").read_text()
    compile((tree / "setup.py").read_text(), "setup.py", "exec")
    assert "build-backend" in (tree / "pyproject.toml").read_text()  # or an old pip asks for bdist_wheel


@pytest.mark.parametrize("change", [lambda text: "", lambda text: text + text], ids=["absent", "too often"])
def test_repair_that_does_not_match_is_an_error_with_file_and_text(tree, change):
    path = tree / "detectron2" / "data" / "transforms" / "transform.py"
    path.write_text(change(path.read_text()))
    with pytest.raises(
        SystemExit, match=r"detectron2/data/transforms/transform.py has \d times 'Image.LINEAR'"
    ):
        installer.repair(tree)


def test_notice_names_what_is_repaired():
    notice = NOTICE.read_text()
    files = {repair.file for repair in installer.REPAIRS}
    table = {line.split()[0] for line in notice.splitlines() if line.split(" ")[0].endswith(".py")}
    assert table == files | {"tools/install_detectron2.py"}
    assert installer.VERSION in notice


def test_failing_command_stops_with_its_words(capfd):
    with pytest.raises(
        SystemExit, match=r"install_detectron2: this command failed: .* -c import nothing_such"
    ):
        installer.run("-c", "import nothing_such")


class Found:
    """An installed distribution as importlib.metadata describes it."""

    def __init__(self, version, files):
        self.version, self.files = version, files

    def read_text(self, name):
        return self.files.get(name)


@pytest.fixture
def discover(monkeypatch, tmp_path):
    """Function that fakes what is installed: version and files by its metadata, text of detectron2.layers."""

    def fake(version, files, layers=""):
        for module, text in {"__init__": "", "modeling": "", "layers": layers}.items():
            path = tmp_path / "detectron2" / f"{module}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Found(version, files))

    return fake


@pytest.mark.parametrize(
    "version, files, expected",
    [
        (installer.VERSION, {"RECORD": ""}, True),
        (installer.VERSION, {}, False),  # pip was killed before it wrote RECORD
        ("0.6+nlnet0", {"RECORD": ""}, False),  # the repairs of yesterday
        ("0.6", {"RECORD": ""}, True),  # another one, which can be imported
    ],
)
def test_what_is_left_alone(discover, version, files, expected):
    discover(version, files)
    assert installer.is_installed() is expected


def test_another_detectron2_that_cannot_be_imported_is_an_error(discover):
    discover("0.6", {"RECORD": ""}, layers="raise ImportError('undefined symbol: _ZN5torch3')")
    with pytest.raises(
        SystemExit, match=r"(?s)detectron2 0.6 is installed, .*undefined symbol.*pip uninstall"
    ):
        installer.is_installed()


def test_model_zoo_has_its_configs():
    path = model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    cfg = get_cfg()
    cfg.merge_from_file(path)
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.SOLVER.MAX_ITER) == (50, 270000)
    assert model_zoo.get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py").train.max_iter == 184375
    with pytest.raises(RuntimeError, match="not available in Model Zoo"):
        model_zoo.get_config_file("no_such.yaml")


def test_export_without_caffe2():
    from detectron2.export import TracingAdapter

    adapter = TracingAdapter(torch.nn.Identity(), [{"image": torch.arange(3)}])
    outputs = adapter(torch.arange(3) + 1)
    assert adapter.outputs_schema(outputs)[0]["image"].tolist() == [1, 2, 3]


def test_mapper_may_return_none():
    numbers = MapDataset(DatasetFromList(list(range(6))), lambda n: None if n % 2 == 0 else n)
    drawn = {numbers[0] for _ in range(20)}
    assert drawn and drawn <= {1, 3, 5}


def test_transforms_do_without_removed_names():
    image = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    extent = T.ExtentTransform((0, 0, 9, 8), (16, 18))  # its default was Image.LINEAR
    assert extent.apply_image(image).shape == (16, 18, 3)


def test_masks_do_without_removed_names():
    square = PolygonMasks([[np.array([1.0, 1, 5, 1, 5, 5, 1, 5])]])
    cropped = square.crop_and_resize(torch.tensor([[0.0, 0, 6, 6]]), 6)
    assert cropped.dtype == torch.bool and cropped.any() and not cropped.all()
    assert BitMasks.from_polygon_masks(square, 8, 8).tensor.sum() == 16
    assert square.nonempty().tolist() == [True]


@installed_by_us
def test_metadata_declare_what_is_imported():
    requirements = {
        text.split(">")[0].split("<")[0].lower() for text in importlib.metadata.requires("detectron2")
    }
    assert {
        "torch",
        "torchvision",
        "numpy",
        "pycocotools",
        "fvcore",
        "iopath",
        "yacs",
        "pillow",
    } <= requirements
    assert {"omegaconf", "hydra-core", "tensorboard", "tabulate", "termcolor", "cloudpickle"} <= requirements
    assert not {"black", "pydot", "future"} & requirements


@installed_by_us
def test_licence_is_installed():
    files = [str(path) for path in importlib.metadata.files("detectron2")]
    assert any(path.endswith("LICENSE") for path in files)


@installed_by_us
def test_environment_report_says_that_operators_are_not_compiled():
    assert "pure-Python stand-in" in collect_env_info()
