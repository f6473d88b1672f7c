"""What is written: names of files, pictures, videos with their times, COCO results, AVA detections."""

import gc
import json
import os
import signal

import av
import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.image import AxesImage
from PIL import Image
from pycocotools import mask as rle
from small_videos import write_video

from nlnet_d2.data import frame_reader
from nlnet_d2.data.datasets.ava_files import read_ava_csv
from nlnet_d2.data.datasets.label_map import LabelMap
from nlnet_d2.data.errors import DataError
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.inference import command
from nlnet_d2.inference.drawing import PERSON_COLOUR, ActionOverlay, Drawing, draw_objects, enlargement
from nlnet_d2.inference.outputs import plan_outputs, write_actions, write_objects
from nlnet_d2.inference.predictor import Prediction
from nlnet_d2.inference.sources import Camera, Failures, Picture, Video
from nlnet_d2.inference.writing import VideoWriter

COCO = Metadata(thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={17: 0, 18: 1})
ACTIONS = LabelMap({2: "sit", 5: "run"}, {})
SIZE = (400, 420)  # height, width: too large to be enlarged


def objects(scores, size=SIZE, **fields) -> Instances:
    boxes = Boxes(torch.tensor([[100.0, 100.0, 200.0, 300.0]]).repeat(len(scores), 1))
    classes = torch.arange(len(scores)) % 2
    return Instances(size, pred_boxes=boxes, scores=torch.tensor(scores), pred_classes=classes, **fields)


def people(*scores, size=SIZE) -> Instances:
    boxes = Boxes(torch.tensor([[100.0, 100.0, 300.0, 300.0]]).repeat(len(scores), 1))
    return Instances(size, pred_boxes=boxes, scores=torch.tensor(scores).reshape(-1, 2))


def changed(image, ground) -> np.ndarray:
    return (image.astype(int) != ground).any(axis=2)


def grey(level=90, size=SIZE) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def test_objects_below_the_threshold_are_not_drawn():
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 250:260, 120:180], masks[1, 350:380, 20:60] = True, True
    found = objects([0.9, 0.3], pred_masks=masks)
    drawn = changed(draw_objects(grey(), found, COCO, 0.5), 90)
    assert drawn[255, 150] and not drawn[365, 40], "the mask of the first one only"
    assert drawn[98:103, 150:200].any() and not drawn[:90].any()
    assert changed(draw_objects(grey(), found, COCO, 0.2), 90)[365, 40]
    assert not changed(draw_objects(grey(), found[:0], COCO, 0.2), 90).any()
    assert not changed(draw_objects(grey(), found, COCO, 0.95), 90).any()


def test_keypoints_and_classes_without_names():
    keypoints = torch.tensor([[[350.0, 50.0, 0.9]] * 17])
    drawn = changed(draw_objects(grey(), objects([0.9], pred_keypoints=keypoints), Metadata(), 0.5), 90)
    assert drawn[50, 350] and drawn[98:103, 150:200].any()


def test_small_pictures_are_enlarged():
    small = grey(size=(60, 100))
    assert enlargement(small) == 6
    assert draw_objects(small, objects([0.9], size=(60, 100)), COCO, 0.5).shape == (360, 600, 3)
    overlay = ActionOverlay(people([0.1, 0.9], size=(60, 100)), ["sit", "run"], 0.5)
    assert overlay.over(small).shape == (360, 600, 3)


