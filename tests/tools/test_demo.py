"""The command line of predictions, from files to files and exit codes."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from echo_models import TINY_ACTIONS, TINY_OBJECTS
from PIL import Image
from small_videos import write_video

from nlnet_d2.data.datasets.ava_files import read_ava_csv
from nlnet_d2.inference import sources
from nlnet_d2.inference.command import main
from nlnet_d2.inference.config import predict_config

ROOT = Path(__file__).parents[2]
LABELS = "".join(f'item {{ name: "act {id_}" id: {id_} }}\n' for id_ in (4, 11, 20))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with weights, a label map, boxes, a video of 3 s, and another cut in the middle."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "labels.pbtxt").write_text(LABELS)
    (folder / "boxes.csv").write_text("film,0,0,0,0.5,1,,0.9\nfilm,2,0,0,0.5,1,,0.9\nfilm,2,0.5,0,1,1,,0.9\n")
    for name, config in (("actions", TINY_ACTIONS), ("objects", TINY_OBJECTS)):
        torch.manual_seed(0)
        model = build_model(predict_config(config))
        torch.save({"model": model.state_dict()}, folder / f"{name}.pth")
    write_video(folder / "film.mp4", [i / 30 for i in range(90)])
    write_video(folder / "film.mkv", [i / 30 for i in range(90)], g=15)
    whole = (folder / "film.mkv").read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "people").mkdir()
    Image.new("RGB", (64, 48), (90, 40, 20)).save(folder / "people" / "a.png")
    Image.new("RGB", (48, 64), (90, 40, 20)).save(folder / "people" / "b.png")
    return folder


def actions(files, *flags, options=()):
    """Exit code of a prediction of actions."""
    config = ["--config-file", TINY_ACTIONS, *map(str, flags)]
    labels = ["--label-map", str(files / "labels.pbtxt")]
    return main([*config, *labels, "MODEL.WEIGHTS", str(files / "actions.pth"), *options])


def number_of_frames(path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_pictures_with_a_broken_one_among_them(files, tmp_path, capfd):
    (tmp_path / "broken.jpg").write_text("no picture")
    inputs = [
        "--input",
        str(files / "people"),
        str(tmp_path / "broken.jpg"),
        "--output",
        str(tmp_path / "out"),
    ]
    options = ["MODEL.WEIGHTS", str(files / "objects.pth"), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    assert main(["--config-file", TINY_OBJECTS, *inputs, *options]) == 3
    said = capfd.readouterr().err
    assert "error: 1 of 3 inputs could not be read to the end: broken.jpg" in said
    assert f"Read and annotated 2 of 3 inputs; results: {tmp_path / 'out' / 'predictions.json'}" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "b.png", "predictions.json"}
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {result["file_name"] for result in results} == {"a.png", "b.png"}


def test_nothing_that_can_be_read(files, tmp_path, capfd):
    (tmp_path / "broken.jpg").write_text("no picture")
    flags = ["--input", str(tmp_path / "broken.jpg"), "--output", str(tmp_path / "out")]
    options = ["MODEL.WEIGHTS", str(files / "objects.pth")]
    assert main(["--config-file", TINY_OBJECTS, *flags, *options]) == 3
    said = capfd.readouterr().err
    assert "Read and annotated 0 of 1 inputs; results: none" in said
    assert "error: 1 of 1 inputs could not" in said
    assert not list((tmp_path / "out").iterdir())


def test_actions_of_people_on_file(files, tmp_path):
    out = tmp_path / "out.mp4"
    assert actions(files, "--video", files / "film.mp4", "--output", out, "--boxes", files / "boxes.csv") == 0
    assert number_of_frames(out) >= 90
    table = read_ava_csv(tmp_path / "out.csv", scored=True)
    assert (
        table.videos == ["film"] and table.second.tolist() == [0, 2, 2] and set(table.action) == {4, 11, 20}
    )
    assert table.box.tolist() == [[0, 0, 0.5, 1], [0, 0, 0.5, 1], [0.5, 0, 1, 1]]


def test_boxes_on_file_need_no_detector(files, tmp_path):
    config = tmp_path / "attached.yaml"
    people = f"{{NAME: FrozenDetector, CONFIG_FILE: {TINY_OBJECTS}}}"
    config.write_text(f"_BASE_: {TINY_ACTIONS}\nMODEL: {{PEOPLE: {people}}}\n")
    command = ["--config-file", str(config), "--video", str(files / "film.mp4"), "--output", str(tmp_path)]
    weights = ["MODEL.WEIGHTS", str(files / "actions.pth")]
    assert main([*command, *weights]) == 3, "the detector's weights are nowhere"
    assert main([*command, "--boxes", str(files / "boxes.csv"), *weights]) == 0


def test_actions_of_people_whom_a_second_detector_finds(files, tmp_path):
    detector = ["--people-config", TINY_OBJECTS, "--people-weights", files / "objects.pth"]
    options = ["MODEL.PEOPLE.SCORE_THRESH", "0.0"]
    flags = ["--video", files / "film.mp4", "--output", tmp_path, *detector, "--every", "0.5"]
    assert actions(files, *flags, options=options) == 0
    assert number_of_frames(tmp_path / "film.mp4") >= 90
    assert (tmp_path / "predictions.csv").is_file()


def test_a_truncated_video_is_annotated_as_far_as_it_goes(files, tmp_path, capfd):
    (tmp_path / "boxes.csv").write_text("cut,0,0,0,1,1,,1\ncut,1,0,0,1,1,,1\ncut,2.5,0,0,1,1,,1\n")
    flags = [
        "--video",
        files / "cut.mkv",
        "--output",
        tmp_path / "out.mp4",
        "--boxes",
        tmp_path / "boxes.csv",
    ]
    assert actions(files, *flags) == 3
    assert "error: 1 of 1 inputs could not be read to the end: cut.mkv" in capfd.readouterr().err
    assert 20 < number_of_frames(tmp_path / "out.mp4") < 80
    assert read_ava_csv(tmp_path / "out.csv", scored=True).second.tolist() == [0]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--video", "{0}/absent.mp4", "--boxes", "{0}/boxes.csv"], 3, "absent.mp4: expected a video"),
        (
            ["--video", "{0}/labels.pbtxt", "--boxes", "{0}/boxes.csv"],
            3,
            "labels.pbtxt: expected a video",
        ),
        (["--input", "{0}/people", "--boxes", "{0}/boxes.csv"], 2, "a.png: an action model needs a video"),
        (["--video", "{0}/film.mp4"], 2, "nobody says where the people are"),
        (["--video", "{0}/film.mp4", "--people-config", "C"], 2, "--people-config with --people-weights"),
        (["--video", "{0}/film.mp4", "--boxes", "{0}/none.csv"], 3, "none.csv"),
        (["--video", "{0}/film.mp4", "--boxes", "{0}/labels.pbtxt"], 3, "labels.pbtxt:1"),
        (
            ["--video", "{0}/film.mp4", "--people-config", "C", "--people-weights", "W"],
            2,
            "CONFIG_FILE: 'C' is neither",
        ),
    ],
)
def test_what_is_wrong_is_said(files, tmp_path, capfd, flags, code, message):
    given = [flag.format(files) for flag in flags]
    assert actions(files, *given, "--output", tmp_path / "out") == code
    assert message in capfd.readouterr().err
    assert not list(tmp_path.rglob("*.mp4"))


def test_a_model_of_pictures_is_given_clips(files, tmp_path, capfd):
    flags = ["--video", str(files / "film.mp4"), "--output", str(tmp_path)]
    assert (
        main(
            [
                "--config-file",
                TINY_OBJECTS,
                *flags,
                "MODEL.WEIGHTS",
                str(files / "objects.pth"),
            ]
        )
        == 2
    )
    assert "--video is for clips, but GeneralizedRCNN takes pictures" in capfd.readouterr().err


class Webcam:
    """What stands for OpenCV's: ten pictures, a tenth of a second apart, then somebody interrupts."""

    def __init__(self, number):
        self.left = 10

    def read(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return True, np.full((48, 64, 3), 20 * self.left, np.uint8)

    def release(self):
        pass


@pytest.fixture
def webcam(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(cv2, "VideoCapture", Webcam)
    monkeypatch.setattr(sources, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 10))


def test_objects_before_a_webcam(files, tmp_path, capfd, webcam):
    flags = ["--config-file", TINY_OBJECTS, "--input", "0", "--output", str(tmp_path / "out")]
    assert main([*flags, "MODEL.WEIGHTS", str(files / "objects.pth")]) == 130
    said = capfd.readouterr().err
    assert f"Read and annotated 1 of 1 inputs; results: {tmp_path / 'out' / 'predictions.json'}" in said
    assert said.endswith("interrupted\n")
    assert number_of_frames(tmp_path / "out" / "camera_0.mp4") == 10
    json.loads((tmp_path / "out" / "predictions.json").read_text())


def test_actions_before_a_webcam(files, tmp_path, webcam):
    detector = ["--people-config", TINY_OBJECTS, "--people-weights", files / "objects.pth"]
    flags = ["--input", "0", "--output", tmp_path / "live.mp4", "--every", "0.2", *detector]
    assert actions(files, *flags, options=["MODEL.PEOPLE.SCORE_THRESH", "0.0"]) == 130
    assert number_of_frames(tmp_path / "live.mp4") == 5, "key frames whose clips had come to their end"
    assert (tmp_path / "live.csv").is_file()


def test_weights_that_are_not_there(files, tmp_path, capfd):
    flags = ["--input", str(files / "people"), "--output", str(tmp_path)]
    assert main(["--config-file", TINY_OBJECTS, *flags, "MODEL.WEIGHTS", "absent.pth"]) == 3
    assert "absent.pth" in capfd.readouterr().err
    flags = ["--video", files / "film.mp4", "--output", tmp_path]
    detector = ["--people-config", TINY_OBJECTS, "--people-weights", tmp_path / "none.pth"]
    assert actions(files, *flags, *detector) == 3
    assert "none.pth" in capfd.readouterr().err


def test_the_tool_says_how_it_is_used():
    command = [sys.executable, str(ROOT / "tools" / "demo.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--people-weights" in shown and "predictions.csv (AVA's format)" in shown
