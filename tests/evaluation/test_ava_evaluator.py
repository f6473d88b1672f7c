"""AVA evaluation against the golden cases (PySlowFast's numbers), its command, the evaluator of models."""

import csv
import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from nlnet_d2.data.datasets.ava import AvaSource, register_ava
from nlnet_d2.data.datasets.ava_files import AvaTable, read_ava_csv
from nlnet_d2.data.datasets.label_map import LabelMap, read_label_map
from nlnet_d2.data.errors import DataError
from nlnet_d2.evaluation.ava import (
    DETECTIONS_FILE,
    AvaEvaluator,
    class_groups,
    evaluate_ava,
    format_result,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "F_ava_eval"
CASES = ("case1", "case2")


def files(case: str) -> dict:
    names = {"groundtruth": "groundtruth.csv", "detections": "detections.csv", "labelmap": "labelmap.pbtxt"}
    return {key: GOLDEN / case / name for key, name in names.items()} | {
        "excluded": GOLDEN / case / "excluded.csv"
    }


def golden(case: str, name: str = "result.json") -> dict:
    return json.loads((GOLDEN / case / name).read_text())


@pytest.mark.parametrize("case", CASES)
def test_golden_case(case):
    expected, result = golden(case), evaluate_ava(**files(case), protocol="pyslowfast")
    # With equal scores the reference's own number depends on its sort; of its stable sorts, ours is this one.
    means = (result["mAP"], *result["mAP_bounds"])
    keys = ("mAP_stable_asc_reversed", "mAP_fp_first", "mAP_tp_first")
    np.testing.assert_allclose(means, [expected[key] for key in keys], rtol=0, atol=1e-14)
    assert set(result["per_class"]) == {int(id_) for id_ in expected["per_class"]}
    for id_, reference in expected["per_class"].items():
        ours = result["classes"][int(id_)]
        for key in ("name", "num_gt", "num_det", "num_tp", "tie_sensitive"):
            assert ours[key] == reference[key], (id_, key)
        for key in ("ap_tp_first", "ap_fp_first"):
            np.testing.assert_equal(ours[key], np.nan if reference[key] is None else reference[key])
        np.testing.assert_equal(
            result["per_class"][int(id_)],
            np.nan if reference["ap"] is None else reference["ap_stable_asc_reversed"],
        )
        if reference["ap"] is not None and not reference["tie_sensitive"]:
            assert ours["ap"] == reference["ap"]


def rewritten(source: Path, target: Path, change) -> Path:
    """A CSV with its list of rows changed."""
    with open(source, newline="") as file:
        rows = change(list(csv.reader(file)))
    target.write_text("".join(",".join(row) + "\n" for row in rows))
    return target


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "variant, change",
    [
        ("rows_sorted_by_score_desc", lambda rows: sorted(rows, key=lambda row: -float(row[7]))),
        ("rows_reversed", lambda rows: rows[::-1]),
        ("no_exclusion_file", lambda rows: rows),
        ("empty_detections", lambda rows: []),
    ],
)
def test_golden_variants(case, variant, change, tmp_path):
    paths = files(case)
    paths["detections"] = rewritten(paths["detections"], tmp_path / "d.csv", change)
    if variant == "no_exclusion_file":
        paths["excluded"] = None
    result = evaluate_ava(**paths, protocol="pyslowfast")
    variants = golden(case)["variants_mAP"].items()
    expected = next(value for name, value in variants if name.startswith(variant))
    low, high = result["mAP_bounds"]
    assert low - 1e-14 <= expected <= high + 1e-14


def test_golden_groundtruth_as_detections():
    """Also for duplicate and flat ground-truth boxes, of which case 2 has some."""
    for case in CASES:
        truth = files(case)["groundtruth"]
        paths = files(case) | {"detections": read_ava_csv(truth)}
        expected = golden(case)["variants_mAP"]["groundtruth_as_detections_score_1"]
        assert evaluate_ava(**paths, protocol="pyslowfast")["mAP"] == pytest.approx(expected, abs=1e-14)


def test_golden_arrays():
    arrays = np.load(GOLDEN / "case1" / "arrays.npz")
    video, second = arrays["metadata"].astype(int).T
    table = AvaTable.from_scores(
        arrays["video_names"][video], second, arrays["boxes"][:, 1:], arrays["preds"], range(1, 25)
    )
    paths = files("case1") | {"detections": table}
    result = evaluate_ava(**paths, protocol="pyslowfast")
    expected = golden("case1", "arrays_result.json")
    assert result["mAP"] == pytest.approx(expected["mAP"], abs=1e-14)
    for id_, ap in expected["per_class"].items():
        np.testing.assert_equal(result["per_class"][int(id_)], np.nan if ap is None else ap)


