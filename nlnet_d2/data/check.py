"""Checks of data before a run starts: every problem with its file, item, key and remedy.

Detectron2's loader drops some bad annotations silently, and passes others on until a worker process dies of
them hours later. ``check_coco`` finds them all, ``ava_check`` does it for clips; ``check_datasets`` stops a
run that would train on them.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.pool import ThreadPool

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from nlnet_d2.data.annotation_check import AnnotationCheck
from nlnet_d2.data.ava_check import check_ava
from nlnet_d2.data.datasets.ava import AvaSource, ava_source, is_ava
from nlnet_d2.data.datasets.coco import read_json
from nlnet_d2.data.errors import DataError, Finding, has_id, item_name
from nlnet_d2.data.image_files import image_problem
from nlnet_d2.data.paths import safe_join

logger = logging.getLogger(__name__)

READERS = 16  # threads that open images: the work is mostly waiting for the disk
SHOWN = 10  # problems that an error message spells out
# Objects that Detectron2 leaves out are warned about as long as they are this rare, and an error above: COCO
# train2017 itself holds two boxes without height among its 860,001.
TOLERATED_SHARE = 1e-4
RECORD_KEYS = {
    "image": {"id": (int, str), "file_name": str, "height": int, "width": int},
    "category": {"id": int, "name": str},
}


def check_datasets(
    names, train: bool, mask_format: str | None = None, keypoints: bool = False, outside: bool = False
) -> None:
    """Check data sets of COCO's and AVA's kinds by their registered names; log one line per kind of warning.

    Args:
        train: whether they are trained on; only then must a COCO file have annotations.
        mask_format: INPUT.MASK_FORMAT where masks are trained, else None.
        keypoints: whether keypoints are trained.
        outside: DATASETS.ALLOW_PATHS_OUTSIDE.

    Raises:
        DataError: names the first problems and their number.
    """
    errors = []
    for name in names:
        files = files_of(name)
        if files is None:
            logger.info("Data set %s is in neither format, COCO's or AVA's: its files are not checked", name)
            continue
        if isinstance(files, AvaSource):
            findings = check_ava(files)[1]
        else:
            findings = check_coco(*files, train, mask_format, keypoints, outside=outside)
        errors += [finding for finding in findings if finding.severity == "error"]
        _log_warnings(name, [finding for finding in findings if finding.severity == "warning"])
    if errors:
        shown = "\n".join(f"  {finding}" for finding in errors[:SHOWN])
        more = f"\n  ... and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        raise DataError(f"{len(errors)} problem(s) in the data:\n{shown}{more}")


def files_of(name: str) -> AvaSource | tuple[str, str] | None:
    """The files of a registered data set: of clips, or a JSON file and a folder of images, or neither.

    An embedded data set is drawn if it is not there.

    Raises:
        DataError: they are not there.
    """
    metadata = MetadataCatalog.get(name)
    if is_ava(name):
        with suppress(DataError):
            ava_source(name)
        files = metadata.source
        paths = files.annotations, files.videos
        origin = "AVA: https://research.google.com/ava/download.html", "DATASETS.REGISTER_AVA"
    elif metadata.get("evaluator_type") == "coco" and metadata.get("json_file"):
        files = paths = metadata.json_file, metadata.image_root
        if not os.path.exists(metadata.json_file):
            with suppress(FileNotFoundError):
                DatasetCatalog.get(name)
        origin = "COCO: https://cocodataset.org/#download", "DATASETS.REGISTER"
    else:
        return None
    if not (os.path.exists(paths[0]) and os.path.isdir(paths[1])):
        raise DataError(_absent_message(name, *paths, *origin))
    return files


def _absent_message(name: str, file: str, folder: str, download: str, key: str) -> str:
    root = os.environ.get("DETECTRON2_DATASETS")
    setting = f"is {root!r}" if root else "is not set, which means ./datasets"
    return (
        f"the files of data set {name!r} are not there. Expected:\n"
        f"  {os.path.abspath(file)}\n  {os.path.join(os.path.abspath(folder), '*')}\n"
        f"Built-in data sets are looked for in the folder DETECTRON2_DATASETS, which {setting} (seen from "
        f"{os.getcwd()}). Download the data ({download}) and unpack them so, or set DETECTRON2_DATASETS to "
        f"where they are; name your own data in {key}"
    )


def _log_warnings(name: str, warnings: list[Finding]) -> None:
    kinds = Counter((warning.key, warning.expected) for warning in warnings)
    for kind, count in kinds.items():
        first = next(warning for warning in warnings if (warning.key, warning.expected) == kind)
        logger.warning("Data set %s, %d time(s), first: %s", name, count, first)


def check_coco(
    json_file: str,
    image_root: str,
    train: bool = True,
    mask_format: str | None = None,
    keypoints: bool = False,
    decode: bool = False,
    outside: bool = False,
) -> list[Finding]:
    """All problems of a COCO-format JSON file and its images: errors and warnings.

    Args:
        train, mask_format, keypoints, outside: see ``check_datasets``.
        decode: decode every image, instead of reading its header and its end.
    """
    content, findings = _read_json(json_file)
    findings = findings or list(_top_level_findings(json_file, content, train))
    if findings:
        return findings
    annotations = content.get("annotations", [])
    findings = list(_record_findings(json_file, "image", content["images"]))
    findings += _record_findings(json_file, "category", content["categories"])
    images = _valid_records("image", content["images"])
    categories = _valid_records("category", content["categories"])
    learnt = (mask_format, keypoints) if train else (None, False)
    check = AnnotationCheck(json_file, images, categories, *learnt)
    for i, annotation in enumerate(tqdm(annotations, "annotations", disable=None, delay=2)):
        findings += check.findings(annotation, i)
    findings += _repeated_ids(json_file, "annotation", annotations)
    findings = _judge_dropped(findings, len(annotations))
    if "annotations" in content:
        findings += _text_ids(json_file, images, "warning" if train else "error")
        findings += _images_without_objects(json_file, images, annotations)
    join = os.path.join if outside else safe_join
    return findings + _image_findings(json_file, images.values(), image_root, join, decode)


def _read_json(json_file: str) -> tuple[dict, list[Finding]]:
    try:
        return read_json(json_file), []
    except OSError as error:
        return {}, [Finding(json_file, "", "", "a readable file", error.strerror, "correct the path")]
    except (ValueError, RecursionError) as error:
        remedy = "is the file truncated? Write or copy it again"
        return {}, [Finding(json_file, "", "", "valid JSON", str(error), remedy)]


def _top_level_findings(file: str, content, train: bool) -> Iterator[Finding]:
    if not isinstance(content, dict):
        yield Finding(file, "", "", "an object with the key images", content, "export as COCO")
        return
    # The test splits of COCO come without annotations: they can be predicted on, not trained on.
    labelled = train or "annotations" in content
    for key in ("images", "categories", "annotations") if labelled else ("images", "categories"):
        if not isinstance(content.get(key), list) or not content[key]:
            remedy = "there is nothing to learn from or to score with: export again"
            yield Finding(file, "", key, "a list that is not empty", content.get(key), remedy)


def _bad_keys(kind: str, record: dict) -> list[str]:
    """Required keys of an image or category that are missing or of the wrong type."""
    return [
        key
        for key, types in RECORD_KEYS[kind].items()
        if not isinstance(record.get(key), types) or (key in ("height", "width") and record[key] < 1)
    ]


def _valid_records(kind: str, records: list) -> dict:
    return {r["id"]: r for r in records if isinstance(r, dict) and not _bad_keys(kind, r)}


def _record_findings(file: str, kind: str, records: list) -> Iterator[Finding]:
    """Missing or mistyped keys of images or categories, and ids that occur twice."""
    for i, record in enumerate(records):
        item = item_name(kind, record, i)
        if not isinstance(record, dict):
            yield Finding(file, item, "", "a record", record, "export again")
            continue
        for key in _bad_keys(kind, record):
            yield Finding(file, item, key, f"a valid {key}", record.get(key), "complete the record")
    yield from _repeated_ids(file, kind, records)


def _repeated_ids(file: str, kind: str, records: list) -> Iterator[Finding]:
    # The minival files of COCO 2014 hold repeated annotations, and Detectron2 lets these pass.
    severity = "warning" if kind == "annotation" and "minival" in file else "error"
    for id_, count in Counter(record["id"] for record in records if has_id(record)).items():
        if count > 1:
            got, remedy = f"{count} with this id", "give each its own id, or remove the copies"
            yield Finding(file, f"{kind} {id_}", "id", "a unique id", got, remedy, severity)


def _text_ids(file: str, images: dict, severity: str) -> Iterator[Finding]:
    """COCO's are numbers, and its evaluation takes nothing else."""
    text = [id_ for id_ in images if isinstance(id_, str)]
    if text:
        remedy = f"number the images ({len(text)} have text for an id): they can be trained on, not scored"
        yield Finding(file, f"image {text[0]}", "id", "an integer", repr(text[0]), remedy, severity)


