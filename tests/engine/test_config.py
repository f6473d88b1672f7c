"""What a wrong config or command line says."""

import json
import socket

import pytest
import torch
from tiny_run import CONFIG, arguments

from nlnet_d2.analysis.zoo import read_config
from nlnet_d2.data.errors import DataError
from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.errors import ConfigError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.fixture
def load(tiny_data, tmp_path):
    def load(*options, flags=()):
        return load_config(
            argument_parser().parse_args(arguments(tiny_data, tmp_path, *options, flags=flags))
        )

    return load


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.WEIGHT", "x"], r"command line: unknown key MODEL\.WEIGHT; did you mean MODEL\.WEIGHTS"),
        (["MODEL.XYZZY.QQ", "x"], r"unknown key MODEL\.XYZZY\.QQ; MODEL\.XYZZY has no such section"),
        (["MODEL.MASK_ON", "1"], r"MODEL\.MASK_ON takes bool .* got int 1; write True or False"),
        (["SOLVER.BASE_LR", "1"], r"SOLVER\.BASE_LR takes float .* write it with a point"),
        (["SEED"], r"pairs KEY VALUE .* odd number of words"),
        (["SEED", "1", "--resume"], r"--resume must come before"),
        (
            ["MODEL.BACKBONE.NAME", "build_context_resnet"],
            r"BACKBONE\.NAME: .*did you mean build_context_resnet_fpn",
        ),
        (
            ["MODEL.META_ARCHITECTURE", "GeneralisedRCNN"],
            r"META_ARCHITECTURE: .*did you mean GeneralizedRCNN",
        ),
        (
            ["MODEL.ROI_HEADS.NAME", "Xyzzy"],
            r"ROI_HEADS\.NAME: .*'Xyzzy'; known: .*StandardROIHeads",
        ),
        (["DATASETS.TRAIN", "['tiny_trian']"], r"DATASETS\.TRAIN: .*'tiny_trian'; did you mean tiny_train"),
        (["DATASETS.TEST", "['xyzzy']"], r"DATASETS\.TEST: .*register your own with --dataset"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "7"], r"NUM_CLASSES is 7, but there are 3 classes in tiny_train"),
        (["MODEL.KEYPOINT_ON", "True"], r"KEYPOINT_ON is True, but .* have no keypoints"),
        (
            ["MODEL.ROI_BOX_HEAD.NORM", "GN", "MODEL.ROI_BOX_HEAD.CONV_DIM", "48"],
            r"ROI_BOX_HEAD\.NORM: GN has 32 groups, which do not divide the 48 channels of .*CONV_DIM",
        ),
        (["MODEL.FPN.NORM", "GNN"], r"FPN\.NORM: 'GNN' is unknown; choose one of BN, .*, GN, LN"),
        (["MODEL.ROI_BOX_HEAD.NORM", "x"], r"ROI_BOX_HEAD\.NORM: 'x' is unknown"),
        (["MODEL.ROI_MASK_HEAD.NORM", "x"], r"ROI_MASK_HEAD\.NORM: 'x' is unknown"),
        (["MODEL.RPN.BBOX_REG_LOSS_TYPE", "l1"], r"RPN\.BBOX_REG_LOSS_TYPE is smooth_l1, .* ciou, got 'l1'"),
        (["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "l1"], r"ROI_BOX_HEAD\.BBOX_REG_LOSS_TYPE is smooth_l1,"),
        (["MODEL.PIXEL_MEAN", "[1.0]"], r"PIXEL_MEAN has one number per channel, 3 for .*FORMAT BGR, got"),
        (
            ["MODEL.PIXEL_STD", "[1.0, 1.0]"],
            r"PIXEL_STD has one number per channel, 3 for .* got \[1\.0, 1\.0\]",
        ),
        (
            ["TEST.EVAL_PERIOD", "1", "TEST.BEST_METRIC", "box/AP"],
            r"BEST_METRIC: tiny_val have metrics of bbox, segm, keypoints, got 'box/AP'",
        ),
        (["SOLVER.AMP.PRECISION", "fp8"], r"AMP\.PRECISION is auto, fp16 or bf16, got 'fp8'"),
        (["INPUT.AUGMENTATION", "lsj"], r"AUGMENTATION is stock, large_scale_jitter or crop_or_resize, got"),
        (["INPUT.RANDOM_FLIP", "False"], r"RANDOM_FLIP takes str"),
        (["INPUT.RANDOM_FLIP", "left"], r"RANDOM_FLIP is horizontal, vertical or none, got 'left'"),
        (["INPUT.MASK_FORMAT", "rle"], r"MASK_FORMAT is polygon or bitmask, got 'rle'"),
        (["MODEL.RPN.HEAD_NAME", "StandardRPN"], r"RPN\.HEAD_NAME: .*did you mean StandardRPNHead"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], r"CHECKPOINT_PERIOD is 1 or more, got 0"),
        (["TEST.PATIENCE", "5"], r"PATIENCE counts evaluations: set TEST\.EVAL_PERIOD"),
        (["MODEL.DEVICE", "gpu"], r"MODEL\.DEVICE 'gpu': expected cpu or cuda"),
    ],
)
def test_wrong_option(load, options, message):
    with pytest.raises(ConfigError, match=message):
        load(*options)