# Measured with the public evaluators themselves (ActivityNet af461c3 and mmaction2 4d6c934, the latter on the
# rows whose corners are in order, which it insists on).
@pytest.mark.parametrize(
    "protocol, case, expected",
    [
        ("activitynet", "case1", 0.33223472507121093),
        ("activitynet", "case2", 0.460734816291387),
        ("mmaction2", "case1", 0.3613170151258168),
        ("mmaction2", "case2", 0.43314514551956756),
    ],
)
def test_other_protocols(protocol, case, expected, tmp_path):
    paths = files(case)
    if protocol == "activitynet":
        paths["excluded"] = None  # the official program no longer reads it
    else:
        paths["detections"] = rewritten(paths["detections"], tmp_path / "d.csv", in_order)
    result = evaluate_ava(**paths, protocol=protocol)
    low, high = result["mAP_bounds"]
    assert low - 1e-14 <= expected <= high + 1e-14


def in_order(rows):
    return [row for row in rows if float(row[2]) <= float(row[4]) and float(row[3]) <= float(row[5])]


def test_groups_come_from_the_label_map():
    result = evaluate_ava(**files("case2"), protocol="pyslowfast")
    label_map = read_label_map(files("case2")["labelmap"])
    for group in set(label_map.groups.values()):
        aps = [result["per_class"][id_] for id_, its in label_map.groups.items() if its == group]
        assert result["groups"][group] == pytest.approx(np.nanmean(aps))


# The ids of ava_action_list_v2.2_for_activitynet_2019.pbtxt.
PUBLISHED_IDS = """1 3 4 5 6 7 8 9 10 11 12 13 14 15 17 20 22 24 26 27 28 29 30 34 36 37 38 41 43 45
46 47 48 49 51 52 54 56 57 58 59 60 61 62 63 64 65 66 67 68 69 70 72 73 74 76 77 78 79 80"""


def test_groups_of_the_published_list_without_types():
    groups = class_groups(LabelMap({int(id_): f"class {id_}" for id_ in PUBLISHED_IDS.split()}, {}))
    assert len(groups) == 60
    counts = {group: list(groups.values()).count(group) for group in set(groups.values())}
    assert counts == {"PERSON_MOVEMENT": 13, "OBJECT_MANIPULATION": 32, "PERSON_INTERACTION": 15}
    assert class_groups(LabelMap({1: "wave"}, {})) == {}, "another data set has no groups of AVA's"


def test_table_names_every_class_and_the_open_ties():
    result = evaluate_ava(**files("case2"), protocol="pyslowfast")
    text = format_result(result)
    assert all(name in text for name in read_label_map(files("case2")["labelmap"]).names.values())
    assert all(f"{100 * ap:.2f}" in text for ap in result["per_class"].values() if np.isfinite(ap))
    assert "34.59" in text
    assert "between 34.15 and 35.16" in text
    assert "open" not in format_result(result | {"mAP_bounds": (0.3459, 0.3459)})


# --- the command ---


