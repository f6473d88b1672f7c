"""Predictions from Python: pictures, videos, key frames; what is refused; how much is held in memory."""

import logging
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from echo_models import CLASSES, TINY_ACTIONS, TINY_OBJECTS, Echo, EchoActions
from PIL import Image
from small_videos import SIZE, number_of, write_video
from torch import nn

import nlnet_d2
from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.data import frame_reader
from nlnet_d2.data.clip_mapper import ClipMapper
from nlnet_d2.data.datasets.ava import AvaSource, register_ava
from nlnet_d2.data.errors import DataError
from nlnet_d2.data.frame_reader import VideoFile
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.inference.config import action_classes, object_classes, predict_config
from nlnet_d2.inference.predictor import build_predictor, clip_rate, run
from nlnet_d2.inference.sources import Camera, find_sources


def save_plain(path: Path, colour, size=(40, 30)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.mark.parametrize(("channels", "expected"), [("RGB", 0.8), ("BGR", 0.2), ("L", 67 / 255)])
def test_pictures_become_what_the_model_takes(tmp_path, stock_cfg, channels, expected):
    stock_cfg.INPUT.FORMAT, stock_cfg.INPUT.MIN_SIZE_TEST = channels, 60
    save_plain(tmp_path / "a.png", (204, 0, 51))
    save_plain(tmp_path / "b.png", (0, 0, 0), size=(20, 50))
    model = Echo()
    a, b = nlnet_d2.predict(model, tmp_path, config=stock_cfg)
    assert a.image_size == (30, 40) and a.pred_boxes.tensor.tolist() == [[0, 0, 40, 30]]
    assert a.scores.item() == pytest.approx(expected) and b.scores.item() == 0
    ((first, second),) = model.batches
    assert first["image"].shape == (1 if channels == "L" else 3, 60, 80)
    assert first["image"].dtype == torch.uint8
    assert second["image"].shape[1:] == (150, 60) and (second["height"], second["width"]) == (50, 20)


def test_batches(tmp_path, stock_cfg):
    for i in range(5):
        save_plain(tmp_path / f"{i}.png", (0, 0, 51 * i))
    model = Echo()
    scores = [x.scores.item() for x in nlnet_d2.predict(model, tmp_path, config=stock_cfg, batch_size=2)]
    assert scores == pytest.approx([0, 0.2, 0.4, 0.6, 0.8]), "in the order of the files"
    assert [len(batch) for batch in model.batches] == [2, 2, 1]


def test_every_frame_of_a_video(tmp_path, stock_cfg):
    path = write_video(tmp_path / "film.mp4", [i / 25 for i in range(10)])
    predictions = list(run(build_predictor(Echo(), stock_cfg), find_sources(path)))
    assert [number_of(prediction.image) for prediction in predictions][:10] == list(range(10))
    assert [prediction.second for prediction in predictions][:10] == pytest.approx(np.arange(10) / 25)


def test_a_trained_file_predicts(tmp_path, object_weights):
    """A config file and its weights; the same as the model by itself."""
    save_plain(tmp_path / "a.png", (200, 100, 50))
    any_score = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    cfg = predict_config(TINY_OBJECTS, ["MODEL.WEIGHTS", object_weights, *any_score])
    (found,) = nlnet_d2.predict(cfg, tmp_path / "a.png")
    assert len(found) and found.pred_masks.shape[1:] == (30, 40) and found.pred_boxes.device.type == "cpu"
    without = predict_config(TINY_OBJECTS, any_score)
    (same,) = nlnet_d2.predict(without, tmp_path / "a.png", weights=object_weights)
    (again,) = nlnet_d2.predict(build_predictor(cfg).model, tmp_path / "a.png", config=cfg)
    torch.testing.assert_close(found.scores, same.scores)
    torch.testing.assert_close(found.scores, again.scores)


def test_unreadable_files_are_an_error_when_the_rest_is_done(tmp_path, stock_cfg):
    save_plain(tmp_path / "a.png", (0, 0, 0))
    (tmp_path / "b.png").write_text("no picture")
    save_plain(tmp_path / "c.png", (0, 0, 0))
    found = []
    with pytest.raises(DataError, match="1 of 3 inputs could not be read to the end: b.png"):
        found.extend(nlnet_d2.predict(Echo(), tmp_path, config=stock_cfg))
    assert len(found) == 2


def test_weights_that_are_not_there(tmp_path, weights_of):
    save_plain(tmp_path / "a.png", (0, 0, 0))
    cfg = predict_config(TINY_OBJECTS, ["MODEL.WEIGHTS", ""])
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS is empty"):
        nlnet_d2.predict(cfg, tmp_path)
    other = weights_of(TINY_OBJECTS, "MODEL.ROI_HEADS.NUM_CLASSES", "2")
    cfg = predict_config(TINY_OBJECTS, ["MODEL.WEIGHTS", other])
    with pytest.raises(CheckpointError, match="roi_heads.*OUTPUT_DIR/config.yaml"):
        nlnet_d2.predict(cfg, tmp_path)


def action_cfg(path, *options):
    return predict_config(path, ["MODEL.PEOPLE.NAME", "FrozenDetector", *options])


@pytest.fixture
def film(tmp_path) -> Path:
    return write_video(tmp_path / "film.mp4", [i / 30 for i in range(100)])


def test_key_frames(film):
    """One per second, in full size, in the middle of clips as ClipMapper gives them."""
    model, cfg = EchoActions(), action_cfg(TINY_ACTIONS)
    predictions = list(run(build_predictor(model, cfg, batch_size=3), find_sources(film)))
    assert [p.second for p in predictions] == [0, 1, 2, 3]
    assert [number_of(p.image) for p in predictions] == [0, 30, 60, 90]
    assert [len(batch) for batch in model.batches] == [3, 1]
    height, width = SIZE[1], SIZE[0]
    assert all(p.instances.pred_boxes.tensor.tolist() == [[0, 0, width, height]] for p in predictions)
    inputs = model.batches[0][1]
    video = VideoFile.open(str(film), 30)
    record = {"video": video, "key_frame": 30, "boxes": np.zeros((0, 4), np.float32)}
    record |= {"video_id": "film", "second": 1, "height": height, "width": width}
    expected = ClipMapper(cfg, is_train=False)(record)
    torch.testing.assert_close(inputs["clip"], expected["clip"])
    assert inputs["key_frame"].shape == (3, height, width) and "boxes" not in inputs


def test_more_key_frames(film):
    predictor = build_predictor(EchoActions(), action_cfg(TINY_ACTIONS), every=0.75)
    assert [p.second for p in run(predictor, find_sources(film))] == [0, 0.75, 1.5, 2.25, 3]


def test_a_model_slower_than_the_camera(monkeypatch):
    """It works 5 s on a clip of a quarter: key frames that it misses are left out, or it would never end."""
    model, now = EchoActions(), 0.0

    def frames(self, fps):
        nonlocal now
        while now < 20:
            yield round(now * fps), np.full((8, 8, 3), round(now * 10), np.uint8)
            now += 1 / 30

    def work(inputs):
        nonlocal now
        now += 5
        return EchoActions.forward(model, inputs)

    monkeypatch.setattr(Camera, "frames", frames)
    monkeypatch.setattr(model, "forward", work)
    found = list(run(build_predictor(model, action_cfg(TINY_ACTIONS)), [Camera(0)]))
    assert [p.second for p in found] == [0, 6, 12, 18]
    assert [p.image[0, 0, 0] for p in found] == [10 * second for second in (0, 6, 12, 18)]


def test_boxes_on_file(film, tmp_path):
    csv = tmp_path / "people.csv"
    csv.write_text("film,0.5,0.25,0,0.75,0.5,,0.95\nfilm,2,0,0,1,1,,0.95\nfilm,2,0,0,0.5,1,,0.9\nfilm,3\n")
    model, cfg = EchoActions(), predict_config(TINY_ACTIONS)
    found = list(nlnet_d2.predict(model, film, config=cfg, boxes=csv))
    assert [len(instances) for instances in found] == [1, 2, 0]
    assert found[0].pred_boxes.tensor.tolist() == [[16, 0, 48, 24]]
    assert model.batches[0][0]["boxes"].tensor.tolist() == [[16, 0, 48, 24]], "in pixels of the clip"
    assert found[1].scores.shape == (2, CLASSES)


def test_a_network_on_key_frames_without_people(film, tmp_path, action_weights, caplog):
    csv = tmp_path / "people.csv"
    csv.write_text("film,1\nfilm,2,0,0,1,1,,0.1\n")
    cfg = predict_config(TINY_ACTIONS, ["MODEL.WEIGHTS", action_weights])
    with caplog.at_level(logging.WARNING):
        found = list(nlnet_d2.predict(cfg, film, boxes=csv))
    assert [x.scores.shape for x in found] == [(0, CLASSES)] * 2
    assert "film.mp4: nobody was found on its 2 key frames; people of a CSV count from INPUT" in caplog.text


def test_a_model_that_finds_the_people(film, weights_of):
    options = ["MODEL.PEOPLE.NAME", "KeyFrameDetector", "MODEL.ROI_HEADS.NUM_CLASSES", "1"]
    options += ["MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 32]]", "MODEL.RPN.IN_FEATURES", "['res5']"]
    options += ["MODEL.ROI_HEADS.IN_FEATURES", "['res5']", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    options += ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"]
    options += ["MODEL.ROI_BOX_HEAD.NUM_FC", "1", "MODEL.ROI_BOX_HEAD.FC_DIM", "8"]
    cfg = predict_config(TINY_ACTIONS, [*options, "MODEL.WEIGHTS", weights_of(TINY_ACTIONS, *options)])
    found = list(nlnet_d2.predict(cfg, film, every=2))
    assert len(found) == 2 and all(len(x) and x.has("person_scores") for x in found)


@pytest.mark.parametrize("seconds", [20, 60])
def test_memory_does_not_grow_with_the_video(tmp_path, monkeypatch, seconds):
    """Frames of a video that are alive at once, counted where they are decoded."""
    path = write_video(tmp_path / "long.mp4", [i / 15 for i in range(15 * seconds)], preset="ultrafast")
    alive, most, real = weakref.WeakSet(), [], frame_reader._pixels

    class Frame(np.ndarray):
        """An array that a WeakSet takes."""

        __hash__ = object.__hash__

    def counted(frame):
        image = np.array(real(frame)).view(Frame)
        alive.add(image)
        most.append(len(alive))
        return image

    monkeypatch.setattr(frame_reader, "_pixels", counted)
    predictor = build_predictor(EchoActions(), action_cfg(TINY_ACTIONS), batch_size=2)
    assert sum(1 for _ in run(predictor, find_sources(path))) == seconds
    assert len(most) > 15 * seconds and max(most) <= 8


def test_frames_per_second_are_those_of_the_training(tmp_path, caplog):
    source = AvaSource(annotations="a.csv", label_map=str(tmp_path / "labels.pbtxt"), videos="v", fps=16)
    register_ava("predicted_clips", source)
    cfg = predict_config(TINY_ACTIONS, ["DATASETS.TEST", "['predicted_clips']"])
    assert clip_rate(cfg) == 16 and "they are seen" not in caplog.text
    assert clip_rate(predict_config(TINY_ACTIONS)) == 30
    assert "they are seen at AVA's 30 frames/s" in caplog.text
    (tmp_path / "labels.pbtxt").write_text(
        "".join(f'item {{ name: "act {i}" id: {i} }}\n' for i in (3, 5, 9))
    )
    assert action_classes(cfg).names == {3: "act 3", 5: "act 5", 9: "act 9"}


def test_label_maps(tmp_path, caplog):
    cfg, path = predict_config(TINY_ACTIONS), tmp_path / "labels.pbtxt"
    assert action_classes(cfg).names == {1: "action 1", 2: "action 2", 3: "action 3"}
    assert "called by their numbers" in caplog.text
    path.write_text('item { name: "run" id: 1 }\n')
    with pytest.raises(
        ConfigError, match="labels.pbtxt has 1 classes, but MODEL.ACTION_HEAD.NUM_CLASSES is 3"
    ):
        action_classes(cfg, str(path))


def test_the_data_of_the_training_may_be_elsewhere(caplog):
    entry = "[{'NAME': 'gone', 'JSON': 'gone.json', 'IMAGES': 'gone'}]"
    options = ["DATASETS.REGISTER", entry, "DATASETS.TRAIN", "['gone']", "MODEL.ROI_HEADS.NUM_CLASSES", "7"]
    cfg = predict_config(TINY_OBJECTS, options)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7 and "there is no file 'gone.json'" in caplog.text
    assert object_classes(cfg).get("thing_classes", None) is None
    with pytest.raises(ConfigError, match="did you mean MODEL.WEIGHTS"):
        predict_config(TINY_OBJECTS, ["MODEL.WEIGHT", "x"])
    with pytest.raises(ConfigError, match=r"odd number of words: \['MODEL.WEIGHTS'\]"):
        predict_config(TINY_OBJECTS, ["MODEL.WEIGHTS"])


class Segmenter(nn.Module):
    def forward(self, inputs):
        return [{"sem_seg": torch.zeros(1, 2, 2)} for _ in inputs]


def test_what_is_refused(tmp_path, film, stock_cfg):
    picture = save_plain(tmp_path / "a.png", (0, 0, 0))
    with_people, alone = action_cfg(TINY_ACTIONS), predict_config(TINY_ACTIONS)
    for model, source, options, message in (
        (Echo(), picture, {}, "a model needs its config"),
        (Echo(), picture, {"config": stock_cfg, "weights": "w.pth"}, "a model is taken as it is"),
        (Echo(), picture, {"config": stock_cfg, "batch_size": 0}, "a batch size and seconds above 0, got 0"),
        (Echo(), picture, {"config": stock_cfg, "boxes": "people.csv"}, "GeneralizedRCNN takes no boxes"),
        (EchoActions(), picture, {"config": with_people}, "a.png: an action model needs a video"),
        (EchoActions(), film, {"config": with_people, "every": 0.0}, "above 0, got 4 and 0.0"),
        (EchoActions(), film, {"config": alone}, "nobody says where the people are"),
    ):
        with pytest.raises(ConfigError, match=message):
            nlnet_d2.predict(model, source, **options)
    stock_cfg.INPUT.FORMAT = "RGBA"
    with pytest.raises(ConfigError, match="FORMAT: pictures are read as BGR, RGB, L, YUV-BT.601, got RGBA"):
        nlnet_d2.predict(Echo(), picture, config=stock_cfg)
    stock_cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ConfigError, match="finds instances, but this one gives .'sem_seg'"):
        list(nlnet_d2.predict(Segmenter(), picture, config=stock_cfg))
