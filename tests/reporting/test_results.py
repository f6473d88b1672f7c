"""Tables, curves and comparisons of data sets: the numbers of the evaluators, and the known faults."""

import json

import pytest
from detectron2.config import get_cfg

from nlnet_d2.data.datasets.coco import register_coco_data
from nlnet_d2.evaluation.coco import FastCOCOEvaluator
from nlnet_d2.reporting.coco_results import SUMMARY, coco_results
from nlnet_d2.reporting.run_folder import COCO_RESULTS, read_run
from nlnet_d2.reporting.sections import compare_all, read_results, result_section


@pytest.fixture
def tiny_results(coco_run):
    (results,), notes = read_results(read_run(coco_run))
    assert notes == []
    return results


def table(results, title: str) -> dict:
    (found,) = [table for table in results.tables if table.title == title]
    return {row[0]: row[1:] for row in found.rows}


def test_coco_numbers_are_the_evaluators(tiny_results, coco_run):
    evaluator, expected = FastCOCOEvaluator("tiny_val", output_dir=None), []
    evaluator.reset()
    evaluator._derive_coco_results = lambda evaluation, *args, **kwargs: expected.extend(evaluation.stats)
    predictions = json.loads((coco_run / "inference" / COCO_RESULTS).read_text())
    for prediction in predictions:
        prediction["category_id"] -= 1  # those of the model, which the evaluator maps back
    evaluator._predictions = [{"image_id": 0, "instances": predictions}]
    evaluator.evaluate()
    summary = table(tiny_results, "Boxes: COCO's numbers")
    assert len(summary) == 12
    assert [row[0] for row in summary.values()] == [
        pytest.approx(100 * value, abs=1e-9) if value >= 0 else None for value in expected[:12]
    ]
    assert summary["AP large"] == [None]  # there are none


def test_per_class(tiny_results):
    rows = table(tiny_results, "Boxes: per class")
    assert list(rows) == ["box", "disc", "cross"]
    assert sum(row[0] for row in rows.values()) == 6  # objects
    known = [row[1] for row in rows.values() if row[1] is not None]
    assert sum(known) / len(known) == pytest.approx(table(tiny_results, "Boxes: COCO's numbers")["AP"][0])


def test_crowds_are_no_objects_of_a_class(coco_run, tiny_data, tmp_path):
    """As in COCO's numbers."""
    truth = json.loads((tiny_data / "val.json").read_text())
    truth["annotations"][0]["iscrowd"] = 1
    (tmp_path / "crowd.json").write_text(json.dumps(truth))
    register_coco_data("with_a_crowd", str(tmp_path / "crowd.json"), str(tiny_data / "val"))
    results = coco_results("with_a_crowd", coco_run / "inference" / COCO_RESULTS, get_cfg())
    assert sum(row[0] for row in table(results, "Boxes: per class").values()) == 5


def test_curves_belong_to_the_numbers(tiny_results):
    (overall,) = [c for t, c in tiny_results.curves.items() if t == "Boxes: mean over classes"]
    by_label = {curve.label: 100 * curve.precision.mean() for curve in overall}
    summary = table(tiny_results, "Boxes: COCO's numbers")
    assert by_label["overlap 0.50 to 0.95"] == pytest.approx(summary["AP"][0])
    assert by_label["overlap 0.50"] == pytest.approx(summary["AP50"][0])


def test_known_faults_are_found(tiny_results):
    verdicts = [verdict for _, verdict in compare_all(tiny_results)]
    counts = [(len(v.right), len(v.confused), len(v.missed), len(v.false)) for v in verdicts]
    assert counts == [(2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 1)]


def test_actions(ava_run):
    (results,), notes = read_results(read_run(ava_run))
    assert notes == []
    assert len(table(results, "Actions: per class")) == 9
    assert set(table(results, "Actions: mean over classes")) >= {"mAP", "mAP PERSON_MOVEMENT"}
    pairs = compare_all(results)
    assert not any(verdict.missed for _, verdict in pairs)
    false = [int(c.found.classes[f]) for c, v in pairs for f in v.false]
    assert set(false) == {6}  # "carry" is said of everybody
    for compared, _ in pairs:
        truth, found = compared.draw()
        assert truth.shape == found.shape
        assert (truth != found).any()  # 100 % here, the score there


def test_data_that_are_elsewhere(coco_run, copy):
    folder = copy(coco_run)
    text = (folder / "config.yaml").read_text()
    assert "val.json" in text
    (folder / "config.yaml").write_text(text.replace("val.json", "gone.json").replace("tiny_val", "gone_val"))
    results, notes = read_results(read_run(folder))
    assert results == []
    assert "are not here" in notes[0]


def test_not_evaluated(coco_run, copy):
    folder = copy(coco_run)
    (folder / "inference" / "coco_instances_results.json").unlink()
    results, (note,) = read_results(read_run(folder))
    assert results == []
    assert note.startswith("tiny_val: there are no detections")


def test_detections_of_other_data(coco_run, copy):
    folder = copy(coco_run)
    path = folder / "inference" / COCO_RESULTS
    path.write_text(path.read_text().replace('"image_id": 2', '"image_id": 77'))
    results, (note,) = read_results(read_run(folder))
    assert results == []
    assert "image_id 77 is not in the data" in note


def test_nothing_was_detected(coco_run, copy):
    folder = copy(coco_run)
    (folder / "inference" / COCO_RESULTS).write_text("[]")
    (results,), _ = read_results(read_run(folder))
    section = result_section(results, compare_all(results))
    assert section.notes == ["The model detected nothing at all: every average precision is 0."]
    assert {card.kind for card in section.cards} == {"worst", "missed"}


def test_keypoints(tiny_data, tmp_path):
    """Two keypoints per object, the first of which is found too far away in one of six objects."""
    content = json.loads((tiny_data / "val.json").read_text())
    for category in content["categories"]:
        category["keypoints"] = ["middle", "corner"]
    for thing in content["annotations"]:
        x, y, w, h = thing["bbox"]
        thing |= {"keypoints": [x + w / 2, y + h / 2, 2, x + w, y + h, 2], "num_keypoints": 2}
        thing["area"] = 40.0**2  # the protocol leaves out small ones
    (tmp_path / "points.json").write_text(json.dumps(content))
    register_coco_data("tiny_points", str(tmp_path / "points.json"), str(tiny_data / "val"))
    found = [
        {key: thing[key] for key in ("image_id", "category_id", "bbox", "keypoints")} | {"score": 0.9}
        for thing in content["annotations"]
    ]
    found[0]["keypoints"][0] += 1000
    (tmp_path / "results.json").write_text(json.dumps(found))
    cfg = get_cfg()
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05, 0.05]
    results = coco_results("tiny_points", tmp_path / "results.json", cfg)
    summary = table(results, "Keypoints: COCO's numbers")
    assert list(summary) == list(SUMMARY["keypoints"])
    assert 0 < summary["AP"][0] < 100
    assert summary["AP large"] == [None]
    truth, prediction = results.compared[0].draw()
    assert (truth != prediction).any()
