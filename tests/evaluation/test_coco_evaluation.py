"""The fast COCO evaluation against pycocotools and against detectron2's stock evaluator, on the odd cases."""

import contextlib
import copy
import gc
import io
import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import distributed, multiprocessing

from nlnet_d2.evaluation.coco import FastCOCOeval, FastCOCOEvaluator, paused_collector

TASKS = ("bbox", "segm", "keypoints")
HEIGHT, WIDTH = 120, 150
CATEGORIES = (2, 5, 9)  # the last one is detected, never annotated
LAST_BIT = 1e-12  # pycocotools adds 2e-16 to the denominator of each precision, the C++ backend does not


def ellipse(x, y, width, height):
    """The RLE of an ellipse that fills the box."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((columns - x - width / 2) / width) ** 2 + ((rows - y - height / 2) / height) ** 2 < 0.25
    rle = mask_util.encode(np.asfortranarray(inside, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def annotate(rng, number, image_id):
    """One random object: polygon, RLE or crowd, some without a labelled keypoint."""
    x, y = rng.uniform(0, 50, 2).tolist()
    width, height = (rng.choice([8, 20, 40, 90]) * rng.uniform(0.7, 1.1, 2)).tolist()
    crowd = int(rng.random() < 0.15)
    polygon = [[x, y, x + width, y, x + width, y + height, x + width / 3, y + height]]
    keypoints = np.stack(
        [rng.uniform(x, x + width, 17), rng.uniform(y, y + height, 17), rng.choice(3, 17)], 1
    )
    keypoints *= (keypoints[:, 2:] > 0) & (not crowd) & (rng.random() < 0.8)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": int(rng.choice(CATEGORIES[:2])),
        "bbox": [x, y, width, height],
        "area": width * height * 0.9,
        "iscrowd": crowd,
        "segmentation": polygon if rng.random() < 0.5 and not crowd else ellipse(x, y, width, height),
        "keypoints": keypoints.ravel().tolist(),
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
    }


def detect(rng, ann):
    """A detection near ``ann``; its score is one of few, so that there are ties."""
    jitter = rng.choice([0, 0.03, 0.1]) * ann["bbox"][2]
    box = np.maximum(ann["bbox"] + rng.normal(size=4) * jitter, 0.5).tolist()
    keypoints = np.reshape(ann["keypoints"], (17, 3)) + rng.normal(size=(17, 3)) * rng.choice([0, 1, 4])
    return {
        "image_id": ann["image_id"],
        "category_id": int(ann["category_id"] if rng.random() < 0.8 else rng.choice(CATEGORIES)),
        "bbox": box,
        "score": float(rng.choice([0.25, 0.5, 0.75])),
        "segmentation": ellipse(*box),
        "keypoints": keypoints.ravel().tolist(),
    }


def scene(seed=0):
    """A random data set (some images without objects) and detections (misses, duplicates, false alarms)."""
    rng = np.random.default_rng(seed)
    images = [{"id": 10 + 3 * i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.png"} for i in range(8)]
    categories = [{"id": number, "name": f"category {number}"} for number in CATEGORIES]
    owners = [image["id"] for image in images for _ in range(rng.choice([0, 3, 6]))]
    annotations = [annotate(rng, number, owner) for number, owner in enumerate(owners, start=1)]
    found = [ann for ann in annotations for _ in range(rng.choice([0, 1, 1, 2, 5]))]
    stray = [annotate(rng, 0, images[-1]["id"]) for _ in range(3)]
    detections = [detect(rng, ann) for ann in found + stray]
    return {"images": images, "categories": categories, "annotations": annotations}, detections


def change(dataset, **values):
    """``dataset`` with these values in all annotations."""
    return {**dataset, "annotations": [{**ann, **values} for ann in dataset["annotations"]]}


def on_the_limits(dataset):
    annotations = [{**a, "area": (32**2, 96**2)[i % 2]} for i, a in enumerate(dataset["annotations"])]
    return {**dataset, "annotations": annotations}


def dense(detections):
    """More than 100 detections in one image."""
    return detections + [
        {**det, "image_id": 10, "score": score} for det in detections for score in (0.1, 0.6, 0.8)
    ]


CASES = {
    "plain": lambda data, dets: (data, dets),
    "only crowds": lambda data, dets: (change(data, iscrowd=1), dets),
    "ignore flags": lambda data, dets: (change(data, ignore=1), dets),
    "areas on the limits": lambda data, dets: (on_the_limits(data), dets),
    "no objects": lambda data, dets: ({**data, "annotations": []}, dets),
    "one detection": lambda data, dets: (data, dets[:1]),
    "all scores tie": lambda data, dets: (data, [{**det, "score": 0.5} for det in dets]),
    "all twice": lambda data, dets: (data, dets + dets),
    "more than 100 in an image": lambda data, dets: (data, dense(dets)),
}


def coco(dataset):
    api = COCO()
    api.dataset = copy.deepcopy(dataset)
    api.createIndex()
    return api


def compute(cls, dataset, detections, task, max_dets=None):
    """Run an evaluation class the way detectron2 does."""
    dropped = ("bbox",) if task == "segm" else ()  # or the areas of masks would be those of their boxes
    detections = [{key: value for key, value in det.items() if key not in dropped} for det in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco(dataset)
        evaluation = cls(truth, truth.loadRes(detections), task)
        if max_dets:
            evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def assert_same(fast, reference):
    size = len(reference.stats)
    assert size == (10 if reference.params.iouType == "keypoints" else 12)
    np.testing.assert_allclose(fast.stats[:size], reference.stats, rtol=0, atol=LAST_BIT)
    for curve in ("precision", "recall", "scores"):
        np.testing.assert_allclose(fast.eval[curve], reference.eval[curve], rtol=0, atol=LAST_BIT)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", CASES)
def test_numbers_equal_pycocotools(case, task):
    for seed in range(2):
        dataset, detections = CASES[case](*scene(seed))
        reference = compute(COCOeval, dataset, detections, task)
        assert_same(compute(FastCOCOeval, dataset, detections, task), reference)
        if case == "plain":
            assert 0 < reference.stats[0] < 1  # the scenes can tell a right evaluation from a wrong one


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("limit", [2, 50, 300])
def test_numbers_equal_detectron2_for_other_limits_of_detections(task, limit):
    dataset, detections = scene()
    detections, limits = dense(detections), (1, 2, limit)
    reference = compute(coco_evaluation.COCOevalMaxDets, dataset, detections, task, limits)
    assert_same(compute(FastCOCOeval, dataset, detections, task, limits), reference)


@pytest.fixture
def register(tmp_path):
    """Function that registers a COCO-format dict and returns the name of the data set."""
    names = []

    def add(dataset):
        name = f"coco_evaluation_{len(names)}"
        (tmp_path / f"{name}.json").write_text(json.dumps(dataset))
        classes = {category["id"]: index for index, category in enumerate(dataset["categories"])}
        MetadataCatalog.get(name).set(
            json_file=str(tmp_path / f"{name}.json"),
            thing_classes=[category["name"] for category in dataset["categories"]],
            thing_dataset_id_to_contiguous_id=classes,
        )
        names.append(name)
        return name

    yield add
    for name in names:
        MetadataCatalog.pop(name)


def to_outputs(dataset, detections):
    """What a model would give an evaluator: (inputs, outputs), one of each per image."""
    inputs, outputs = [], []
    for image in dataset["images"]:
        found = [det for det in detections if det["image_id"] == image["id"]]
        x, y, width, height = np.reshape([det["bbox"] for det in found], (-1, 4)).T
        masks = [mask_util.decode(det["segmentation"]) for det in found]
        fields = {
            "pred_boxes": Boxes(torch.tensor(np.stack([x, y, x + width, y + height], 1))),
            "scores": torch.tensor([det["score"] for det in found]),
            "pred_classes": torch.tensor([CATEGORIES.index(det["category_id"]) for det in found]),
            "pred_masks": torch.tensor(np.reshape(masks, (-1, HEIGHT, WIDTH))),
            "pred_keypoints": torch.tensor([det["keypoints"] for det in found]).reshape(-1, 17, 3),
        }
        inputs.append({"image_id": image["id"]})
        outputs.append({"instances": Instances((HEIGHT, WIDTH), **fields)})
    return inputs, outputs


def results(evaluator, dataset, detections, **kwargs):
    evaluator.reset()
    evaluator.process(*to_outputs(dataset, detections))
    return evaluator.evaluate(**kwargs)


def assert_same_results(ours, reference):
    assert ours.keys() == reference.keys()
    for task in reference:
        assert ours[task] == pytest.approx(reference[task], abs=100 * LAST_BIT, nan_ok=True)


@pytest.mark.parametrize("limit", [None, 300])
def test_evaluator_gives_the_results_of_the_stock_one(register, limit):
    dataset, detections = scene()
    name, detections = register(dataset), dense(detections)
    stock = COCOEvaluator(name, max_dets_per_image=limit, use_fast_impl=False)
    reference = results(stock, dataset, detections)
    ours = results(FastCOCOEvaluator(name, max_dets_per_image=limit), dataset, detections)
    assert set(reference) == set(TASKS)
    assert {f"AP-category {number}" for number in CATEGORIES} <= set(ours["segm"])
    assert_same_results(ours, reference)


def test_evaluator_on_some_images_and_tasks(register):
    dataset, detections = scene()
    name, some = register(dataset), [image["id"] for image in dataset["images"][::2]]
    stock = COCOEvaluator(name, tasks=("bbox",), use_fast_impl=False)
    reference = results(stock, dataset, detections, img_ids=some)
    ours = results(FastCOCOEvaluator(name, tasks=("bbox",)), dataset, detections, img_ids=some)
    assert set(ours) == {"bbox"}
    assert_same_results(ours, reference)


def test_no_detections_score_zero_in_all_tasks(register, caplog):
    dataset, _ = scene()
    with caplog.at_level(logging.WARNING):
        ours = results(FastCOCOEvaluator(register(dataset)), dataset, [])
    assert set(ours) == set(TASKS)
    for task in TASKS:
        assert ours[task]["AP"] == ours[task]["AP50"] == ours[task]["AP-category 2"] == 0
        assert np.isnan(ours[task]["AP-category 9"])  # nothing to detect there
        assert f"detected nothing in any image: its {task} metrics are 0" in caplog.text


def test_no_detections_of_a_box_model_are_a_result_for_boxes_only(register):
    dataset, _ = scene()
    evaluator = FastCOCOEvaluator(register(dataset))
    evaluator.reset()
    nothing = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    nothing.pred_classes = torch.zeros(0, dtype=torch.long)
    evaluator.process([{"image_id": dataset["images"][0]["id"]}], [{"instances": nothing}])
    assert set(evaluator.evaluate()) == {"bbox"}


def test_keys_that_people_leave_out_are_completed(register, caplog):
    dataset, detections = scene()
    sparse = copy.deepcopy(dataset)
    sparse["annotations"] = [ann for ann in sparse["annotations"] if not ann["iscrowd"]]
    for ann in sparse["annotations"]:
        ann["area"] = float(mask_util.area(coco(dataset).annToRLE(ann)))
    full = results(FastCOCOEvaluator(register(sparse)), sparse, detections)
    for ann in sparse["annotations"]:
        del ann["area"], ann["iscrowd"], ann["num_keypoints"]
    with caplog.at_level(logging.INFO):
        assert_same_results(results(FastCOCOEvaluator(register(sparse)), sparse, detections), full)
    for key in ("area", "iscrowd", "num_keypoints"):
        assert f"{len(sparse['annotations'])} annotations without '{key}'" in caplog.text


def test_area_without_a_mask_is_that_of_the_box(register):
    dataset, _ = scene()
    for ann in dataset["annotations"]:
        del ann["area"], ann["segmentation"]
    evaluator = FastCOCOEvaluator(register(dataset))
    for ann in evaluator._coco_api.dataset["annotations"]:
        assert ann["area"] == ann["bbox"][2] * ann["bbox"][3]


@pytest.mark.parametrize("numbered", [int, "object {}".format], ids=["from 0", "text"])
def test_annotations_with_other_ids_than_numbers_from_one_can_be_found(register, numbered):
    dataset, _ = scene()
    objects = [ann for ann in dataset["annotations"] if not ann["iscrowd"]]
    dataset["annotations"] = [{**ann, "id": numbered(number)} for number, ann in enumerate(objects)]
    perfect = [{**ann, "score": 0.5, "segmentation": ellipse(*ann["bbox"])} for ann in objects]
    evaluator = FastCOCOEvaluator(register(dataset), tasks=("bbox",))
    assert results(evaluator, dataset, perfect)["bbox"]["AP"] == pytest.approx(100)


def test_mask_ap_without_masks_is_a_clear_error_and_leaves_the_stock_evaluator_alone(register):
    stock = coco_evaluation.COCOeval_opt, coco_evaluation.COCOevalMaxDets
    dataset, detections = scene()
    del dataset["annotations"][1]["segmentation"]
    evaluator = FastCOCOEvaluator(register(dataset))
    with pytest.raises(ValueError, match=r"annotation 2 of image \d+ has no 'segmentation'.*boxes only"):
        results(evaluator, dataset, detections)
    assert (coco_evaluation.COCOeval_opt, coco_evaluation.COCOevalMaxDets) == stock


def test_test_split_without_annotations_writes_predictions(register, tmp_path):
    dataset, detections = scene()
    del dataset["annotations"]
    evaluator = FastCOCOEvaluator(register(dataset), output_dir=str(tmp_path))
    assert results(evaluator, dataset, detections) == {}
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(written) == len(detections)
    assert {det["category_id"] for det in written} <= set(CATEGORIES)


def _evaluate_one_half(rank, json_file, rendezvous, answers):
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    dataset, detections = scene()
    MetadataCatalog.get("halves").set(
        json_file=json_file,
        thing_dataset_id_to_contiguous_id={number: i for i, number in enumerate(CATEGORIES)},
    )
    half = {**dataset, "images": dataset["images"][rank::2]}
    answers[rank] = dict(results(FastCOCOEvaluator("halves"), half, detections))
    distributed.barrier()  # a process that leaves early aborts now and then
    distributed.destroy_process_group()


def test_two_processes_are_gathered(register, tmp_path):
    dataset, detections = scene()
    name = register(dataset)
    alone = results(FastCOCOEvaluator(name), dataset, detections)
    with multiprocessing.get_context("spawn").Manager() as manager:
        answers = manager.dict()
        arguments = (MetadataCatalog.get(name).json_file, tmp_path / "rendezvous", answers)
        multiprocessing.spawn(_evaluate_one_half, args=arguments, nprocs=2)
        assert answers[1] == {}
        assert answers[0].keys() == alone.keys()
        for task in TASKS:
            for metric, value in answers[0][task].items():
                assert value == pytest.approx(alone[task][metric], abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(monkeypatch, enabled):
    monkeypatch.setattr(gc, "isenabled", lambda: enabled)
    calls = []
    monkeypatch.setattr(gc, "disable", lambda: calls.append("off"))
    monkeypatch.setattr(gc, "enable", lambda: calls.append("on"))
    with contextlib.suppress(ValueError), paused_collector():
        raise ValueError
    assert calls == (["off", "on"] if enabled else ["off"])
