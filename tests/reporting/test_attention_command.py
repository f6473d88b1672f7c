"""Pictures of attention from the command line: a checkpoint and a picture alone."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from small_videos import write_video
from tiny_run import CONFIG, ROOT

from nlnet_d2.inference.config import predict_config
from nlnet_d2.reporting.attention_command import main

TINY_VIT = f"""
_BASE_: {CONFIG}
MODEL:
  BACKBONE: {{NAME: build_vit_simple_pyramid_backbone}}
  CONTEXT: {{BLOCKS: []}}
  VIT: {{IMG_SIZE: 64, EMBED_DIM: 16, DEPTH: 2, NUM_HEADS: 2, WINDOW_SIZE: 2, GLOBAL_BLOCKS: [1]}}
  FPN: {{NORM: LN}}
DATASETS: {{TRAIN: [], TEST: []}}
"""
TINY_MVIT = f"""
_BASE_: {CONFIG}
MODEL:
  BACKBONE: {{NAME: build_mvit_fpn_backbone}}
  CONTEXT: {{BLOCKS: []}}
  MVIT: {{IMG_SIZE: 64, EMBED_DIM: 8, DEPTHS: [1, 1, 1, 1], WINDOW_SIZE: 8}}
  FPN: {{NORM: LN}}
DATASETS: {{TRAIN: [], TEST: []}}
"""
TINY_RESNET = f"""
_BASE_: {CONFIG}
DATASETS: {{TRAIN: [], TEST: []}}
"""
BLOCKS_IN_HEAD = (
    TINY_RESNET
    + """
MODEL:
  MASK_ON: False
  KEYPOINT_ON: True
  ROI_KEYPOINT_HEAD:
    NAME: ContextKeypointHead
    CONV_DIMS: [16, 16]
    BLOCKS: [{NAME: NonLocal, AT: {convs: [1]}}]
"""
)
TINY_CLIPS = f"""
_BASE_: {ROOT}/configs/ava/Base-Slow.yaml
MODEL:
  RESNETS: {{DEPTH: 14, STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 8, RES2_OUT_CHANNELS: 16}}
  CONTEXT: {{BLOCKS: [{{NAME: NonLocal, AT: {{res4: [0]}}}}]}}
  ACTION_HEAD: {{NUM_CLASSES: 3}}
DATASETS: {{TRAIN: [], TEST: []}}
INPUT:
  CLIP: {{NUM_FRAMES: 4, STRIDE: 2, SIZE_TEST: 64}}
