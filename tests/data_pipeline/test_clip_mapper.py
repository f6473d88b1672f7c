"""From records to what ActionRCNN takes."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes
from small_videos import SIZE, number_of, write_video

from nlnet_d2 import add_nlnet_config
from nlnet_d2.data.clip_mapper import ClipMapper, clip_records
from nlnet_d2.data.datasets.ava import AvaSource, register_ava
from nlnet_d2.data.errors import DataError

NAME = "clip_mapper_test"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A video of 90 frames at 30 per second, two people at second 1, one at second 2."""
    folder = tmp_path_factory.mktemp("data")
    write_video(folder / "a.mp4", [i / 30 for i in range(90)])
    (folder / "labels.pbtxt").write_text("".join(f'item {{ name: "c{i}" id: {i} }}\n' for i in (1, 2, 3)))
    rows = ["a,1,0.25,0.25,0.5,0.75,2,0", "a,1,0.5,0.5,1,1,3,1", "a,2,0,0,1,0.5,1,0"]
    (folder / "rows.csv").write_text("\n".join(rows))
    register_ava(NAME, AvaSource(str(folder / "rows.csv"), str(folder / "labels.pbtxt"), str(folder)))
    yield folder
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.INPUT.CLIP.NUM_FRAMES, cfg.INPUT.CLIP.STRIDE = 8, 4
    cfg.INPUT.CLIP.SCALES_TRAIN, cfg.INPUT.CLIP.CROP_TRAIN, cfg.INPUT.CLIP.SIZE_TEST = [48, 60], 40, 96
    return cfg


def test_test_clip(dataset, cfg):
    sample = ClipMapper(cfg, is_train=False)(clip_records(cfg, [NAME], False)[0])
    assert sample["clip"].shape == (3, 8, 96, 128)
    assert sample["clip"].dtype == torch.uint8
    assert [number_of(frame.permute(1, 2, 0).numpy()) for frame in sample["clip"].unbind(1)] == [
        *range(14, 46, 4)
    ]
    assert isinstance(sample["boxes"], Boxes)
    np.testing.assert_allclose(sample["boxes"].tensor, [[32, 24, 64, 72], [64, 48, 128, 96]])
    assert (sample["width"], sample["height"]) == SIZE
    assert (sample["video_id"], sample["second"]) == ("a", 1.0)
    assert "instances" not in sample


def test_training_clip(dataset, cfg):
    mapper, record = ClipMapper(cfg, is_train=True), clip_records(cfg, [NAME], True)[0]
    for seed in range(20):
        np.random.seed(seed)
        sample = mapper(record)
        instances = sample["instances"]
        assert sample["clip"].shape == (3, 8, 40, 40)
        assert instances.image_size == (40, 40)
        boxes = instances.gt_boxes.tensor
        assert boxes.min() >= 0
        assert boxes.max() <= 40
        assert instances.gt_boxes.nonempty().all(), "people outside the crop are left out"
        assert instances.gt_actions.shape == (len(boxes), 3)
        if len(boxes) == 2:
            assert instances.gt_actions.tolist() == [[0, 1, 0], [0, 0, 1]]
        assert "boxes" not in sample


def test_records_are_not_changed(dataset, cfg):
    record = clip_records(cfg, [NAME], True)[0]
    before = record["boxes"].copy()
    ClipMapper(cfg, is_train=True)(record)
    np.testing.assert_array_equal(record["boxes"], before)


def test_flip_follows_the_config(dataset, cfg):
    """Where left and right differ, INPUT.RANDOM_FLIP none keeps them apart."""
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CLIP.CROP_TRAIN = "none", 0
    mapper, record = ClipMapper(cfg, is_train=True), clip_records(cfg, [NAME], True)[0]
    for seed in range(8):
        np.random.seed(seed)
        frame = mapper(record)["clip"][:, 4].permute(1, 2, 0).numpy()
        assert number_of(frame) == 30


def test_vertical_flip(dataset, cfg):
    """The clip and its boxes are turned upside down, as Detectron2 does with images."""
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CLIP.CROP_TRAIN, cfg.INPUT.CLIP.SCALES_TRAIN = "vertical", 0, [48, 48]
    mapper, record = ClipMapper(cfg, is_train=True), clip_records(cfg, [NAME], True)[0]
    samples = {}
    for seed in range(8):
        np.random.seed(seed)
        sample = mapper(record)
        samples[sample["instances"].gt_boxes.tensor[1, 1].item()] = sample
    assert len(samples) == 2, "as it is, and turned"
    one, other = samples.values()
    height = one["clip"].shape[2]
    assert torch.equal(one["clip"].flip(2), other["clip"])
    boxes, turned = (s["instances"].gt_boxes.tensor for s in (one, other))
    torch.testing.assert_close(turned[:, [1, 3]], height - boxes[:, [3, 1]])


def test_clip_at_the_very_start_repeats_frames(dataset, cfg):
    record = clip_records(cfg, [NAME], False)[0] | {"key_frame": 0}
    clip = ClipMapper(cfg, is_train=False)(record)["clip"]
    assert [number_of(frame.permute(1, 2, 0).numpy()) for frame in clip.unbind(1)] == [
        0,
        0,
        0,
        0,
        0,
        4,
        8,
        12,
    ]


def test_model_that_finds_the_people(dataset, cfg):
    cfg.MODEL.PEOPLE.NAME = "KeyFrameDetector"
    records = clip_records(cfg, [NAME], False)
    assert len(records) == 2
    assert "boxes" not in ClipMapper(cfg, is_train=False)(records[0])
    assert "instances" in ClipMapper(cfg, is_train=True)(clip_records(cfg, [NAME], True)[0])


def test_unreadable_video_is_named(dataset, cfg, tmp_path):
    from dataclasses import replace

    record = clip_records(cfg, [NAME], False)[0]
    gone = record | {"video": replace(record["video"], path=str(tmp_path / "gone.mp4"))}
    with pytest.raises(DataError, match="gone.mp4"):
        ClipMapper(cfg, is_train=False)(gone)


def test_person_scores_differ_between_training_and_test(dataset, cfg, tmp_path):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("a,1,0,0,0.5,0.5,,0.9\na,1,0.2,0.2,0.4,0.4,,0.6\n")
    source = MetadataCatalog.get(NAME).source
    register_ava(
        "clip_mapper_boxes", AvaSource(source.annotations, source.label_map, source.videos, (str(boxes),))
    )
    try:
        cfg.INPUT.CLIP.PERSON_SCORE_TRAIN, cfg.INPUT.CLIP.PERSON_SCORE_TEST = 0.95, 0.5
        train = clip_records(cfg, ["clip_mapper_boxes"], True)
        test = clip_records(cfg, ["clip_mapper_boxes"], False)
        assert [len(r["boxes"]) for r in train] == [2, 1]
        assert [len(r["boxes"]) for r in test] == [2], "second 2 has no detected person"
    finally:
        DatasetCatalog.remove("clip_mapper_boxes")
        MetadataCatalog.remove("clip_mapper_boxes")
