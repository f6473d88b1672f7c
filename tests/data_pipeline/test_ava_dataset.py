"""Records of data in AVA's format: one's own videos of any rate and time, and all that can be wrong."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from small_videos import SIZE, write_frames, write_video

from nlnet_d2 import add_nlnet_config
from nlnet_d2.data.datasets.ava import (
    AvaSource,
    action_names,
    load_ava,
    register_ava,
    register_ava_from_config,
    select_people,
)
from nlnet_d2.data.errors import DataError
from nlnet_d2.data.frame_reader import FrameFolder, VideoFile

LABELS = 'item { name: "run" id: 2 }\nitem { name: "sit" id: 5 }\nitem { name: "wave" id: 9 }\n'
ROWS = [
    "a,0010,0.1,0.1,0.5,0.9,2,0",
    "a,0010,0.1,0.1,0.5,0.9,9,0",
    "a,0010,0.5,0.1,0.9,0.9,5,1",
    "a,0012,0.10,0.1,0.5,0.9,5,0",
    "b,0011.5,0.2,0.2,0.4,0.4,2,0",
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """``a.mp4``: 3 s; ``b/``: 80 frames extracted at 20 per second."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", [i / 30 for i in range(90)])
    write_frames(folder / "b", 80)
    return folder


@pytest.fixture
def source(videos, tmp_path) -> AvaSource:
    (tmp_path / "labels.pbtxt").write_text(LABELS)
    return AvaSource(
        annotations=str(rows_file(tmp_path, "annotations.csv", ROWS)),
        label_map=str(tmp_path / "labels.pbtxt"),
        videos=str(videos),
        fps=20.0,
        start_second=9.5,
    )


def rows_file(folder, name: str, rows):
    path = folder / name
    path.write_text("".join(row + "\n" for row in rows))
    return path


def with_rows(source: AvaSource, folder, *rows: str) -> AvaSource:
    return replace(source, annotations=str(rows_file(folder, "changed.csv", [*ROWS, *rows])))


def test_records(source, videos):
    records = load_ava(source)
    assert [(r["video_id"], r["second"], r["key_frame"]) for r in records] == [
        ("a", 10, 10),
        ("a", 12, 50),
        ("b", 11.5, 40),
    ]
    first = records[0]
    np.testing.assert_allclose(first["boxes"], [[0.1, 0.1, 0.5, 0.9], [0.5, 0.1, 0.9, 0.9]])
    assert first["actions"].tolist() == [[1, 0, 1], [0, 1, 0]], "columns in the order of the label map"
    assert np.isnan(first["scores"]).all()
    assert first["annotated"].tolist() == [True, True]
    assert first["video"] == VideoFile(str(videos / "a.mp4"), 20.0, 60, *SIZE)
    assert isinstance(records[2]["video"], FrameFolder)
    assert (records[2]["width"], records[2]["height"]) == SIZE


def test_detected_people(source, tmp_path):
    """Of a detector: unlabelled ones are negatives; those that equal annotated ones are the same people."""
    boxes = rows_file(
        tmp_path,
        "boxes.csv",
        ["a,10,0.100,0.100,0.500,0.900,,0.95", "a,10,0.6,0.6,0.8,0.8,,0.7", "a,11,0.1,0.1,0.2,0.2,5,0.99"],
    )
    records = load_ava(replace(source, boxes=(str(boxes),)))
    first, second = records[:2]
    assert first["annotated"].tolist() == [True, True, False]
    np.testing.assert_allclose(first["scores"], [0.95, np.nan, 0.7], rtol=1e-6)
    assert first["actions"].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert (second["second"], second["actions"].tolist()) == (11, [[0, 1, 0]])


