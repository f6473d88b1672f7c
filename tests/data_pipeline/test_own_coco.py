"""One's own COCO-format data, registered without writing Python."""

import json
import shutil
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from tiny_run import CONFIG

from nlnet_d2 import add_nlnet_config
from nlnet_d2.data.datasets.coco import (
    category_metadata,
    num_classes,
    num_keypoints,
    register_coco_data,
    register_from_config,
)
from nlnet_d2.data.errors import DataError
from nlnet_d2.engine.run import main


def config_with(*entries):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.merge_from_list(["DATASETS.REGISTER", str(list(entries))])
    return cfg


def test_classes_ids_and_keypoints_come_from_the_file(own):
    cfg = config_with({"NAME": "own_data", "JSON": str(own.json), "IMAGES": str(own.images)})
    register_from_config(cfg)
    register_from_config(cfg)  # a second time changes nothing
    metadata = MetadataCatalog.get("own_data")
    assert metadata.thing_classes == ["date", "fig"], "in the order of their ids"
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.evaluator_type == "coco"
    assert create_keypoint_hflip_indices("own_data") == [0, 2, 1]
    assert num_classes(["own_data"]) == 2
    assert num_keypoints(["own_data"]) == 3
    records = DatasetCatalog.get("own_data")
    assert [a["category_id"] for r in records for a in r["annotations"]] == [1, 0, 1, 0]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_detectron2_reads_it(own, mask_format, training_mapper):
    register_coco_data("own_data", str(own.json), str(own.images))
    mapper = training_mapper("own_data", mask_format)
    instances = mapper(DatasetCatalog.get("own_data")[2])["instances"]
    assert len(instances) == 1, "the crowd is not an instance"
    assert instances.gt_boxes.tensor.tolist() == [[5, 6, 25, 16]]
    assert instances.gt_keypoints.tensor.shape == (1, 3, 3)
    assert instances.gt_masks.get_bounding_boxes().tensor.tolist() == [[5, 6, 25, 16]]


def test_a_run_parses_each_file_once(tiny_data, tmp_path, monkeypatch):
    """Registered, checked and loaded; what is loaded later is what the file then holds."""
    parsed, stock, folder = [], json.load, tmp_path / "data"
    shutil.copytree(tiny_data, folder)
    monkeypatch.setattr(json, "load", lambda f, **kw: parsed.append(Path(f.name).name) or stock(f, **kw))
    sets = [["--dataset", f"once_{s}", str(folder / f"{s}.json"), str(folder / s)] for s in ("train", "val")]
    options = ["DATASETS.TRAIN", "['once_train']", "DATASETS.TEST", "['once_val']", "SOLVER.MAX_ITER", "1"]
    command = ["--config-file", str(CONFIG), *sum(sets, []), *options, "OUTPUT_DIR", str(tmp_path)]
    assert main(command) == 0
    assert parsed.count("train.json") == 1
    records = DatasetCatalog.get("once_train")
    assert len(records) == 12 and all(len(record["annotations"]) == 2 for record in records)
    content = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(content | {"annotations": content["annotations"][:2]}))
    assert sum(len(record["annotations"]) for record in DatasetCatalog.get("once_train")) == 2


def test_a_name_stands_for_one_data_set(own):
    register_coco_data("own_data", str(own.json), str(own.images))
    register_coco_data("own_data", str(own.json), str(own.images))
    with pytest.raises(DataError, match="own_data.*registered already"):
        register_coco_data("own_data", str(own.json), str(own.images.parent))
    with pytest.raises(DataError, match="coco_2017_val.*registered already"):
        register_coco_data("coco_2017_val", str(own.json), str(own.images))


@pytest.mark.parametrize(
    "entry", [{"NAME": "x", "JSON": "x.json"}, {"NAME": "x", "JSON": "x", "IMAGES": ".", "ROOT": "."}, "x"]
)
def test_entry_with_other_keys(entry):
    with pytest.raises(DataError, match=r"DATASETS.REGISTER\[0\].*NAME, JSON and IMAGES"):
        register_from_config(config_with(entry))


def test_absent_files_are_named(own):
    with pytest.raises(DataError, match="no file 'nowhere.json'"):
        register_coco_data("own_data", "nowhere.json", str(own.images))
    with pytest.raises(DataError, match="no folder 'nowhere'"):
        register_coco_data("own_data", str(own.json), "nowhere")


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"images": [', "own.json.*not valid JSON.*truncated"),
        ("[]", "own.json: categories"),
        ('{"categories": []}', "own.json: categories: expected a list that is not empty"),
        ('{"categories": [{"id": 1}]}', "own.json: categories.*'name'"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "own.json.*repeated"),
    ],
)
def test_file_without_usable_categories(own, text, message):
    own.json.write_text(text)
    with pytest.raises(DataError, match=message):
        register_coco_data("own_data", str(own.json), str(own.images))


def keypoints(*names, **more):
    return category_metadata([{"id": 1, "name": "thing", "keypoints": list(names), **more}], "own.json")


@pytest.mark.parametrize(
    "names, pairs",
    [
        (["nose", "left_eye", "right_eye"], [("left_eye", "right_eye")]),
        (["eye_right", "eye_left"], [("eye_right", "eye_left")]),
        (["RightEar", "LeftEar", "earLeft", "earRight"], [("RightEar", "LeftEar"), ("earLeft", "earRight")]),
        (["LEFT", "RIGHT"], [("LEFT", "RIGHT")]),
        (["bright_spot", "cleft"], []),
    ],
)
def test_flip_map_from_names(names, pairs):
    assert keypoints(*names)["keypoint_flip_map"] == pairs


def test_given_flip_map_and_skeleton():
    metadata = keypoints("l", "r", "left_over", flip_map=[["l", "r"]], skeleton=[[1, 2], [2, 3]])
    assert metadata["keypoint_flip_map"] == [("l", "r")]
    assert [rule[:2] for rule in metadata["keypoint_connection_rules"]] == [("l", "r"), ("r", "left_over")]


def test_keypoints_that_cannot_be_used():
    with pytest.raises(DataError, match="'left_eye' has no partner 'right_eye'.*flip_map"):
        keypoints("nose", "left_eye")
    with pytest.raises(DataError, match="flip_map: expected pairs"):
        keypoints("l", "r", flip_map=[["l", "x"]])
    with pytest.raises(DataError, match=r"skeleton: expected pairs of \[1, 2\], got \[0, 1\]"):
        keypoints("l", "r", skeleton=[[0, 1]])
    with pytest.raises(DataError, match="keypoints: expected a list of different names"):
        keypoints("a", "a")
    with pytest.raises(DataError, match="'a' and 'b' have different keypoints"):
        category_metadata(
            [{"id": 1, "name": "a", "keypoints": ["x"]}, {"id": 2, "name": "b", "keypoints": ["y"]}],
            "own.json",
        )


def test_class_numbers_of_several_data_sets():
    assert num_classes(["coco_2017_train", "coco_2017_val"]) == 80
    assert num_keypoints(["coco_2017_val"]) == 0
    assert num_keypoints(["keypoints_coco_2017_val"]) == 17
    with pytest.raises(DataError, match="'coco_2017_vall'.*nearest names: coco_2017_val"):
        num_classes(["coco_2017_vall"])
    with pytest.raises(DataError, match="'coco_2017_val' and 'shapes_val' differ in thing_classes"):
        num_classes(["coco_2017_val", "shapes_val"])
    with pytest.raises(DataError, match="DATASETS.TRAIN"):
        num_classes([])
