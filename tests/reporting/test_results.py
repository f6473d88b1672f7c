"""Tables, curves and comparisons of data sets: the numbers of the evaluators, and the known faults."""

import json

import pytest

from nlnet_d2.evaluation.coco import FastCOCOEvaluator
from nlnet_d2.reporting.run_folder import COCO_RESULTS, read_run
from nlnet_d2.reporting.sections import compare_all, read_results, result_section


@pytest.fixture
def coco_results(coco_run):
    (results,), notes = read_results(read_run(coco_run))
    assert notes == []
    return results


def table(results, title: str) -> dict:
    (found,) = [table for table in results.tables if table.title == title]
    return {row[0]: row[1:] for row in found.rows}


def test_coco_numbers_are_the_evaluators(coco_results, coco_run):
    evaluator, expected = FastCOCOEvaluator("tiny_val", output_dir=None), []
    evaluator.reset()
    evaluator._derive_coco_results = lambda evaluation, *args, **kwargs: expected.extend(evaluation.stats)
    predictions = json.loads((coco_run / "inference" / COCO_RESULTS).read_text())
    for prediction in predictions:
        prediction["category_id"] -= 1  # those of the model, which the evaluator maps back
    evaluator._predictions = [{"image_id": 0, "instances": predictions}]
    evaluator.evaluate()
    summary = table(coco_results, "Boxes: COCO's numbers")
    assert len(summary) == 12
    assert [row[0] for row in summary.values()] == [
        pytest.approx(100 * value, abs=1e-9) if value >= 0 else None for value in expected[:12]
    ]
    assert summary["AP large"] == [None]  # there are none


def test_per_class(coco_results):
    rows = table(coco_results, "Boxes: per class")
    assert list(rows) == ["box", "disc", "cross"]
    assert sum(row[0] for row in rows.values()) == 6  # objects
    known = [row[1] for row in rows.values() if row[1] is not None]
    assert sum(known) / len(known) == pytest.approx(table(coco_results, "Boxes: COCO's numbers")["AP"][0])


def test_curves_belong_to_the_numbers(coco_results):
    (overall,) = [c for t, c in coco_results.curves.items() if t == "Boxes: mean over classes"]
    by_label = {curve.label: 100 * curve.precision.mean() for curve in overall}
    summary = table(coco_results, "Boxes: COCO's numbers")
    assert by_label["overlap 0.50 to 0.95"] == pytest.approx(summary["AP"][0])
    assert by_label["overlap 0.50"] == pytest.approx(summary["AP50"][0])


def test_known_faults_are_found(coco_results):
    verdicts = [verdict for _, verdict in compare_all(coco_results)]
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