@pytest.mark.parametrize(
    ("rows", "seconds", "warned"),
    [
        (["a,0012", "zzz,0012"], [10, 11.5], False),
        (["a,0902", "zzz,0012"], [10, 12, 11.5], True),
        ([], [10, 12, 11.5], False),
    ],
)
def test_excluded_frames(rows, seconds, warned, source, tmp_path, caplog):
    excluded = rows_file(tmp_path, "excluded.csv", rows)
    records = load_ava(replace(source, excluded=str(excluded)))
    assert [r["second"] for r in records] == seconds
    assert (f"{excluded}: none of its 2 frames is a key frame of" in caplog.text) == warned


def test_frame_list(source, videos, tmp_path):
    header = "original_vido_id video_id frame_id path labels"
    lines = [f'b 0 {i} b/b_{i + 1:06d}.jpg ""' for i in range(60)]
    path = rows_file(tmp_path, "frames.csv", [header, *lines])
    only_b = rows_file(tmp_path, "b.csv", ROWS[-1:])
    listed = replace(source, annotations=str(only_b), frame_list=str(path))
    assert load_ava(listed)[0]["video"].num_frames == 60
    with pytest.raises(DataError, match="frames.csv: video a"):
        load_ava(replace(listed, annotations=source.annotations))


@pytest.mark.parametrize(
    "lines, message",
    [
        (["b 0 0 b/b_000001.jpg x"], "frames.csv:1: expected original_vido_id"),
        (["HEADER", "b 0 b/b_000001.jpg x"], "frames.csv:2: expected .* 5 columns"),
        (["HEADER", "b 0 0 b/b_000001.jpg x", "b 0 1 b/b_000003.jpg x"], "1 missing, first 2"),
        (["HEADER", "b 0 0 ../b_000001.jpg x"], "expected a file inside the folder"),
        (["HEADER", "b 0 0 b/b_000001.jpg x", "b 0 1 c/b_000002.jpg x"], "2 folders"),
    ],
)
def test_bad_frame_list(lines, message, source, tmp_path):
    header = "original_vido_id video_id frame_id path labels"
    path = rows_file(tmp_path, "frames.csv", [line.replace("HEADER", header) for line in lines])
    only_b = rows_file(tmp_path, "b.csv", ROWS[-1:])
    with pytest.raises(DataError, match=message):
        load_ava(replace(source, annotations=str(only_b), frame_list=str(path)))


# --- what can be wrong ---


@pytest.mark.parametrize(
    "row, message",
    [
        ("a,0010,0.1,0.1,0.5,0.9,3,0", r"changed.csv:6: a,0010: action: expected an id of .*labels.pbtxt"),
        ("a,0010,0.5,0.1,0.1,0.9,2,0", r"changed.csv:6: a,0010: box: expected x1 <= x2"),
        ("a,0009,0.1,0.1,0.5,0.9,2,0", r"changed.csv:6: a,0009: second: expected a time inside the video"),
        ("a,0013,0.1,0.1,0.5,0.9,2,0", r"changed.csv:6: a,0013: second: expected a time inside the video"),
        ("c,0010,0.1,0.1,0.5,0.9,2,0", "video c: expected c.mp4 .* or a folder c, got nothing"),
        ("a,0010,0.1,0.1,50,90,2,0", "changed.csv:6: box: expected coordinates in 0..1"),
    ],
)
def test_bad_row(row, message, source, tmp_path):
    with pytest.raises(DataError, match=message):
        load_ava(with_rows(source, tmp_path, row))


def test_all_problems_can_be_collected(source, tmp_path):
    findings = []
    bad = ["a,0010,0.5,0.1,0.1,0.9,2,0", "c,0010,0.1,0.1,0.5,0.9,2,0", "a,0013,0.1,0.1,0.5,0.9,7,0"]
    records = load_ava(with_rows(source, tmp_path, *bad), findings)
    assert sorted(finding.key for finding in findings) == ["", "action", "box", "second"]
    assert len(records) == 3, "what is good is still there"


