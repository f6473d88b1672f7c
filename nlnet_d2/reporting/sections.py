"""What stands in the sections of the page, apart from attention."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from nlnet_d2.data.datasets.ava import is_ava
from nlnet_d2.data.errors import DataError
from nlnet_d2.data.statistics import statistics_of
from nlnet_d2.evaluation.ava import DETECTIONS_FILE
from nlnet_d2.reporting import charts
from nlnet_d2.reporting.ava_results import ava_results
from nlnet_d2.reporting.cards import Card, choose_cards
from nlnet_d2.reporting.coco_results import coco_results
from nlnet_d2.reporting.matching import MIN_OVERLAP, MIN_SCORE, Verdict, confusion, match
from nlnet_d2.reporting.results import Compared, SetResults, Table
from nlnet_d2.reporting.run_folder import COCO_RESULTS, CONFIG, RunFolder

logger = logging.getLogger(__name__)

CONFUSIONS = 100  # rows of the table
TASKS = ("bbox", "segm", "keypoints", "action")  # prefixes of the metrics of evaluations
Pairs = list[tuple[Compared, Verdict]]


@dataclass(frozen=True)
class Section:
    """A section of the page, shown in the order of these fields.

    ``charts`` and ``pictures`` (data URLs) have captions, ``texts`` titles.
    """

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: dict[str, Markup] = field(default_factory=dict)
    cards: list[Card] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def read_results(run: RunFolder) -> tuple[list[SetResults], list[str]]:
    """Results on all data sets of the run; and what keeps the others from being shown."""
    results, notes = [], []
    for name in run.cfg.DATASETS.TEST:
        evaluate, file = (ava_results, DETECTIONS_FILE) if is_ava(name) else (coco_results, COCO_RESULTS)
        detections = run.detections(name, file)
        if detections is None:
            notes.append(f"{name}: there are no detections ({file}): it was not evaluated.")
            continue
        try:
            results.append(evaluate(name, detections, run.cfg))
        except (OSError, DataError) as error:
            notes.append(f"{name}: its data are not here, so nothing can be compared with them: {error}")
    if not run.cfg.DATASETS.TEST:
        notes.append(f"The data sets that {CONFIG} names are not here, or there are none.")
    return results, notes


def compare_all(results: SetResults) -> Pairs:
    """Every image with what is right and wrong in it."""
    return [(compared, match(compared.truth, compared.found)) for compared in results.compared]


def result_section(results: SetResults, pairs: Pairs) -> Section:
    """Average precision, curves, confusion, gallery."""
    matrix = confusion(((c.truth, c.found, v) for c, v in pairs), len(results.classes))
    shown = {title: charts.curve_chart(title, curves) for title, curves in results.curves.items() if curves}
    shown[
        f"Confusion between classes, of detections with a score of {MIN_SCORE} or more that overlap an "
        f"object by {MIN_OVERLAP} or more"
    ] = charts.confusion_chart(matrix, results.classes)
    return Section(
        f"Results on {results.name}",
        notes=[] if results.tables else ["The model detected nothing at all: every average precision is 0."],
        tables=[*results.tables, _confusions(matrix, results.classes)],
        charts=shown,
        cards=choose_cards(pairs, results.classes),
    )


def _confusions(matrix: np.ndarray, classes: Sequence[str]) -> Table:
    names, totals = [*classes, "nothing"], matrix.sum(axis=1)
    rows = [
        [names[true], names[found], int(count), 100 * float(count / totals[true])]
        for (true, found), count in np.ndenumerate(matrix)
        if count and true != found
    ]
    rows.sort(key=lambda row: -row[2])
    note = "“nothing” as true: a false detection; as found: a missed object. Share of the true class in %."
    return Table("Most frequent confusions", ["true", "found", "count", "share"], rows[:CONFUSIONS], note)


def training_section(run: RunFolder) -> Section:
    """Losses, learning rate, metrics over time, speed."""
    shown = {
        "Losses (running medians)": charts.loss_chart(run),
        "Learning rate": charts.rate_chart(run),
        "Average precision at each evaluation": charts.metric_chart(run),
    }
    shown = {title: chart for title, chart in shown.items() if chart}
    tables = [table for table in (_speed(run), _last_metrics(run)) if table.rows]
    notes = [] if run.metrics else ["There is no metrics.json: nothing was trained in this folder."]
    return Section("Training", notes, tables, shown)


def _speed(run: RunFolder) -> Table:
    rows = []
    for key, label in (
        ("time", "seconds per iteration, median"),
        ("data_time", "of these, waiting for data"),
    ):
        _, values = run.series(key)
        if values:
            rows.append([label, float(np.median(values))])
    seconds = sum(launch.get("seconds", 0) for launch in run.launches)
    if seconds:
        rows.append(["minutes in all, evaluations included", seconds / 60])
    return Table("Speed", ["what", "value"], rows, digits=3)


def _last_metrics(run: RunFolder) -> Table:
    """The last value of each metric of evaluations, as the run wrote it."""
    last = {}
    for row in run.metrics:
        last |= {
            name: [name, value, run.iterations_done(row)]
            for name, value in row.items()
            if name.removeprefix("ema/").partition("/")[0] in TASKS
        }
    note = "As the run wrote them to metrics.json."
    return Table(
        "Metrics of the last evaluation", ["metric", "value", "iterations"], list(last.values()), note
    )


def data_section(run: RunFolder) -> Section:
    """Statistics of the data sets."""
    tables, notes = [], []
    for name in dict.fromkeys((*run.cfg.DATASETS.TRAIN, *run.cfg.DATASETS.TEST)):
        try:
            statistics = statistics_of(name)
        except (OSError, DataError) as error:
            notes.append(f"{name} is not here: {error}")
            continue
        tables.append(Table(name, ["what", "how much"], [list(row) for row in statistics.totals.items()]))
        rows = [list(row) for row in statistics.classes]
        tables.append(Table(f"{name}: classes", ["class", "objects", "images"], rows))
    return Section("Data", notes, tables)


def origin_section(run: RunFolder) -> Section:
    """Command, versions, times, config."""
    starts = [launch for launch in run.launches if "started" in launch]
    ends = [launch for launch in run.launches if "ended" in launch]
    tables, texts = [], {}
    if starts:
        rows = [[start["started"], start["processes"], start["device"]] for start in starts]
        tables.append(Table("Starts (UTC)", ["started", "processes", "device"], rows))
        rows = [[end["ended"], end["seconds"], end["outcome"]] for end in ends]
        tables.append(Table("Ends (UTC)", ["ended", "seconds", "outcome"], rows))
        rows = [list(row) for row in starts[-1]["versions"].items()]
        tables.append(Table("Versions", ["package", "version"], rows))
        texts["Command"] = "\n".join(dict.fromkeys(start["command"] for start in starts))
    texts["Config"] = (run.path / CONFIG).read_text(encoding="utf-8")
    notes = [] if starts else ["The run wrote no launches.jsonl: its command and versions are in log.txt."]
    return Section("How it was made", notes, tables, texts=texts)