def _judge_dropped(findings: list[Finding], annotation_count: int) -> list[Finding]:
    """Turn the severity "dropped" into "warning" or "error", depending on how many objects are affected."""
    dropped = sum(finding.severity == "dropped" for finding in findings)
    severity = "warning" if dropped <= TOLERATED_SHARE * annotation_count else "error"
    return [replace(f, severity=severity) if f.severity == "dropped" else f for f in findings]


def _images_without_objects(file: str, images: dict, annotations: list) -> Iterator[Finding]:
    seen = {annotation["image_id"] for annotation in annotations if has_id(annotation, "image_id")}
    remedy = "training leaves these images out unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is False"
    for id_ in images:
        if id_ not in seen:
            yield Finding(file, f"image {id_}", "annotations", "an object", "none", remedy, "warning")


def _image_findings(file: str, images, image_root: str, join: Callable, decode: bool) -> list[Finding]:
    """Problems of the image files, read by several threads."""
    if not image_root or not os.path.isdir(image_root):
        return [Finding(file, "", "", "a folder of images", repr(image_root), "correct the image folder")]
    check = partial(_image_finding, file, partial(join, image_root), decode)
    with ThreadPool(READERS) as pool:
        found = pool.imap(check, images, chunksize=64)
        return [finding for finding in tqdm(found, "images", len(images), disable=None, delay=2) if finding]


def _image_finding(file: str, locate: Callable, decode: bool, image: dict) -> Finding | None:
    item = f"image {image['id']} ({image['file_name']})"
    try:
        path = locate(image["file_name"])
    except ValueError as error:
        remedy = "correct it; DATASETS.ALLOW_PATHS_OUTSIDE True accepts paths to other places"
        return Finding(file, item, "file_name", "a path in the image folder", str(error), remedy)
    problem = image_problem(path, image["width"], image["height"], decode)
    return problem and Finding(file, item, "file_name", *problem)
