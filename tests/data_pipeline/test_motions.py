"""The embedded data set: reproducible, readable as AVA data, and labelled as it looks."""

import os
import subprocess
import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from nlnet_d2.data import frame_reader
from nlnet_d2.data.datasets.ava import load_ava, select_people
from nlnet_d2.data.datasets.ava_files import read_ava_csv
from nlnet_d2.data.datasets.label_map import read_label_map
from nlnet_d2.data.datasets.motion_scenes import (
    PERIODS,
    SIZE,
    actions_of,
    box_of,
    paint_scene,
    random_scene,
)
from nlnet_d2.data.datasets.motions import (
    FPS,
    LABEL_MAP,
    NAMES,
    MotionsParameters,
    motions_source,
    register_motions,
    write_motions,
)
from nlnet_d2.data.errors import DataError
from nlnet_d2.evaluation.ava import evaluate_ava

PARAMETERS = MotionsParameters("val", count=4, seconds=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("motions")
    write_motions(PARAMETERS, root)
    return root


def scenes(count: int, seconds: int = 2):
    return [random_scene(np.random.default_rng(seed), seconds) for seed in range(count)]


def deeds(scene):
    """(figure, second) of everything that happens in a scene."""
    return [(figure, second) for figure in range(len(scene.figures)) for second in range(scene.seconds)]


def test_records(root):
    records = load_ava(motions_source(PARAMETERS, root))
    assert len(records) == 12
    assert [r["key_frame"] for r in records[:3]] == [FPS, 2 * FPS, 3 * FPS]
    assert {(r["width"], r["height"]) for r in records} == {SIZE}
    assert {r["video"].num_frames for r in records} == {4 * FPS}
    frames = records[0]["video"].read(range(8, 24))
    assert frames.shape == (16, SIZE[1], SIZE[0], 3)


def test_frames_are_those_that_were_drawn(root):
    """The clip around the first key frame is the first second of the scene."""
    scene = random_scene(np.random.default_rng([0, 1, 0]), PARAMETERS.seconds)
    read = load_ava(motions_source(PARAMETERS, root))[0]["video"].read(range(8, 24))
    drawn = np.stack(list(paint_scene(scene, FPS))[:FPS])
    assert np.abs(read.astype(int) - drawn).mean() < 4, "but for the compression"


def test_same_parameters_same_data(root, tmp_path):
    again = write_motions(PARAMETERS, tmp_path)
    first = root / PARAMETERS.folder
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == PARAMETERS.count + 3
    for file in files:
        assert (again / file).read_bytes() == (first / file).read_bytes(), file


def test_splits_and_seeds_differ():
    rngs = [np.random.default_rng(key) for key in ([0, 0, 0], [0, 1, 0], [1, 0, 0])]
    assert len({str(random_scene(rng, 2).figures) for rng in rngs}) == 3


def test_drawn_once(root):
    written = (root / PARAMETERS.folder / "annotations.csv").stat().st_mtime_ns
    write_motions(PARAMETERS, root)
    assert (root / PARAMETERS.folder / "annotations.csv").stat().st_mtime_ns == written
    assert not list(root.glob("*.partial"))


def test_official_files(root):
    source = motions_source(PARAMETERS, root)
    assert read_label_map(source.label_map) == LABEL_MAP
    annotations, boxes = read_ava_csv(source.annotations), read_ava_csv(source.boxes[0], scored=True)
    assert set(annotations.action) <= set(LABEL_MAP.names)
    assert set(boxes.action) == {-1}
    truth = evaluate_ava(source.annotations, annotations, source.label_map)
    assert truth["mAP"] == 1


def test_detected_people_are_as_many_as_the_annotated_ones(root):
    """As many as there are: the detector's mistakes are under the threshold."""
    records = load_ava(motions_source(PARAMETERS, root))
    annotated = {(r["video_id"], r["second"]): r["annotated"].sum() for r in records}
    for record in select_people(records, is_train=False, min_score=0.8):
        assert len(record["boxes"]) == annotated[record["video_id"], record["second"]]


def test_people_of_training_are_the_annotated_ones():
    source = motions_source(MotionsParameters("train", 2), "somewhere")
    assert source.boxes == ()


def test_registration_draws_on_first_use(tmp_path):
    name = "motions_test"
    try:
        register_motions(name, MotionsParameters("train", 1, seconds=1), tmp_path)
        assert not list(tmp_path.iterdir())
        assert len(DatasetCatalog.get(name)) == 1
        assert MetadataCatalog.get(name).evaluator_type == "ava"
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_without_pyav_nothing_is_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(frame_reader, "av", None)
    with pytest.raises(DataError, match="videos need PyAV, which is not installed: pip install av"):
        write_motions(MotionsParameters("train", 1, seconds=1), tmp_path)


@pytest.mark.parametrize("change", [{"split": "test"}, {"count": 0}, {"seconds": 0}, {"seed": -1}])
def test_impossible_parameters(change):
    with pytest.raises(ValueError, match="expected a split"):
        MotionsParameters(**({"split": "val", "count": 1} | change))


# --- labels against pictures ---


def test_every_action_occurs():
    found = {
        name
        for scene in scenes(40)
        for figure, second in deeds(scene)
        for name in actions_of(scene, figure, second)
    }
    assert found == set(NAMES)


def color_center(frame, figure) -> float:
    """Mean x of the pixels that have a figure's colour."""
    near = np.abs(frame.astype(int) - np.array(figure.color)).sum(axis=-1) < 40
    return np.nonzero(near)[1].mean()


def test_walking_is_a_motion_to_the_named_side():
    for scene in scenes(15):
        frames = list(paint_scene(scene, FPS))
        for figure, second in deeds(scene):
            begin, end = (color_center(frames[second * FPS + i], scene.figures[figure]) for i in (0, FPS - 1))
            moved = {"walk left": -1, "walk right": 1}.get(actions_of(scene, figure, second)[0], 0)
            if moved:
                assert (end - begin) * moved > 10
            else:
                assert abs(end - begin) < 3


def test_approaching_is_towards_the_other():
    for scene in scenes(40):
        for figure, second in deeds(scene):
            names = set(actions_of(scene, figure, second)) & {"approach", "move away"}
            if len(scene.figures) == 1 or scene.deeds[figure][second].velocity == 0:
                assert not names
                continue
            here, there = scene.deeds[figure][second], scene.deeds[1 - figure][second]
            nearer = abs(here.place(1) - there.x) < abs(here.x - there.x)
            assert names == {"approach" if nearer else "move away"}


def test_fast_and_slow_waving_look_alike_at_a_quarter_of_the_rate():
    """Frames 4 or 5 apart advance by shares of a cycle that fall into the same range."""
    for spacing in (4, 5):
        shares = {}
        for name, periods in PERIODS.items():
            cycles = spacing / np.linspace(*periods, 200) % 1
            folded = np.minimum(cycles, 1 - cycles)  # forwards and backwards look the same
            shares[name] = folded.min(), folded.max()
        slow, fast = shares["wave slowly"], shares["wave fast"]
        assert fast[0] <= slow[0] <= slow[1] <= fast[1]
    assert min(PERIODS["wave fast"]) > 2, "all frames still show it"


def test_boxes_hold_the_figures_and_nothing_of_the_others():
    for scene in scenes(15):
        frames = list(paint_scene(scene, FPS))
        for figure, second in deeds(scene):
            x1, y1, x2, y2 = box_of(scene, figure, second)
            frame = frames[second * FPS + FPS // 2]
            near = np.abs(frame.astype(int) - np.array(scene.figures[figure].color)).sum(axis=-1) < 40
            y, x = np.nonzero(near)
            inside = (x >= x1 - 1) & (x <= x2 + 1) & (y >= y1 - 1) & (y <= y2 + 1)
            assert inside.mean() > 0.97


def test_importing_the_package_needs_neither_opencv_nor_pyav():
    script = (
        "import sys\n"
        "sys.modules['cv2'] = sys.modules['av'] = None\n"
        "import nlnet_d2.data.datasets\n"
        "from detectron2.data import DatasetCatalog\n"
        "assert {'motions_train', 'motions_val'} <= set(DatasetCatalog.list())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
