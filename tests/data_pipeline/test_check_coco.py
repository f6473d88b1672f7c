"""Every problem of bad data is found, with its file, item, key and remedy, before a run starts."""

import json
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json
from PIL import Image

from nlnet_d2.data.check import check_coco, check_datasets
from nlnet_d2.data.datasets.coco import register_coco_data
from nlnet_d2.data.errors import DataError

NAN = float("nan")


def findings(own, **options):
    return check_coco(str(own.json), str(own.images), **options)


def the_finding(own, **options):
    (finding,) = findings(own, **options)
    assert finding.file == str(own.json)
    return finding


@pytest.mark.parametrize("mask_format", [None, "bitmask", "polygon"])
@pytest.mark.parametrize("decode", [False, True])
def test_good_data(own, mask_format, decode):
    assert findings(own, mask_format=mask_format, keypoints=True, decode=decode) == []


# Key and value of annotation 1, then words of the message.
BAD_ANNOTATIONS = [
    ("image_id", 99, "id of a valid image", "got 99"),
    ("image_id", None, "id of a valid image", "got None"),
    ("image_id", [10], "id of a valid image", "got [10]"),
    ("category_id", 1, "id of a valid category", "got 1"),
    ("bbox", [5, 6, 0, 10], "width and height above 0", "[5, 6, 0, 10]"),
    ("bbox", [5, 6, -5, 10], "width and height above 0", "[5, 6, -5, 10]"),
    ("bbox", [50, 6, 5, 10], "inside the image", "40 x 30 pixels"),
    ("bbox", [5, -20, 5, 10], "inside the image", "[x, y, width, height]"),
    ("bbox", [5, NAN, 5, 10], "four finite numbers", "nan"),
    ("bbox", [5, 6, float("inf"), 10], "four finite numbers", "inf"),
    ("bbox", [5, 6, 20], "four finite numbers", "[5, 6, 20]"),
    ("bbox", ["5", "6", "20", "10"], "four finite numbers", "'5'"),
    ("bbox", None, "four finite numbers", "None"),
    ("segmentation", [[5, 6, 25, 6]], "3 points or more", "[5, 6, 25, 6]"),
    ("segmentation", [[5, 6, 25, 6, 25, 16, 5]], "pairs x, y", "7 numbers"),
    ("segmentation", [[5, 6, 25, NAN, 25, 16]], "finite numbers", "nan"),
    ("segmentation", [[[5, 6], [25, 6], [25, 16]]], "finite numbers", "[[5, 6]"),
    ("segmentation", [5, 6, 25, 6, 25, 16], "lists of finite numbers", "got 5"),
    ("segmentation", "5 6 25 6", "polygons or a run-length mask", "5 6 25 6"),
    ("segmentation", {"size": [40, 30], "counts": [0, 1200]}, "image's size [30, 40]", "[40, 30]"),
    ("segmentation", {"size": [30, 40], "counts": [0, 1]}, "sum up to the image's pixels", "[0, 1]"),
    ("segmentation", {"size": [30, 40]}, "a list or a string", "None"),
    ("keypoints", [[10, 8, 2]], "a list of finite numbers", "[[10, 8, 2]]"),
    ("keypoints", [NAN, 8, 2], "a list of finite numbers", "nan"),
    ("ignore", 1, "0 or nothing", "iscrowd"),
    ("id", None, "a number", "None"),
    ("id", 2, "a unique id", "2 with this id"),
]


@pytest.mark.parametrize("key, value, expected, got", BAD_ANNOTATIONS)
def test_bad_annotation(own, key, value, expected, got):
    own.content["annotations"][0][key] = value
    own.save()
    errors = [finding for finding in findings(own) if finding.severity == "error"]
    problem = [finding for finding in errors if finding.key == key]
    assert problem and len(errors) <= len(problem) + 1, "and nothing else but a knock-on"
    item = "annotation 2" if value == 2 else "annotation at index 0" if key == "id" else "annotation 1"
    assert problem[0].item.startswith(item)
    for words in ("own.json", item, key, expected, got):
        assert words in str(problem[0])
    assert problem[0].remedy


@pytest.mark.parametrize(
    "change, words",
    [
        ({"segmentation": []}, ("a mask", "MODEL.MASK_ON False")),
        ({"segmentation": {"size": [30, 40], "counts": [0, 1200]}}, ("run-length", "MASK_FORMAT to bitmask")),
        ({"keypoints": []}, ("3 times x, y and visibility",)),
        ({"keypoints": [1, 2, 3] * 3}, ("3 times x, y and visibility",)),
        ({"keypoints": [1, 2, 2] * 2}, ("3 times x, y and visibility",)),
    ],
)
def test_what_a_model_is_to_learn_must_be_there(own, change, words):
    own.content["annotations"][0] |= change
    own.save()
    assert findings(own) == [], "a box detector does not need it"
    assert findings(own, train=False, mask_format="polygon", keypoints=True) == [], "nor does an evaluation"
    text = str(the_finding(own, mask_format="polygon", keypoints=True))
    assert all(word in text for word in words)


