"""The picture of predictions beside ground truth."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from nlnet_d2.data.datasets.coco import register_coco_data
from nlnet_d2.evaluation.gallery import CAPTION, COLOURS, MARGIN, PANEL, draw_gallery, draw_samples

ROW, COLUMN = PANEL + CAPTION + MARGIN, PANEL + MARGIN


@pytest.fixture
def draw(own, tmp_path):
    """Draws the gallery of given results; returns its panels by (image, column)."""
    register_coco_data("own_data", str(own.json), str(own.images))
    assert len(DatasetCatalog.get("own_data")) == 3

    def draw_panels(results, **options):
        results_json, output_png = tmp_path / "results.json", tmp_path / "gallery.png"
        results_json.write_text(json.dumps(results))
        draw_gallery("own_data", results_json, output_png, **options)
        picture = np.asarray(Image.open(output_png))
        rows, columns = picture.shape[0] // ROW, picture.shape[1] // COLUMN
        panels = [
            picture[r * ROW + CAPTION : (r + 1) * ROW, c * COLUMN : (c + 1) * COLUMN]
            for r in range(rows)
            for c in range(columns)
        ]
        return {(i // 3, i % 3): panel for i, panel in enumerate(panels)}

    return draw_panels


def result(**more):
    box = {"image_id": 10, "category_id": 7, "bbox": [20, 15, 10, 10], "score": 0.9}
    return box | {"segmentation": {"size": [30, 40], "counts": "P13:0000000000V7"}} | more


def test_image_truth_and_prediction_side_by_side(draw):
    panels = draw([result(segmentation={"size": [30, 40], "counts": [600, 100, 500]})])
    assert len(panels) == 4 * 3, "three images and a blank, two to a row"
    image, truth, prediction = (panels[0, column] for column in range(3))
    height = PANEL * 30 // 40
    assert image[: height - 1, : PANEL - 1].std() > 20 and np.all(image[height + 1 :] == 255), "enlarged"
    assert (image != truth).any() and (image != prediction).any() and (truth != prediction).any()
    assert np.array_equal(panels[1, 0], panels[1, 2]), "nothing was found in the second image"
    assert (panels[1, 0] != panels[1, 1]).any()
    assert np.all(panels[3, 0] == 255)


def test_boxes_and_keypoints_without_masks(draw):
    box = {key: value for key, value in result().items() if key != "segmentation"}
    panels = draw([box])
    with_keypoints = draw([box | {"keypoints": [22, 17, 1, 25, 20, 1, 21, 22, 1]}])
    assert (panels[0, 0] != panels[0, 2]).any()
    assert (panels[0, 2] != with_keypoints[0, 2]).any()
    assert (panels[0, 1] != with_keypoints[0, 1]).any(), "true keypoints are drawn beside predicted ones"


def test_uncertain_predictions_are_left_out(draw):
    box = {"image_id": 10, "category_id": 7, "bbox": [20, 15, 10, 10], "score": 0.3}
    assert np.array_equal(*[draw([box])[0, column] for column in (0, 2)])
    panels = draw([box], min_score=0.2)
    assert (panels[0, 0] != panels[0, 2]).any()


def test_no_prediction_at_all(draw):
    panels = draw([], count=1)
    assert np.array_equal(panels[0, 0], panels[0, 2])


def test_samples_of_wide_pictures_have_no_room_below(own, tmp_path):
    register_coco_data("own_data", str(own.json), str(own.images))
    draw_samples("own_data", tmp_path / "samples.png")
    picture = Image.open(tmp_path / "samples.png")
    assert picture.size == (3 * COLUMN, CAPTION + PANEL * 30 // 40 + MARGIN)


def test_names_of_all_classes_can_be_read_on_black():
    assert len(COLOURS) > 40 and min(0.299 * r + 0.587 * g + 0.114 * b for r, g, b in COLOURS) > 0.35