def test_box_without_area_is_counted(source, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        records = load_ava(with_rows(source, tmp_path, "a,0010,0.3,0.1,0.3,0.9,2,0"))
    assert "1 boxes without area are left out, first in line 6" in caplog.text
    assert len(records[0]["boxes"]) == 2


def test_boxes_of_other_videos(source, tmp_path, caplog):
    other = rows_file(tmp_path, "boxes.csv", ["x,10,0.1,0.1,0.5,0.9,,0.9"])
    with pytest.raises(DataError, match="boxes.csv: expected videos of .*annotations.csv"):
        load_ava(replace(source, boxes=(str(other),)))
    some = rows_file(tmp_path, "boxes.csv", ["x,10,0.1,0.1,0.5,0.9,,0.9", "a,10,0.1,0.1,0.5,0.9,,0.9"])
    with caplog.at_level(logging.WARNING):
        load_ava(replace(source, boxes=(str(some),)))
    assert "1 of 2 videos are not in" in caplog.text


def test_video_that_is_there_twice(source, tmp_path):
    folder = tmp_path / "twice"
    for name in ("a.mp4", "a.mkv"):
        (folder / name).parent.mkdir(exist_ok=True)
        write_video(folder / name, [0, 0.1])
    with pytest.raises(DataError, match="video a: .* got a.mkv and a.mp4"):
        load_ava(replace(source, videos=str(folder)))


def test_unreadable_video(source, tmp_path):
    (tmp_path / "a.mp4").write_text("404")
    write_frames(tmp_path / "b", 80)
    with pytest.raises(DataError, match="a.mp4: expected a video"):
        load_ava(replace(source, videos=str(tmp_path)))


def test_no_folder(source):
    with pytest.raises(DataError, match="nowhere: expected a folder of videos"):
        load_ava(replace(source, videos="/nowhere"))


# --- which people ---


def record(annotated, scores) -> dict:
    count = len(scores)
    return {
        "boxes": np.tile(np.float32([0, 0, 0.5, 0.5]), (count, 1)),
        "annotated": np.array(annotated, bool),
        "scores": np.array(scores, np.float32),
        "actions": np.ones((count, 3), np.uint8),
    }


ANNOTATED_AND_DETECTED = record([True, False, False, True], [np.nan, 0.9, 0.5, 0.1])


@pytest.mark.parametrize(
    "is_train, min_score, expected",
    [
        (True, 0.8, [np.nan, 0.9, 0.1]),
        (True, 0.4, [np.nan, 0.9, 0.5, 0.1]),
        (False, 0.8, [0.9]),
        (False, 0.4, [0.9, 0.5]),
    ],
)
def test_people_of_training_and_test(is_train, min_score, expected):
    (selected,) = select_people([ANNOTATED_AND_DETECTED], is_train, min_score)
    np.testing.assert_allclose(selected["scores"], expected, rtol=1e-6)
    assert len(selected["boxes"]) == len(selected["actions"]) == len(expected)


def test_annotated_people_are_tested_where_none_were_detected_at_all():
    annotated = record([True, True], [np.nan, np.nan])
    assert len(select_people([annotated], False, 0.8)[0]["boxes"]) == 2
    both = select_people([annotated, ANNOTATED_AND_DETECTED], False, 0.8)
    assert len(both) == 1, "with detections in the data set, a frame without them has no people"


def test_frames_without_people(caplog):
    weak, empty = record([False, False], [0.3, 0.6]), record([], [])
    data = [ANNOTATED_AND_DETECTED, weak, empty]
    with caplog.at_level(logging.INFO):
        assert len(select_people(data, False, 0.8, "drop")) == 1
    assert "1 of 3 key frames are used" in caplog.text
    best = select_people(data, False, 0.8, "best")
    assert [r["scores"].tolist() for r in best[1:]] == [[np.float32(0.6)]]
    beside_weak = select_people([record([True, False], [np.nan, 0.3])], True, 0.8, "best")
    assert len(beside_weak[0]["scores"]) == 1, "only a frame without people gets the best one"
    frame = select_people(data, False, 0.8, "frame")[2]
    assert frame["boxes"].tolist() == [[0, 0, 1, 1]]
    assert not frame["actions"].any()
    assert weak["scores"].shape == (2,), "the records themselves stay as they are"


def test_no_people_anywhere():
    with pytest.raises(DataError, match="none of 1 key frames has a person with a score of 0.8"):
        select_people([record([False], [0.1])], False, 0.8)
    with pytest.raises(ValueError, match="unknown 'skip'"):
        select_people([ANNOTATED_AND_DETECTED], False, 0.8, "skip")


# --- registration ---


@pytest.fixture
def registered():
    names = []
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_registration_from_a_config(source, registered):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    entry = {
        "NAME": "mine",
        "ANNOTATIONS": source.annotations,
        "LABEL_MAP": source.label_map,
        "VIDEOS": source.videos,
        "FPS": 20.0,
        "START_SECOND": 9.5,
        "BOXES": None,  # of a line of YAML that says nothing
    }
    registered.append("mine")
    cfg.DATASETS.REGISTER_AVA = [entry]
    register_ava_from_config(cfg)
    register_ava_from_config(cfg)
    assert len(DatasetCatalog.get("mine")) == 3
    assert MetadataCatalog.get("mine").evaluator_type == "ava"
    assert action_names("mine") == ["run", "sit", "wave"]
    with pytest.raises(DataError, match="already registered"):
        register_ava("mine", replace(source, fps=25.0))


@pytest.mark.parametrize("change", [{"VIDEOS": None}, {"JSON": "a.json"}])
def test_registration_with_wrong_keys(change, source):
    entry = {"NAME": "mine", "ANNOTATIONS": "a.csv", "LABEL_MAP": "l.pbtxt", "VIDEOS": "v"} | change
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.DATASETS.REGISTER_AVA = [{key: value for key, value in entry.items() if value}]
    with pytest.raises(DataError, match=r"REGISTER_AVA\[0\]: expected ANNOTATIONS, LABEL_MAP, NAME, VIDEOS"):
        register_ava_from_config(cfg)


@pytest.mark.parametrize(
    "number",
    [{"fps": 0.0}, {"fps": -5.0}, {"fps": float("nan")}, {"fps": "25"}, {"start_second": float("inf")}],
)
def test_numbers_that_are_none(number, source):
    with pytest.raises(DataError, match=f"{next(iter(number))}: expected"):
        replace(source, **number)


def test_published_data_sets_are_registered():
    for name in ("ava_v2.1_train", "ava_v2.1_val", "ava_v2.2_train", "ava_v2.2_val"):
        source = MetadataCatalog.get(name).source
        assert source.start_second == 900
        assert source.fps == 30
        assert (source.excluded is not None) == name.endswith("val")
    train, val = (MetadataCatalog.get(name).source for name in ("ava_v2.2_train", "ava_v2.1_val"))
    fields = ("annotations", "label_map", "evaluated_label_map")
    boxes = "person_box_67091280_iou90/ava_detection"
    assert [getattr(train, field).rpartition("/")[2] for field in fields] == [
        "ava_train_v2.2.csv",
        "ava_action_list_v2.2.pbtxt",
        "ava_action_list_v2.2_for_activitynet_2019.pbtxt",
    ]
    assert train.boxes[0].endswith(f"{boxes}_train_boxes_and_labels_include_negative_v2.2.csv")
    assert [getattr(val, field).rpartition("/")[2] for field in fields] == [
        "ava_val_v2.1.csv",
        "ava_action_list_v2.1.pbtxt",
        "ava_action_list_v2.1_for_activitynet_2018.pbtxt",
    ]
    assert val.boxes[0].endswith(f"{boxes}_val_boxes_and_labels.csv")
    assert val.excluded.endswith("annotations/ava_val_excluded_timestamps_v2.1.csv")
    with pytest.raises(DataError, match="ava_action_list_v2.2.pbtxt"):
        DatasetCatalog.get("ava_v2.2_val")
