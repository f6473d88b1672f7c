"""The embedded data set: deterministic, sound annotations, written once, read as ordinary COCO data."""

import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.structures import pairwise_iou
from PIL import Image
from pycocotools import mask as mask_util

from nlnet_d2.data.check import check_coco
from nlnet_d2.data.datasets import shape_scenes as scenes
from nlnet_d2.data.datasets.shapes import (
    CATEGORIES,
    ShapesParameters,
    draw_image,
    register_shapes,
    write_coco,
    write_shapes,
)

SMALL = ShapesParameters("val", count=60, side=96, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shapes(SMALL, tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def content(folder):
    return json.loads((folder / "annotations.json").read_text())


def digest(folder: Path) -> str:
    """Of the JSON file and of all pixels."""
    state = hashlib.sha256((folder / "annotations.json").read_bytes())
    for path in sorted((folder / "images").iterdir()):
        state.update(path.name.encode() + np.asarray(Image.open(path)).tobytes())
    return state.hexdigest()


def test_same_parameters_same_data(folder, tmp_path):
    assert digest(write_shapes(SMALL, tmp_path)) == digest(folder)


def test_other_seed_or_split_other_data(tmp_path):
    variants = [ShapesParameters("val", 4, 64, 0), ShapesParameters("val", 4, 64, 1)]
    variants.append(ShapesParameters("train", 4, 64, 0))
    folders = [write_shapes(parameters, tmp_path) for parameters in variants]
    assert len({digest(folder) for folder in folders}) == 3


def test_an_image_does_not_depend_on_the_number_of_images():
    few, many = ShapesParameters("val", 5), ShapesParameters("val", 500)
    (image, objects), (same_image, same_objects) = draw_image(few, 4), draw_image(many, 4)
    assert np.array_equal(image, same_image) and objects == same_objects


def test_variety(content, folder):
    """Crowds, empty images, split masks, all classes, three image shapes and both file formats."""
    annotations, images = content["annotations"], content["images"]
    assert {a["category_id"] for a in annotations if not a["iscrowd"]} == {1, 2, 3, 4}
    assert any(a["iscrowd"] for a in annotations)
    assert any(len(a["segmentation"]) > 1 for a in annotations if not a["iscrowd"])
    assert {image["id"] for image in images} - {a["image_id"] for a in annotations}, "an image without object"
    assert {(i["height"], i["width"]) for i in images} == {(96, 96), (77, 96), (96, 77)}
    formats = {Image.open(path).format for path in (folder / "images").iterdir()}
    assert formats == {"JPEG", "PNG"}


def test_the_checker_has_nothing_but_empty_images_to_say(folder):
    found = check_coco(
        str(folder / "annotations.json"), str(folder / "images"), mask_format="polygon", keypoints=True
    )
    assert {(finding.severity, finding.key) for finding in found} == {("warning", "annotations")}


def decoded(annotation: dict, image: dict) -> np.ndarray:
    size = image["height"], image["width"]
    rle = mask_util.frPyObjects(annotation["segmentation"], *size)
    return mask_util.decode(rle if isinstance(rle, dict) else mask_util.merge(rle)).astype(bool)


def test_masks_boxes_and_areas_agree(content):
    images = {image["id"]: image for image in content["images"]}
    for annotation in content["annotations"]:
        mask = decoded(annotation, images[annotation["image_id"]])
        x, y, width, height = annotation["bbox"]
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        assert x - 0.5 <= columns[0] and columns[-1] + 1 <= x + width + 0.5
        assert y - 0.5 <= rows[0] and rows[-1] + 1 <= y + height + 0.5
        if not annotation["iscrowd"]:
            points = np.concatenate([np.reshape(piece, (-1, 2)) for piece in annotation["segmentation"]])
            assert [*points.min(axis=0), *points.max(axis=0)] == [x, y, x + width, y + height]
        # pycocotools counts every pixel that a polygon's edge comes near.
        tolerance = 0 if annotation["iscrowd"] else 0.03 * mask.sum() + 10
        assert abs(mask.sum() - annotation["area"]) <= tolerance


def test_polygons_are_the_visible_parts():
    """No pixel belongs to two objects, and together they cover what is painted over the background."""
    for index in range(12):
        rng = np.random.default_rng(index)
        objects = scenes.scatter_objects(rng, 96, 96)
        labels = scenes.label_map(objects, 96, 96)
        owners = np.zeros((96, 96), int)
        for annotation in scenes.annotate(objects, 96, 96):
            owners += decoded(annotation, {"height": 96, "width": 96})
        covered = cv2.resize((labels > 0).astype(np.float32), (96, 96), interpolation=cv2.INTER_AREA)
        assert np.all(owners[covered == 0] == 0), "nothing outside"
        certain = cv2.erode((covered == 1).astype(np.uint8), np.ones((3, 3))) > 0
        assert (owners[certain] == 1).mean() > 0.97, "but for pixels on the line between two objects"


def test_every_object_stays_recognisable():
    for index in range(30):
        objects = scenes.scatter_objects(np.random.default_rng(index), 128, 160)
        labels = scenes.label_map(objects, 128, 160)
        for i, shapes in enumerate(objects, start=1):
            alone = scenes.label_map([shapes], 1000, 1000)  # nothing is cut off to the right and below
            if len(shapes) == 1 and np.all(shapes[0].outline() >= 0):
                assert (labels == i).sum() >= 0.49 * (alone == 1).sum()


@pytest.mark.parametrize("form", scenes.OUTLINES)
def test_a_shape_by_itself_is_described_exactly(form):
    shape = scenes.Shape(form, centre=(50.0, 40.0), radius=20.0, tilt=0.3, colour=(1, 0, 0))
    (annotation,) = scenes.annotate([(shape,)], 100, 100)
    outline = shape.outline()
    corner, end = outline.min(axis=0), outline.max(axis=0)
    assert annotation["bbox"] == pytest.approx([*corner, *(end - corner)], abs=0.5)
    painted = np.count_nonzero(scenes.label_map([(shape,)], 100, 100)) / scenes.SUBPIXELS**2
    assert annotation["area"] == pytest.approx(painted, rel=0.02)
    assert annotation["area"] == pytest.approx(cv2.contourArea(outline.astype(np.float32)), rel=0.04)
    keypoints = np.array(annotation["keypoints"]).reshape(-1, 3)
    assert keypoints[:, 2].tolist() == [2] * 5
    assert keypoints[:, :2] == pytest.approx(shape.keypoints() - 0.5, abs=0.01), "COCO: pixel indices"
    _, top, left, right, bottom = keypoints[:, :2]
    assert left[0] < min(top[0], bottom[0]) and right[0] > max(top[0], bottom[0])
    assert top[1] < min(left[1], right[1], bottom[1])


def test_visibility_of_keypoints():
    square = partial(scenes.Shape, "square", radius=20.0, tilt=0.0, colour=(1, 0, 0))
    below, above, cut = square(centre=(40.0, 50.0)), square(centre=(60.0, 50.0)), square(centre=(95.0, 20.0))
    first, second, third = scenes.annotate([(below,), (above,), (cut,)], 100, 100)
    # centre, top, left, right, bottom
    assert first["keypoints"][2::3] == [2, 2, 2, 1, 2], "its right side lies under the other square"
    assert second["keypoints"][2::3] == [2, 2, 2, 2, 2]
    assert third["keypoints"][2::3] == [2, 2, 2, 0, 2] and third["keypoints"][9:12] == [0, 0, 0]
    assert third["num_keypoints"] == 4


def test_flip_map_is_the_mirror_image():
    flip = create_keypoint_hflip_indices("shapes_train")
    assert flip == [0, 1, 3, 2, 4]
    assert [flip[i] for i in flip] == list(range(5)), "twice is the identity"
    for form, points in scenes.KEYPOINTS.items():
        assert np.allclose(points[flip] * [-1, 1], points), form


def test_crowds_are_run_lengths_with_several_shapes():
    crowd = scenes.random_crowd(np.random.default_rng(0), "star", np.array([40.0, 40.0]), 20.0)
    (annotation,) = scenes.annotate([crowd], 80, 80)
    assert len(crowd) >= 10 and annotation["iscrowd"] == 1 and annotation["num_keypoints"] == 0
    mask = decoded(annotation, {"height": 80, "width": 80})
    assert mask.sum() == annotation["area"] > 0
    assert sum(annotation["segmentation"]["counts"]) == 80 * 80


@pytest.mark.parametrize("mask", [np.zeros((3, 2), bool), np.ones((3, 2), bool), np.eye(4, dtype=bool)])
def test_run_lengths_are_those_of_pycocotools(mask):
    rle = {"size": list(mask.shape), "counts": scenes.run_lengths(mask)}
    assert np.array_equal(mask_util.decode(mask_util.frPyObjects(rle, *mask.shape)), mask)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_detectron2_reads_it(folder, content, mask_format, training_mapper):
    register_shapes("shapes_small", SMALL, folder.parent)
    mapper = training_mapper("shapes_small", mask_format)
    count = 0
    for record in DatasetCatalog.get("shapes_small"):
        instances = mapper(record)["instances"]
        count += len(instances)
        if len(instances):
            # Tips thinner than a pixel are lost when a polygon becomes a bitmask.
            mask_boxes = instances.gt_masks.get_bounding_boxes()
            assert pairwise_iou(mask_boxes, instances.gt_boxes).diag().min() > 0.6
            assert instances.gt_keypoints.tensor.shape[1:] == (5, 3)
    assert count == sum(not annotation["iscrowd"] for annotation in content["annotations"])


def test_names_are_there_and_nothing_is_drawn_by_the_import(tmp_path):
    script = (
        "import nlnet_d2\n"
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "assert {'shapes_train', 'shapes_val'} <= set(DatasetCatalog)\n"
        "print(MetadataCatalog.get('shapes_val').json_file)\n"
    )
    environment = os.environ | {"DETECTRON2_DATASETS": str(tmp_path / "data")}
    run = subprocess.run([sys.executable, "-c", script], env=environment, check=True, stdout=subprocess.PIPE)
    assert Path(run.stdout.decode().strip()).is_relative_to(tmp_path / "data" / "shapes")
    assert not (tmp_path / "data").exists()


def test_processes_that_start_at_once_draw_it_once(tmp_path):
    script = (
        "import logging, sys\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "from nlnet_d2.data.datasets.shapes import ShapesParameters, write_shapes\n"
        f"folder = write_shapes(ShapesParameters('val', 60, 64), {str(tmp_path)!r})\n"
        "assert (folder / 'annotations.json').exists() and len(list((folder / 'images').iterdir())) == 60\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(2)]
    output = "".join(run.communicate()[0].decode() for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert output.count("Drawing 60 images") == 1
    assert [path.suffix for path in tmp_path.iterdir() if path.is_dir()] == [""], "no partial folder is left"


def test_an_interrupted_drawing_leaves_nothing_that_looks_complete(tmp_path):
    parameters = ShapesParameters("val", 6, 64)

    def interrupted(index):
        if index == 4:
            raise KeyboardInterrupt
        return draw_image(parameters, index)

    folder = tmp_path / parameters.folder
    with pytest.raises(KeyboardInterrupt):
        write_coco(folder, interrupted, parameters.count, CATEGORIES)
    assert not folder.exists()
    (tmp_path / f"{parameters.folder}.partial" / "images" / "old.jpg").touch()
    assert len(list((write_shapes(parameters, tmp_path) / "images").iterdir())) == 6


def test_other_scenes_from_the_same_parts(tmp_path):
    """For example a class that depends on what else is in the image."""

    def draw(index):
        rng = np.random.default_rng(index)
        forms = ["circle", "square" if index % 2 else "star"]
        objects = [
            (scenes.random_shape(rng, form, (x, 32.0), 12.0),)
            for form, x in zip(forms, (16, 48), strict=True)
        ]
        circle, other = scenes.annotate(objects, 64, 64)
        image = scenes.paint_scene(rng, objects, 64, 64)
        return image, [circle | {"form": f"circle beside {other['form']}"}]

    categories = [{"id": 5, "name": "circle beside square"}, {"id": 6, "name": "circle beside star"}]
    folder = write_coco(tmp_path / "relations", draw, 4, categories)
    content = json.loads((folder / "annotations.json").read_text())
    assert [annotation["category_id"] for annotation in content["annotations"]] == [6, 5, 6, 5]
    assert not check_coco(str(folder / "annotations.json"), str(folder / "images"), mask_format="polygon")


@pytest.mark.parametrize("change", [{"split": "test"}, {"count": 0}, {"side": 32}, {"seed": -1}])
def test_impossible_parameters(change):
    with pytest.raises(ValueError, match="expected a split of"):
        ShapesParameters(**{"split": "val", "count": 1, **change})