"""


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    """A function: config text -> folder with config.yaml and model_final.pth of random weights."""

    def write(text: str):
        folder = tmp_path_factory.mktemp("run")
        (folder / "config.yaml").write_text(text)
        torch.manual_seed(0)
        model = build_model(predict_config(str(folder / "config.yaml"), ["MODEL.DEVICE", "cpu"]))
        torch.save({"model": model.state_dict()}, folder / "model_final.pth")
        return folder

    return write


@pytest.fixture(scope="module")
def resnet(output_dir):
    return output_dir(TINY_RESNET)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    return path


def draw(folder, source, output, *flags: str) -> int:
    return main(
        [
            "--input",
            str(source),
            "--weights",
            str(folder / "model_final.pth"),
            "--output",
            str(output),
            *flags,
        ]
    )


@pytest.mark.parametrize("text", [TINY_RESNET, TINY_VIT, TINY_MVIT], ids=["resnet", "vit", "mvit"])
def test_pictures_and_numbers(output_dir, picture, tmp_path, text):
    out = tmp_path / "out"
    assert draw(output_dir(text), picture, out, "--point", "10", "20", "--point", "50", "40") == 0
    for name in ("query1.png", "query2.png"):
        assert np.asarray(Image.open(out / name)).std() > 10
    numbers = json.loads((out / "attention.json").read_text())
    assert numbers["points"] == [[10, 20], [50, 40]]
    for block in numbers["blocks"].values():
        assert 0 <= block["cosine"] <= 0.5
        assert len(block["strongest"]) == 2


@pytest.mark.parametrize("context", ["", "  CONTEXT: {BLOCKS: []}\n"], ids=["backbone too", "head only"])
def test_blocks_of_heads_are_named(output_dir, picture, tmp_path, capsys, caplog, context):
    """They see one object each, and are not in the pictures."""
    code = draw(output_dir(BLOCKS_IN_HEAD + context), picture, tmp_path / "out", "--point", "10", "20")
    assert code == (2 if context else 0)
    messages = caplog.text + capsys.readouterr().err
    assert "outside of the backbone: roi_heads.keypoint_head.conv_fcn_relu2.1; record_attention" in messages
    assert ("there is nothing to draw" in messages) == bool(context)


def test_clips(output_dir, tmp_path):
    video = tmp_path / "video.mp4"
    write_video(video, [i / 15 for i in range(30)])
    out = tmp_path / "out"
    assert draw(output_dir(TINY_CLIPS), video, out, "--point", "10", "20", "--second", "1") == 0
    (block,) = json.loads((out / "attention.json").read_text())["blocks"].values()
    assert len(block["grid"]) == 3
    assert np.asarray(Image.open(out / "query1.png")).std() > 10


def test_objects_are_looked_from(resnet, picture, tmp_path):
    out = tmp_path / "out"
    options = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    assert draw(resnet, picture, out, "--objects", "2", "--min-score", "0", *options) == 0
    points = json.loads((out / "attention.json").read_text())["points"]
    assert len(points) == 2
    assert all(0 <= x <= 64 and 0 <= y <= 48 for x, y in points)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--point", "65", "3"), "--point 65 3 is outside the picture, which is 64 x 48 pixels"),
        (("--point", "1", "1", "--blocks", "nothing"), "there are bottom_up.res4.1.after_add.0"),
        (("--min-score", "0.99"), "choose a point with --point X Y, or lower --min-score"),
        (("--config-file", "absent.yaml"), "there is no config absent.yaml"),
    ],
)
def test_mistakes(resnet, picture, tmp_path, capsys, flags, message):
    assert draw(resnet, picture, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_recipes_go_by_name(resnet, picture, tmp_path, capsys):
    """The recipe is found: it is the weights that do not fit it."""
    flags = ("--config-file", "mask_rcnn_vitdet_shapes", "--point", "1", "1")
    assert draw(resnet, picture, tmp_path / "out", *flags) == 3
    assert "model_final.pth" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [(), ("--point", "1", "1")])
def test_a_model_without_attention(output_dir, picture, tmp_path, capsys, flags):
    folder = output_dir(TINY_RESNET + "MODEL: {CONTEXT: {BLOCKS: []}}\n")
    assert draw(folder, picture, tmp_path / "out", *flags) == 2
    assert "FPN has no module with attention: there is nothing to draw" in capsys.readouterr().err


def test_clips_need_a_point_or_a_detector(output_dir, tmp_path, capsys):
    video = tmp_path / "video.mp4"
    write_video(video, [i / 15 for i in range(8)])
    folder = output_dir(TINY_CLIPS)
    assert draw(folder, video, tmp_path / "out") == 2
    assert "--point X Y" in capsys.readouterr().err
    assert draw(folder, video, tmp_path / "out", "--point", "1", "1", "--second", "99") == 3
    assert "--second 99 is outside" in capsys.readouterr().err
    assert draw(folder, tmp_path / "a.jpg", tmp_path / "out", "--point", "1", "1") == 2
    assert "a.jpg: this model takes clips; name a video" in capsys.readouterr().err


def test_damaged_picture_and_weights(resnet, picture, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:100])
    assert draw(resnet, broken, tmp_path / "out", "--point", "1", "1") == 3
    assert "broken.png" in capsys.readouterr().err
    folder = shutil.copytree(resnet, tmp_path / "copy")
    (folder / "model_final.pth").write_bytes(b"no checkpoint")
    assert draw(folder, picture, tmp_path / "out", "--point", "1", "1") == 3
    assert "model_final.pth" in capsys.readouterr().err