def test_an_overlay_is_what_the_visualizer_draws_on_any_frame():
    overlay = ActionOverlay(people([0.9, 0.6]), ["sit", "run"], 0.5)
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    drawn = overlay.over(noise)
    outside = np.ones(SIZE, bool)
    outside[95:305, 95:305] = False
    assert (drawn[outside] == noise[outside]).all(), "beside the box, a frame stays as it is"
    assert (drawn[220:280, 120:280] == noise[220:280, 120:280]).all(), "and in it, below the label"
    edge = overlay.over(grey(0))[300, 150:250].mean(axis=0)
    assert edge[0] > edge[1] > edge[2] and PERSON_COLOUR[0] > PERSON_COLOUR[1] > PERSON_COLOUR[2]


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("x", [0, 150, 415])
@pytest.mark.parametrize("y", [0, 150, 395])
def test_labels_stay_inside(x, y, scale):
    drawing = Drawing(grey(), scale=scale)
    drawing.draw_text("answer the phone 87%\nsit 62%", (x, y), horizontal_alignment="left")
    (label,) = drawing.output.ax.texts
    drawing.output.get_image()
    box = label.get_bbox_patch().get_window_extent()  # pixels, from below
    assert (box.min >= -0.05).all()
    assert (box.max <= scale * np.array(SIZE[::-1]) + 0.05).all()
    if x == y == 150:
        assert label.get_position() == pytest.approx((x, y)), "it is left where there is room"


def test_labels_of_small_pictures_stay_inside():
    beside = Boxes(torch.tensor([[72.0, 20.0, 97.0, 55.0]]))
    person = Instances((60, 100), pred_boxes=beside, scores=torch.tensor([[0.1, 0.9]]))
    drawn = changed(ActionOverlay(person, ["sit", "run"], 0.5).over(grey(size=(60, 100))), 90)
    assert drawn[125:145, 440:480].any(), "the label, in the box"
    assert not drawn[:, 590:].any()


def label_rows(scores, min_score=0.5) -> int:
    """Height of the label in rows of pixels."""
    with_label = ActionOverlay(people(scores), ["sit", "run"], min_score).over(grey())
    return int(changed(with_label, 90)[105:295, 105:150].any(axis=1).sum())


def test_likely_actions_are_named():
    none, one, two = label_rows([0.1, 0.4]), label_rows([0.1, 0.9]), label_rows([0.6, 0.9])
    assert none == 0 < one < two
    assert (ActionOverlay(people(), ["sit", "run"], 0.5).over(grey()) == 90).all()


def test_pixels_are_freed_without_the_garbage_collector():
    """Canvases and pictures of matplotlib; others may hold some of their own."""

    def alive() -> int:
        return sum(type(x) in (RendererAgg, AxesImage) for x in gc.get_objects())

    gc.collect()
    gc.disable()
    before = alive()
    try:
        for _ in range(2):
            draw_objects(grey(), objects([0.9]), COCO, 0.5)
            ActionOverlay(people([0.9, 0.6]), ["sit", "run"], 0.5)
        assert alive() == before
    finally:
        gc.enable()


def test_videos_keep_their_times(tmp_path):
    times = [0, 0.04, 0.5, 1.25]
    with VideoWriter(tmp_path / "out.mp4") as video:
        for i, second in enumerate(times):
            video.write(second, grey(60 * i, size=(33, 41)))
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert [time for time, _ in frames] == pytest.approx(times, abs=1e-3)
    assert [image.mean() for _, image in frames] == pytest.approx([0, 60, 120, 180], abs=4)
    assert frames[0][1].shape == (32, 40, 3)
    with VideoWriter(tmp_path / "nothing.mp4"):
        pass
    assert not (tmp_path / "nothing.mp4").exists()


def test_videos_are_not_written_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_reader, "av", None)
    with VideoWriter(tmp_path / "video.mp4") as writer, pytest.raises(DataError, match="pip install av"):
        writer.write(0.0, np.zeros((8, 8, 3), np.uint8))


def test_names_of_the_outputs(tmp_path):
    picture, film = Picture("in/a.jpg"), Video("in/film.avi")
    outputs = plan_outputs(tmp_path / "new" / "found", [picture, film, Camera(0)], ".json")
    names = [path.relative_to(tmp_path / "new" / "found").name for path in outputs.annotated.values()]
    assert names == ["a.jpg", "film.mp4", "camera_0.mp4"] and outputs.results.parent.is_dir()
    outputs = plan_outputs(tmp_path / "out.mp4", [film], ".csv")
    assert (outputs.results, outputs.annotated) == (tmp_path / "out.csv", {film: tmp_path / "out.mp4"})


