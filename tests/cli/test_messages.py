"""What a mistake is answered with: the exit code, the key, and the remedy. No traceback."""

import pickle
import tempfile

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_run import CLASSES, CONFIG, arguments

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
BLOCK = "[{'NAME': 'NonLocl', 'AT': {'res4': [-2]}}]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.WEIGHT", "x"], "unknown key MODEL.WEIGHT; did you mean MODEL.WEIGHTS"),
        (["SOLVER.MAXITER", "9"], "unknown key SOLVER.MAXITER; did you mean SOLVER.MAX_ITER"),
        (["MODEL.MASK_ON", "1"], "MODEL.MASK_ON takes bool (now True), got int 1; write True or False"),
        (
            ["MODEL.BACKBONE.NAME", "build_contxt_resnet_fpn_backbone"],
            "MODEL.BACKBONE.NAME: nothing is registered as 'build_contxt_resnet_fpn_backbone'; did you mean "
            "build_context_resnet_fpn_backbone",
        ),
        (["MODEL.ROI_HEADS.NAME", "StandartROIHeads"], "did you mean StandardROIHeads"),
        (["MODEL.CONTEXT.BLOCKS", BLOCK], "did you mean NonLocal"),
        (
            ["DATASETS.TRAIN", "['shapes_trian']"],
            "no data set is named 'shapes_trian'; did you mean shapes_train",
        ),
        (["SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH = 0 must be a positive multiple of 1 (processes)"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]"], "cannot be built: Got sizes of length 2 in anchor"),
        (
            ["MODEL.RPN.IN_FEATURES", "['p3', 'p9']"],
            "the model of this config has nothing named 'p9', see MODEL.RPN.IN_FEATURES",
        ),
        (["MODEL.ROI_HEADS.IN_FEATURES", "['q2']"], "nothing named 'q2', see MODEL.ROI_HEADS.IN_FEATURES"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "nothing named 'p7', see MODEL.RETINANET.IN_FEATURES"),
        (
            ["SOLVER.LR_SCHEDULER_NAME", "Cosine"],
            "SOLVER: the schedule of this config cannot be built: ",
        ),
        (["OUTPUT_DIR", CONFIG], "OUTPUT_DIR: expected a place for a folder, got "),
        pytest.param(
            ["MODEL.DEVICE", "cuda"],
            "PyTorch sees no CUDA device here: leave it out, or add MODEL.DEVICE cpu",
            marks=no_gpu,
        ),
    ],
)
def test_wrong_option(nlnet, tiny_data, tmp_path, options, message):
    code, _, err = nlnet("train", *arguments(tiny_data, tmp_path, *options))
    assert code == 2 and message in err and "\nerror: " in f"\n{err}" and "Traceback" not in err


def test_data_that_cannot_be_evaluated_are_named_before_the_training(nlnet, tiny_data, tmp_path):
    DatasetCatalog.register("plain_records", list)
    MetadataCatalog.get("plain_records").thing_classes = list(CLASSES)
    try:
        options = "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "['plain_records']"
        code, _, err = nlnet("train", *arguments(tiny_data, tmp_path / "run", *options))
    finally:
        DatasetCatalog.remove("plain_records")
        MetadataCatalog.remove("plain_records")
    assert code == 2 and "plain_records has evaluator_type None in its metadata, coco and ava can be" in err
    assert not (tmp_path / "run" / "metrics.json").exists(), "no training began"


@pytest.mark.parametrize("place", ["/dev/full", "."])
def test_what_cannot_be_written(nlnet, tmp_path, place):
    """A full disk, and a folder where a file is to be."""
    with open(tmp_path / "people.pkl", "wb") as file:
        pickle.dump({"video,0902": np.zeros((1, 5), np.float32)}, file)
    code, _, err = nlnet("prepare-ava", "--convert-boxes", tmp_path / "people.pkl", place)
    assert code == 3 and err.startswith("error: [Errno ") and "Traceback" not in err


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_disk_that_is_full_from_the_start(nlnet, tiny_data, tmp_path, monkeypatch, command):
    with open("/dev/full", "wb") as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: full)
        code, out, err = nlnet(command, *arguments(tiny_data, tmp_path))
    message = f"error: OUTPUT_DIR {tmp_path} cannot be written to: [Errno 28] No space left on device\n"
    assert (code, out, err) == (3, "", message) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train", "eval", "analyze"])
def test_wrong_recipe(nlnet, command):
    code, _, err = nlnet(command, "--config-file", "mask_rcnn_nl_R50_FNP")
    assert code == 2 and "config file mask_rcnn_nl_R50_FNP: No such file or recipe" in err
    nearest = err.partition("did you mean ")[2]
    assert nearest.startswith("coco/mask_rcnn_nl_R50_FPN.yaml or ") and nearest.count(".yaml") == 3


@pytest.mark.parametrize(("setting", "text"), [("/nowhere", "is '/nowhere'"), (None, "is not set")])
def test_absent_data(nlnet, tmp_path, monkeypatch, setting, text):
    """The value of DETECTRON2_DATASETS, what is expected, and where to get it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    if setting:
        monkeypatch.setenv("DETECTRON2_DATASETS", setting)
    data = ["DATASETS.TRAIN", "['coco_2017_val']", "DATASETS.TEST", "[]", "OUTPUT_DIR", str(tmp_path)]
    code, _, err = nlnet("train", "--config-file", CONFIG, *data)
    assert code == 3 and f"DETECTRON2_DATASETS, which {text}" in err
    assert (
        "instances_val2017.json" in err and "val2017/*" in err and "https://cocodataset.org/#download" in err
    )


def test_no_weights_to_evaluate(nlnet, tiny_data, tmp_path):
    code, _, err = nlnet("eval", *arguments(tiny_data, tmp_path))
    assert code == 3 and "needs weights: MODEL.WEIGHTS, or --resume" in err