def test_category_without_keypoints(own):
    del own.content["categories"][0]["keypoints"]
    own.save()
    assert findings(own) == []
    assert {f.item for f in findings(own, keypoints=True)} == {
        "annotation 1 (image 10)",
        "annotation 3 (image 12)",
    }


def test_box_that_sticks_out_is_a_warning(own):
    own.content["annotations"][0]["bbox"] = [5, 6, 35.5, 10]
    own.save()
    assert findings(own) == [], "half a pixel is rounding"
    own.content["annotations"][0]["bbox"] = [5, 6, 60, 10]
    own.save()
    finding = the_finding(own)
    assert finding.severity == "warning" and "cut off" in str(finding)


def test_rare_degenerate_boxes_are_tolerated(own):
    """COCO train2017 holds two boxes without height among 860,001: it must stay trainable."""
    good = own.content["annotations"][0]
    own.content["annotations"] += [good | {"id": i} for i in range(100, 20_100)]
    own.content["annotations"][0] = good | {"bbox": [5, 6, 20, 0]}
    own.save()
    assert the_finding(own).severity == "warning"
    for annotation in own.content["annotations"][1:10]:
        annotation["bbox"] = [5, 6, 20, 0]
    own.save()
    assert {finding.severity for finding in findings(own)} == {"error"}


def test_images_without_objects_are_counted(own, caplog):
    own.content["annotations"] = own.content["annotations"][:1]
    own.save()
    assert [f.severity for f in findings(own)] == ["warning"] * 2
    register_coco_data("own_data", str(own.json), str(own.images))
    with caplog.at_level(logging.WARNING, logger="nlnet_d2.data.check"):
        check_datasets(["own_data"], train=True)
    (message,) = caplog.messages
    assert "own_data, 2 time(s), first:" in message and "image 11" in message
    assert "FILTER_EMPTY_ANNOTATIONS" in message


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", ["nothing", [], {}])
def test_missing_or_empty_lists(own, key, value):
    if value == "nothing":
        del own.content[key]
    else:
        own.content[key] = value
    own.save()
    finding = the_finding(own)
    assert finding.key == key and "a list that is not empty" in str(finding)


def test_test_split_without_annotations(own):
    del own.content["annotations"]
    own.save()
    assert findings(own, train=False) == [], "image_info_test2017.json is such a file"


@pytest.mark.parametrize(
    "text, words",
    [('{"images": [{"id": 1', "truncated"), ("", "truncated"), ("[1, 2]", "an object with the key images")],
)
def test_broken_json(own, text, words):
    own.json.write_text(text)
    assert words in str(the_finding(own))


@pytest.mark.parametrize("key", ["id", "file_name", "height", "width"])
def test_incomplete_image_record(own, key):
    del own.content["images"][0][key]
    own.save()
    problems = {finding.key for finding in findings(own)}
    assert problems == {key, "image_id"}, "annotations of the image dangle"


@pytest.mark.parametrize(("train", "severity"), [(True, "warning"), (False, "error")])
def test_images_with_text_for_an_id_cannot_be_scored(own, train, severity):
    for record in own.content["images"]:
        record["id"] = f"im{record['id']}"
    for annotation in own.content["annotations"]:
        annotation["image_id"] = f"im{annotation['image_id']}"
    own.save()
    finding = the_finding(own, train=train)
    assert (finding.severity, finding.key) == (severity, "id")


@pytest.mark.parametrize("kind", ["images", "categories"])
def test_repeated_ids(own, kind):
    own.content[kind].append(own.content[kind][0])
    own.save()
    finding = the_finding(own)
    assert finding.key == "id" and "2 with this id" in str(finding)


@pytest.mark.parametrize(
    "name", ["../own.json", "/etc/hosts", "images/../../own.json", "http://host/a.jpg", "a\\b.jpg", ".."]
)
def test_file_name_that_leads_out_of_the_folder(own, name):
    own.content["images"][0]["file_name"] = name
    own.save()
    finding = the_finding(own)
    assert finding.key == "file_name" and "a path in the image folder" in str(finding)


@pytest.mark.parametrize("name", ["../elsewhere.png", "/{root}/elsewhere.png", "http://host/a.png"])
def test_a_key_allows_other_places_on_this_machine(own, name):
    Image.new("RGB", (40, 30)).save(own.images.parent / "elsewhere.png")
    own.content["images"][0]["file_name"] = name.format(root=own.images.parent)
    own.save()
    assert "ALLOW_PATHS_OUTSIDE" in the_finding(own).remedy
    found = findings(own, outside=True)
    assert [finding.got for finding in found] == (["no such file"] if "http" in name else [])


def replace_image(own, name, data):
    (own.images / name).write_bytes(data)


def test_missing_image(own):
    (own.images / "a.jpg").unlink()
    text = str(the_finding(own))
    assert "image 10 (a.jpg)" in text and "no such file" in text