def test_outputs_that_would_destroy_something(tmp_path):
    a, b = Picture(str(tmp_path / "a.jpg")), Picture(str(tmp_path / "other" / "a.jpg"))
    (tmp_path / "file").touch()
    for output, sources, message in (
        (tmp_path, [a], "an input would be replaced by .*a.jpg"),
        (tmp_path / "out", [a, b], "2 inputs would become .*a.jpg; predict them one after"),
        (tmp_path / "out.mp4", [a], "expected a folder; a file .* is for one video"),
        (tmp_path / "out.mp4", [Video("a.mp4"), Video("b.mp4")], "is for one video"),
        (tmp_path / "out.webm", [Video("a.mp4")], "expected a folder; a file .*.mp4"),
        (tmp_path / "out.png", [a, b], "expected a folder; a file .* is for one picture"),
        (tmp_path / "out.png", [Video("a.mp4")], "is for one picture"),
        (tmp_path / "out.tif", [a], "a file .*.png"),
        (tmp_path / "a.mp4", [Video(str(tmp_path / "a.mp4"))], "an input would be replaced"),
        (tmp_path / "file", [a], "expected a place for a folder, got .*file"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan_outputs(output, sources, ".json")
    with pytest.raises(ConfigError, match="an input would be replaced by .*out.csv"):
        plan_outputs(tmp_path / "out.mp4", [Video("a.mp4")], ".csv", boxes=str(tmp_path / "out.csv"))


def test_one_picture_into_a_file(tmp_path):
    a = Picture("in/a.jpg")
    outputs = plan_outputs(tmp_path / "found" / "out.png", [a], ".json")
    write_objects(outputs, [Prediction(a, 0.0, grey(), objects([0.9]))], COCO, 0.5)
    assert changed(np.array(Image.open(tmp_path / "found" / "out.png")), 90).any()
    assert len(json.loads((tmp_path / "found" / "out.json").read_text())) == 1


def test_pictures_and_coco_results(tmp_path):
    a, b = Picture("in/a.png"), Picture("in/b.png")
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 250:260, 120:180] = True
    points = torch.tensor([[[350.0, 50.0, 0.9]]]).repeat(2, 1, 1)
    found = objects([0.75, 0.25], pred_masks=masks, pred_keypoints=points)
    outputs = plan_outputs(tmp_path, [a, b], ".json")
    predictions = [Prediction(a, 0.0, grey(), found), Prediction(b, 0.0, grey(), found[:0])]
    write_objects(outputs, predictions, COCO, 0.5)
    assert changed(np.array(Image.open(tmp_path / "a.png")), 90).any()
    assert (np.array(Image.open(tmp_path / "b.png")) == 90).all()
    first, second = json.loads((tmp_path / "predictions.json").read_text())
    assert (first["file_name"], first["image_id"], first["category_id"], first["score"]) == (
        "a.png",
        0,
        17,
        0.75,
    )
    assert second["category_id"] == 18 and "second" not in first and first["bbox"] == [100, 100, 100, 200]
    assert rle.decode(first["segmentation"]).sum() == 600 and first["keypoints"][:2] == [349.5, 49.5]
    assert found.pred_keypoints[0, 0, 0] == 350, "predictions stay as they are"


def test_pictures_without_objects_have_results(tmp_path):
    a = Picture("in/a.png")
    write_objects(plan_outputs(tmp_path, [a], ".json"), [Prediction(a, 0.0, grey(), objects([]))], COCO, 0.5)
    assert json.loads((tmp_path / "predictions.json").read_text()) == []


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_without_a_prediction_results_of_an_earlier_run_stay(suffix, tmp_path):
    outputs = plan_outputs(tmp_path, [Video("film.mp4")], suffix)

    def write() -> None:
        if suffix == ".json":
            write_objects(outputs, [], COCO, 0.5)
        else:
            write_actions(outputs, lambda _: iter([]), Failures(), ACTIONS, 0.5)

    write()
    assert not outputs.results.exists()
    outputs.results.write_text("of an earlier run")
    write()
    assert outputs.results.read_text() == "of an earlier run"


def test_key_frames_without_people_have_results(tmp_path):
    camera = Camera(0)
    outputs = plan_outputs(tmp_path / "live.mp4", [camera], ".csv")
    write_actions(outputs, lambda _: iter(key_frames(camera, (0.0, people()))), Failures(), ACTIONS, 0.5)
    assert outputs.results.read_text() == ""


def key_frames(video, *pairs):
    return [Prediction(video, second, grey(), found) for second, found in pairs]


def has_box(frames) -> dict[float, bool]:
    """Second -> whether the right edge of the box is there."""
    edges = {round(f.time, 2): f.to_ndarray(format="rgb24")[150:250, 300, 0] for f in frames}
    return {second: bool(red.min() > 120) for second, red in edges.items()}


def test_actions_hold_until_the_next_key_frame(tmp_path, monkeypatch):
    video, other = Video(str(tmp_path / "film.mp4")), Video(str(tmp_path / "other.mp4"))
    frames = [(100 * i, grey()) for i in range(12)]
    monkeypatch.setattr(Video, "frames", lambda self, fps: iter(frames))
    found = key_frames(video, (0.3, people([0.9, 0.1])), (0.6, people()), (0.9, people([0.2, 0.7])))
    outputs = plan_outputs(tmp_path / "out", [video, other], ".csv")
    answers = {video: found, other: []}
    write_actions(outputs, lambda source: iter(answers[source]), Failures(), ACTIONS, 0.5)
    with av.open(str(tmp_path / "out" / "film.mp4")) as container:
        there = has_box(container.decode(video=0))
    assert [second for second, box in there.items() if box] == [0.3, 0.4, 0.5, 0.9, 1.0, 1.1]
    table = read_ava_csv(tmp_path / "out" / "predictions.csv", scored=True)
    assert table.videos == ["film"] and table.second.tolist() == [0.3, 0.9]
    assert table.action.tolist() == [2, 5, 2, 5]
    assert table.score.tolist() == pytest.approx([0.9, 0.1, 0.2, 0.7])
    assert table.box[0].tolist() == pytest.approx([100 / 420, 0.25, 300 / 420, 0.75], abs=1e-6)
    assert not (tmp_path / "out" / "other.mp4").exists(), "no key frame: nothing to show"


def test_a_camera_shows_its_key_frames(tmp_path):
    camera = Camera(0)
    found = key_frames(camera, (0.0, people([0.9, 0.1])), (1.0, people()))
    write_actions(
        plan_outputs(tmp_path / "live.mp4", [camera], ".csv"), lambda _: iter(found), Failures(), ACTIONS, 0.5
    )
    with av.open(str(tmp_path / "live.mp4")) as container:
        assert has_box(container.decode(video=0)) == {0.0: True, 1.0: False}


def test_an_interrupted_run_leaves_files_that_can_be_read(tmp_path):
    def interrupted():
        yield Prediction(Video("a.mp4"), 0.0, grey(), objects([0.9]))
        raise KeyboardInterrupt

    outputs = plan_outputs(tmp_path / "out.mp4", [Video(str(write_video(tmp_path / "a.mp4", [0])))], ".json")
    outputs.annotated[Video("a.mp4")] = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        write_objects(outputs, interrupted(), COCO, 0.5)
    (result,) = json.loads(outputs.results.read_text())
    assert (result["file_name"], result["second"]) == ("a.mp4", 0.0)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 1


def test_a_terminated_run_finishes_its_files(tmp_path, monkeypatch):
    """SIGTERM, of cluster schedulers and ``kill``, ends Python where it stands if nobody asks it not to."""

    def run(args):
        with VideoWriter(args.output) as video:
            video.write(0.0, grey())
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(command, "run", run)
    path = str(tmp_path / "out.mp4")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit, match="143"):
            command.main(["--config-file", "c.yaml", "--input", "a.mp4", "--output", path])
    finally:
        signal.signal(signal.SIGTERM, before)
    with av.open(path) as container:
        assert sum(1 for _ in container.decode(video=0)) == 1
