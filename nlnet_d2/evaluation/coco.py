"""COCO evaluation (boxes, masks, keypoints) on the compiled backend of ``faster-coco-eval``.

``FastCOCOEvaluator`` is detectron2's ``COCOEvaluator`` with another engine: the numbers of pycocotools (but
for the last bit of a float) in a fraction of the time, without the compiled module of detectron2.
Deliberately different from the stock class: a model that detects nothing scores 0 in each of its tasks
(stock: NaN, in boxes only), and annotations without ``area``, ``iscrowd`` or ``num_keypoints`` are completed
(stock: KeyError).
"""

import contextlib
import gc
import io
import logging
from collections import Counter

import pycocotools.mask as mask_util
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO

logger = logging.getLogger(__name__)

FIELD_OF_TASK = {"bbox": "pred_boxes", "segm": "pred_masks", "keypoints": "pred_keypoints"}


class FastCOCOeval(COCOeval_faster):
    """pycocotools' ``COCOeval`` computed in C++, for pycocotools' ``COCO`` objects.

    Args:
        coco_gt, coco_dt: ground truth and detections.
        iou_type: "bbox", "segm" or "keypoints".

    Raises:
        ValueError: "segm", and an annotation has no mask.
    """

    def __init__(self, coco_gt: COCO, coco_dt: COCO, iou_type: str):
        super().__init__(iouType=iou_type, print_function=logger.info)
        if iou_type == "segm":
            _require_masks(coco_gt)
        # Set here, because for keypoints the backend's constructor reads an index that only its own COCO
        # class has, and leaves out the categories without annotations, which the per-category results need.
        self.cocoGt, self.cocoDt = coco_gt, coco_dt
        self.params.imgIds = sorted(coco_gt.getImgIds())
        self.params.catIds = sorted(coco_gt.getCatIds())


class FastCOCOEvaluator(COCOEvaluator):
    """detectron2's ``COCOEvaluator`` on ``FastCOCOeval``: same arguments but ``use_fast_impl``, same results.

    For the numbers of a paper, the stock class with ``use_fast_impl=False`` runs pycocotools itself.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, use_fast_impl=False, **kwargs)  # or main looks for its compiled evaluator
        self._use_fast_impl = True
        if self._do_evaluation:
            complete_annotations(self._coco_api, self._metadata.json_file)

    def reset(self):
        super().reset()
        self._output_fields = {"pred_boxes"}

    def process(self, inputs, outputs):
        super().process(inputs, outputs)
        for output in outputs:
            if "instances" in output:
                self._output_fields.update(output["instances"].get_fields())

    def _tasks_from_predictions(self, predictions):
        if predictions:
            return super()._tasks_from_predictions(predictions)
        return [task for task, field in FIELD_OF_TASK.items() if field in self._output_fields]

    def _eval_predictions(self, predictions, img_ids=None):
        with _evaluation_class(FastCOCOeval), paused_collector():
            super()._eval_predictions(predictions, img_ids=img_ids)

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        if coco_eval is None:
            logger.warning("The model detected nothing in any image: its %s metrics are 0.", iou_type)
            coco_eval = self._evaluate_nothing(iou_type)
        return super()._derive_coco_results(coco_eval, iou_type, class_names=class_names)

    def _evaluate_nothing(self, iou_type: str) -> FastCOCOeval:
        """The evaluation of an empty list of detections, which pycocotools cannot load."""
        detections = COCO()
        detections.dataset = {**self._coco_api.dataset, "annotations": []}
        _create_index(detections)
        coco_eval = FastCOCOeval(self._coco_api, detections, iou_type)
        coco_eval.run()
        return coco_eval


@contextlib.contextmanager
def _evaluation_class(cls: type):
    """Have detectron2's evaluator compute with ``cls``: 0.6 and main look these names up in every call."""
    names = ("COCOeval_opt", "COCOevalMaxDets")  # the second, a summary for any maxDets, is built into cls
    stock = {name: getattr(coco_evaluation, name) for name in names}
    vars(coco_evaluation).update(dict.fromkeys(names, cls))
    try:
        yield
    finally:
        vars(coco_evaluation).update(stock)


@contextlib.contextmanager
def paused_collector():
    """Python's collector off: it would search 100 dicts per image for cycles, often, and there are none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def complete_annotations(coco: COCO, json_file: str) -> None:
    """Fill in, in place, what the protocol reads and people's files leave out; the log says what, how often.

    ``iscrowd`` becomes 0, ``area`` that of the mask or else of the box, ``num_keypoints`` the number of
    labelled keypoints. An annotation with id 0 would count as missed whatever is detected, since 0 means
    "unmatched" in the protocol and all its implementations, and so would one with text for an id in the
    compiled one: ids are then counted from 1.
    """
    completed = Counter()
    for ann in coco.dataset["annotations"]:
        derived = _missing_values(coco, ann)
        ann.update(derived)
        completed.update(derived.keys())
    if 0 in coco.anns or any(isinstance(id_, str) for id_ in coco.anns):
        for number, ann in enumerate(coco.dataset["annotations"], start=1):
            ann["id"] = number
        _create_index(coco)
        completed["id > 0"] = 1
    for key, count in completed.items():
        logger.info("%s: %d annotations without %r, completed for the evaluation", json_file, count, key)


def _missing_values(coco: COCO, ann: dict) -> dict:
    """What ``ann`` leaves out, derived from the rest of it."""
    derived = {}
    if "iscrowd" not in ann:
        derived["iscrowd"] = 0
    if "area" not in ann:
        _, _, width, height = ann["bbox"]
        has_mask = ann.get("segmentation")
        derived["area"] = float(mask_util.area(coco.annToRLE(ann))) if has_mask else width * height
    if "keypoints" in ann and "num_keypoints" not in ann:
        derived["num_keypoints"] = sum(visibility > 0 for visibility in ann["keypoints"][2::3])
    return derived


def _require_masks(coco: COCO) -> None:
    for ann in coco.anns.values():
        if not ann.get("segmentation"):
            raise ValueError(
                f"mask AP needs a mask of every object; annotation {ann['id']} of image {ann['image_id']} "
                "has no 'segmentation': add it, or evaluate boxes only (tasks=('bbox',))"
            )


def _create_index(coco: COCO) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco.createIndex()