def run_command(*arguments):
    command = [sys.executable, "tools/evaluate_ava.py", *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def test_command_prints_one_json_object():
    arguments = [part for key, path in files("case1").items() for part in (f"--{key}", path)]
    done = run_command(*arguments, "--protocol", "pyslowfast", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["mAP"] == pytest.approx(golden("case1")["mAP"], abs=1e-14)
    assert result["per_class"]["8"] is None, "NaN is not JSON"


def test_command_names_the_bad_row(tmp_path):
    bad = tmp_path / "d.csv"
    bad.write_text("v,0902,0.1,0.1,0.5,0.5,1,0.5\nv,0902,10,10,50,50,1,0.5\n")
    paths = files("case1") | {"detections": bad}
    done = run_command(*[part for key, path in paths.items() for part in (f"--{key}", path)])
    assert done.returncode == 3
    assert f"{bad}:2" in done.stderr and "pixels" in done.stderr
    assert "Traceback" not in done.stderr


def test_detections_on_other_videos_are_an_error(tmp_path):
    other = tmp_path / "d.csv"
    other.write_text("another,0902,0.1,0.1,0.5,0.5,1,0.5\n")
    with pytest.raises(DataError, match="none of its 1 videos"):
        evaluate_ava(**files("case1") | {"detections": other})


def test_excluded_frames_of_other_videos_are_named(tmp_path, caplog):
    other = tmp_path / "e.csv"
    other.write_text("another,0902\n")
    for excluded, times in ((files("case1")["excluded"], 0), (other, 1)):
        evaluate_ava(**files("case1") | {"excluded": excluded})
        assert caplog.text.count(f"{excluded}: none of its videos is among those of") == times


def test_label_map_of_other_data_is_an_error():
    with pytest.raises(DataError, match="no row is of a class of the label map"):
        evaluate_ava(**files("case1") | {"labelmap": LabelMap({999: "fly"}, {})})


def test_unknown_protocol():
    with pytest.raises(KeyError, match="pyslowfast"):
        evaluate_ava(**files("case1"), protocol="coco")


# --- the evaluator of models ---

CLASSES = 3
SIZE = (40, 80)  # height, width


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    """12 frames of 2 people; class 3 of the model is not evaluated."""
    folder, rng = tmp_path_factory.mktemp("ava"), np.random.default_rng(0)
    rows = []
    for second in range(12):
        for x in (0.1, 0.6):
            rows.append(f"v{second % 2},{second:04d},{x},0.25,{x + 0.3},0.75,{rng.integers(1, 4)},0\n")
    (folder / "gt.csv").write_text("".join(rows))
    (folder / "excluded.csv").write_text("v0,0004\n")
    (folder / "map.pbtxt").write_text('item { name: "run" id: 1 }\nitem { name: "sit" id: 2 }\n')
    (folder / "all.pbtxt").write_text("".join(f'item {{ name: "class {i}" id: {i} }}\n' for i in (1, 2, 3)))
    source = AvaSource(
        annotations=str(folder / "gt.csv"),
        label_map=str(folder / "all.pbtxt"),
        videos=str(folder),
        excluded=str(folder / "excluded.csv"),
        evaluated_label_map=str(folder / "map.pbtxt"),
    )
    register_ava("ava_evaluator_test", source)
    yield "ava_evaluator_test"
    DatasetCatalog.remove("ava_evaluator_test")
    MetadataCatalog.remove("ava_evaluator_test")


def predictions():
    """Inputs and outputs of a model for the frames of ``dataset``: right boxes, random scores."""
    generator = torch.Generator().manual_seed(0)
    height, width = SIZE
    for second in range(12):
        instances = Instances(SIZE)
        boxes = torch.tensor([[0.1, 0.25, 0.4, 0.75], [0.6, 0.25, 0.9, 0.75]])
        instances.pred_boxes = Boxes(boxes * torch.tensor([width, height, width, height]))
        instances.scores = torch.rand(2, CLASSES, generator=generator)
        yield [{"video_id": f"v{second % 2}", "second": float(second)}], [{"instances": instances}]


def fill(evaluator, frames=slice(None)):
    evaluator.reset()
    for inputs, outputs in list(predictions())[frames]:
        evaluator.process(inputs, outputs)
    return evaluator


def test_evaluator_writes_the_file_its_number_comes_from(dataset, tmp_path):
    results = fill(AvaEvaluator(dataset, str(tmp_path))).evaluate()
    source, path = MetadataCatalog.get(dataset).source, tmp_path / DETECTIONS_FILE
    again = evaluate_ava(source.annotations, path, source.evaluated_label_map, source.excluded)
    assert isinstance(results, OrderedDict)
    assert results["action"]["mAP"] == 100 * again["mAP"]
    assert results["action"]["AP-run"] == 100 * again["per_class"][1]
    rows = path.read_text().splitlines()
    assert len(rows) == 12 * 2 * 2, "one row per box and evaluated class"
    assert rows[0].startswith("v0,0000,0.100000,0.250000,0.400000,0.750000,1,")


def test_evaluator_does_not_depend_on_the_order_of_frames(dataset):
    forward, backward, at_once = (AvaEvaluator(dataset) for _ in range(3))
    at_once.process(*(sum(parts, []) for parts in zip(*predictions(), strict=True)))
    assert fill(forward).evaluate() == fill(backward, slice(None, None, -1)).evaluate() == at_once.evaluate()


def test_evaluator_drops_low_scores_where_the_protocol_does(dataset, tmp_path):
    evaluator = fill(AvaEvaluator(dataset, str(tmp_path), "mmaction2"))
    for inputs, outputs in predictions():
        outputs[0]["instances"].scores[0] = 0.001
        evaluator.process(inputs, outputs)
    evaluator.evaluate()
    assert len((tmp_path / DETECTIONS_FILE).read_text().splitlines()) == 12 * 2


def test_evaluator_without_frames(dataset):
    with pytest.raises(DataError, match="no frames"):
        AvaEvaluator(dataset).evaluate()


def test_evaluator_with_a_frame_without_boxes(dataset):
    evaluator = fill(AvaEvaluator(dataset))
    inputs, outputs = next(predictions())
    outputs[0]["instances"] = outputs[0]["instances"][[]]
    evaluator.process(inputs, outputs)
    assert np.isfinite(evaluator.evaluate()["action"]["mAP"])


def gather_in_process(rank: int, rendezvous: str, source: AvaSource, queue) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    register_ava("ava_evaluator_test", source)
    # One frame is predicted by both, as samplers do that pad their last batch.
    frames = slice(0, 7) if rank == 0 else slice(6, 12)
    queue.put((rank, fill(AvaEvaluator("ava_evaluator_test"), frames).evaluate()))
    torch.distributed.barrier()  # a process that leaves early aborts now and then
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_number_of_one(dataset, tmp_path):
    alone = fill(AvaEvaluator(dataset)).evaluate()
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (str(tmp_path / "rendezvous"), MetadataCatalog.get(dataset).source, queue)
    processes = [context.Process(target=gather_in_process, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert results == {0: alone, 1: None}
