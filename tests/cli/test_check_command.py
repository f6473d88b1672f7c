"""Data checked from the command line: problems, statistics, a picture."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image


def test_images(nlnet, tiny_data, tmp_path):
    picture = tmp_path / "samples.png"
    code, out, _ = nlnet("check", tiny_data / "val.json", tiny_data / "val", "--picture", picture)
    assert code == 0 and "0 errors, 0 warnings" in out
    assert "images     3, 0 of them without objects" in out and "width 48 to 64" in out
    content = json.loads((tiny_data / "val.json").read_text())
    for category in content["categories"]:
        of_class = [a for a in content["annotations"] if a["category_id"] == category["id"]]
        images = len({a["image_id"] for a in of_class})
        row = next(line.split() for line in out.splitlines() if line.startswith(f"{category['name']} "))
        assert (row[1], row[3]) == (str(len(of_class)), str(images))
    pixels = np.asarray(Image.open(picture))
    assert pixels.shape[1] > 3 * 300 and pixels.std() > 20


def test_mistakes_are_all_named_and_nothing_is_drawn(nlnet, tiny_data, tmp_path):
    content = json.loads((tiny_data / "val.json").read_text())
    content["annotations"][0]["bbox"][2] = -5
    content["annotations"][1]["category_id"] = 9
    content["annotations"][2]["segmentation"] = [[1, 2, 3, 4]]
    content["images"][2]["file_name"] = "nowhere.png"
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    picture = tmp_path / "samples.png"
    code, out, err = nlnet("check", broken, tiny_data / "val", "--picture", picture)
    assert code == 3 and "4 errors" in out and not picture.exists() and str(broken) not in DatasetCatalog
    for part in ("annotation 1 ", "annotation 2 ", "annotation 3 ", "nowhere.png"):
        assert any(line.startswith(f"error: {broken}") and part in line for line in out.splitlines())
    assert "4 problem(s), see above" in err
    _, out, _ = nlnet("check", broken, tiny_data / "val", "--limit", "1")
    assert out.count("error: ") == 1 and "... and 3 more" in out


def test_clips_in_a_folder(nlnet, tiny_clips, tmp_path):
    """Their names are those of the embedded data set."""
    folder = next(path.parent for path in tiny_clips.rglob("annotations.csv"))
    picture = tmp_path / "samples.png"
    code, out, err = nlnet("check", folder, "--fps", "16", "--picture", picture)
    assert code == 0, err
    assert "key frames" in out and "per acting person" in out and "wave slowly" in out
    assert np.asarray(Image.open(picture)).std() > 10


def test_bad_line_of_a_csv_is_named(nlnet, tiny_clips, tmp_path):
    folder = next(path.parent for path in tiny_clips.rglob("annotations.csv"))
    broken = tmp_path / "broken.csv"
    lines = (folder / "annotations.csv").read_text().splitlines()
    broken.write_text("\n".join([*lines[:3], lines[3].replace(",", ";"), *lines[4:]]))
    code, out, err = nlnet(
        "check", broken, folder / "videos", "--label-map", folder / "labels.pbtxt", "--fps", "16"
    )
    assert code == 3 and f"{broken}:4" in out and "1 problem(s)" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["shapes_vall"], 2, "is no file, folder or data set; did you mean shapes_val"),
        (["xyzzy"], 2, "xyzzy is no file, folder or data set; correct the path"),
        (["photo.jpg", "images"], 2, "photo.jpg: expected a name that ends in .json or .csv"),
        (["x.json"], 2, "x.json: name the folder of its images or videos too"),
        (["x.csv", "videos"], 2, "x.csv: name its classes too: --label-map labels.pbtxt"),
        (["."], 2, "holds no annotations.csv"),
        (["x.json", "images"], 3, "1 problem(s), see above"),
        (["coco_2017_val"], 3, "Built-in data sets are looked for in the folder DETECTRON2_DATASETS"),
    ],
)
def test_no_data(nlnet, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").touch()
    ended = nlnet("check", *arguments)
    assert ended[0] == code and message in ended[2]