@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_image(own, name, share):
    data = (own.images / name).read_bytes()
    replace_image(own, name, data[: int(share * len(data))])
    finding = the_finding(own)
    assert name in finding.item and "a complete image" in str(finding) and "download" in finding.remedy


def test_web_page_instead_of_an_image(own):
    replace_image(own, "b.png", b"<html>404 not found</html>" * 9)
    assert "a complete image" in str(the_finding(own))


def test_padding_after_the_end_is_harmless(own):
    replace_image(own, "a.jpg", (own.images / "a.jpg").read_bytes() + bytes(500))
    assert findings(own) == []


def test_damage_in_the_middle_is_found_by_decoding(own):
    data = bytearray((own.images / "b.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    replace_image(own, "b.png", bytes(data))
    assert findings(own) == []
    assert "b.png" in the_finding(own, decode=True).item


def test_image_of_another_size(own):
    Image.new("RGB", (41, 30)).save(own.images / "c.png")
    text = str(the_finding(own))
    assert "40 x 30 pixels" in text and "41 x 30" in text


def test_exif_orientation_counts(own):
    """Detectron2 turns the image, so the JSON has to give the size as shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(own.images / "a.jpg", exif=exif)
    assert "30 x 40" in str(the_finding(own))
    Image.new("RGB", (30, 40)).save(own.images / "a.jpg", exif=exif)
    assert findings(own) == []


def test_sixteen_bits_per_channel(own):
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save(own.images / "b.png")
    text = str(the_finding(own))
    assert "8 bits per channel" in text and "mode I" in text


def test_missing_image_folder(own):
    for folder in ("", str(own.images / "nowhere")):
        (finding,) = check_coco(str(own.json), folder)
        assert "a folder of images" in str(finding)


def test_a_run_is_stopped_with_the_first_problems_and_their_number(own):
    template = own.content["annotations"][0]
    own.content["annotations"] += [template | {"id": 100 + i, "bbox": [0, 0, 1]} for i in range(30)]
    own.save()
    register_coco_data("own_data", str(own.json), str(own.images))
    with pytest.raises(DataError) as error:
        check_datasets(["own_data", "voc_2007_train"], train=True)
    message = str(error.value)
    assert message.startswith("30 problem(s) in the data:")
    assert "annotation 100 (image 10): bbox: expected four finite numbers" in message
    assert "and 20 more" in message and "annotation 110" not in message


JUNK = [None, -1, 0, 1e9, NAN, 1.5, True, "x", "", [], [1], [[1, 2, 3]], {}, {"id": 1}]


def spoil(content, rng) -> None:
    """Replace, remove or double one value at a random depth."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = keys[rng.integers(len(keys))]
        if not isinstance(content[key], (dict, list)) or not content[key] or rng.random() < 0.15:
            break
        content = content[key]
    action = rng.choice(["replace", "remove", "double"])
    if action == "replace":
        content[key] = JUNK[rng.integers(len(JUNK))]
    elif action == "remove":
        del content[key]
    elif isinstance(content, list):
        content.append(content[key])


@pytest.mark.parametrize("seed", range(4))
def test_what_passes_can_be_trained_on(own, seed):
    """Spoilt files are refused, or Detectron2 reads them: nothing is left for a worker process to die of."""
    good, outcomes = json.dumps(own.content), Counter()
    rng = np.random.default_rng(seed)
    mapper = DatasetMapper(
        is_train=True, augmentations=[], image_format="BGR", use_instance_mask=True, use_keypoint=True
    )
    for _ in range(60):
        own.content = json.loads(good)
        spoil(own.content, rng)
        own.save()
        found = findings(own, mask_format="polygon", keypoints=True)
        refused = any(finding.severity == "error" for finding in found)
        outcomes[refused] += 1
        if not refused:
            for record in load_coco_json(str(own.json), str(own.images)):
                assert torch.isfinite(mapper(record)["instances"].gt_boxes.tensor).all()
    assert min(outcomes[True], outcomes[False]) > 5


def test_absent_built_in_data_set(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/somewhere/else")
    with pytest.raises(DataError) as error:
        check_datasets(["coco_2017_val"], train=False)
    message = str(error.value)
    for words in ("coco_2017_val", "coco/annotations/instances_val2017.json", "coco/val2017"):
        assert words in message
    assert "'/somewhere/else'" in message and "cocodataset.org" in message
    monkeypatch.delenv("DETECTRON2_DATASETS")
    with pytest.raises(DataError, match="is not set, which means ./datasets"):
        check_datasets(["coco_2017_val"], train=False)


def test_repeated_annotations_of_minival_pass(own):
    """COCO 2014 minival has some, and Detectron2 reads it."""
    own.content["annotations"].append(own.content["annotations"][0])
    own.json = own.json.with_name("instances_minival2014.json")
    own.save()
    assert the_finding(own).severity == "warning"
    assert json.loads(own.json.read_text())["annotations"][-1]["id"] == 1