@no_gpu
def test_cpu_stands_in_only_where_the_device_is_left_open(load):
    assert load().MODEL.DEVICE == "cpu"
    with pytest.raises(ConfigError, match=r"MODEL\.DEVICE is cuda, but .* add MODEL\.DEVICE cpu"):
        load("MODEL.DEVICE", "cuda")


def test_fp16_on_the_cpu_is_refused(load):
    with pytest.raises(ConfigError, match="fp16 does not train on a CPU: use bf16"):
        load("MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "fp16")


@pytest.mark.parametrize(("mode", "mean"), [("L", [110.0]), ("RGBA", [110.0] * 4)])
def test_not_all_images_have_three_channels(load, mode, mean):
    options = ("INPUT.FORMAT", mode, "MODEL.PIXEL_MEAN", str(mean), "MODEL.PIXEL_STD")
    assert mean == load(*options, str(mean)).MODEL.PIXEL_STD
    with pytest.raises(ConfigError, match=rf"PIXEL_STD has .* {len(mean)} for INPUT\.FORMAT {mode}"):
        load(*options, "[1.0, 1.0, 1.0]")


def test_the_best_of_several_sets_is_found_by_the_task(load):
    options = ("DATASETS.TEST", "['tiny_val', 'tiny_train']", "TEST.EVAL_PERIOD", "1", "TEST.BEST_METRIC")
    assert load(*options, "ema/tiny_val/segm/AP").TEST.BEST_METRIC
    with pytest.raises(ConfigError, match="tiny_val, tiny_train have metrics of"):
        load(*options, "tiny_val/AP")


def test_classes_follow_from_the_data(load):
    cfg = load()
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 3
    assert cfg.is_frozen()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  WEIGTHS: x\n", r"c\.yaml: unknown key MODEL\.WEIGTHS; did you mean MODEL\.WEIGHTS"),
        ("MODEL: [\n", r"c\.yaml: while parsing"),
        ("- 1\n", r"c\.yaml: a config is a map of keys, got list"),
        ("SEED: !!python/object/apply:os.getpid []\n", r"c\.yaml: .*tags that run Python are refused"),
        ("_BASE_: nowhere.yaml\n", r"config file .*nowhere\.yaml: No such file"),
        ("_BASE_: c.yaml\n", r"c\.yaml: its _BASE_ leads back to itself"),
        ("", r"c\.yaml: a config is a map of keys"),
        ("_BASE_: 3\n", r"c\.yaml: a config is a map of keys, its _BASE_ a file name"),
    ],
)
def test_wrong_file(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(argument_parser().parse_args(["--config-file", str(path)]))


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "detectron2"])
def test_configs_are_not_downloaded(tmp_path, monkeypatch, scheme):
    """Also not the base of a base; fvcore would, over http, and from any host."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("went to the network"))
    address, base, config = f"{scheme}://host/c.yaml", tmp_path / "base.yaml", tmp_path / "c.yaml"
    base.write_text(f"_BASE_: {address}\nSEED: 1\n")
    config.write_text("_BASE_: base.yaml\n")
    for path in (config, address):
        with pytest.raises(ConfigError, match=f"{scheme}://host/c.yaml: configs and their _BASE_ are files"):
            load_config(argument_parser().parse_args(["--config-file", str(path)]))
        with pytest.raises(ValueError, match="configs and their _BASE_ are files"):
            read_config(path)


@pytest.mark.parametrize("suffix", ["yaml", "py"])
def test_no_config_runs_code(tmp_path, suffix):
    marker, path = tmp_path / "marker", tmp_path / f"c.{suffix}"
    texts = {
        "yaml": f"MODEL: !!python/object/apply:os.system ['touch {marker}']\n",
        "py": f"import os\nos.system('touch {marker}')\n",
    }
    path.write_text(texts[suffix])
    with pytest.raises(ConfigError, match="tags that run Python are refused|a config is a map of keys"):
        load_config(argument_parser().parse_args(["--config-file", str(path)]))
    assert not marker.exists()


def test_no_option_runs_code(load, tmp_path):
    code = f"__import__('os').system('touch {tmp_path / 'marker'}')"
    cfg = load("OUTPUT_DIR", code)
    assert code == cfg.OUTPUT_DIR
    with pytest.raises(ConfigError, match="SEED takes int"):
        load("SEED", code)
    assert not (tmp_path / "marker").exists()


def test_pickled_proposals_are_refused(load):
    with pytest.raises(ConfigError, match="LOAD_PROPOSALS: files of proposals are pickles"):
        load("MODEL.LOAD_PROPOSALS", "True")


def test_absent_file():
    with pytest.raises(ConfigError, match=r"config file nowhere\.yaml: No such file"):
        load_config(argument_parser().parse_args(["--config-file", "nowhere.yaml"]))


def test_absent_data(tmp_path):
    with pytest.raises(DataError, match=r"data set 'mine': .*nowhere\.json'"):
        args = ["--config-file", str(CONFIG), "--dataset", "mine", "nowhere.json", str(tmp_path)]
        load_config(argument_parser().parse_args(args))


def test_data_can_be_named_in_the_config(tiny_data, tmp_path):
    entry = {"NAME": "from_config", "JSON": str(tiny_data / "val.json"), "IMAGES": str(tiny_data / "val")}
    options = ["DATASETS.REGISTER", str([entry]), "DATASETS.TRAIN", "['from_config']", "DATASETS.TEST", "[]"]
    cfg = load_config(argument_parser().parse_args(["--config-file", str(CONFIG), *options]))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_keypoints_follow_from_the_data_and_need_sigmas(tmp_path):
    names = ["top", "bottom"]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 8, "width": 8}],
        "annotations": [annotation | {"keypoints": [1, 1, 2, 2, 3, 2], "num_keypoints": 2}],
        "categories": [{"id": 1, "name": "post", "keypoints": names, "skeleton": [[1, 2]]}],
    }
    (tmp_path / "posts.json").write_text(json.dumps(content))
    data = ["--dataset", "posts", str(tmp_path / "posts.json"), str(tmp_path)]
    options = ["MODEL.KEYPOINT_ON", "True", "DATASETS.TRAIN", "['posts']", "DATASETS.TEST", "['posts']"]
    command = ["--config-file", str(CONFIG), *data, *options]
    with pytest.raises(ConfigError, match=r"KEYPOINT_OKS_SIGMAS must hold .* 2 keypoints.* \[0\.05, 0\.05\]"):
        load_config(argument_parser().parse_args(command))
    cfg = load_config(argument_parser().parse_args([*command, "TEST.KEYPOINT_OKS_SIGMAS", "[0.05, 0.1]"]))
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 2
