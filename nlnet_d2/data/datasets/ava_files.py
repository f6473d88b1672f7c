"""The CSV files of AVA (Gu et al. 2018, arXiv:1705.08421): boxes and actions on key frames.

Rows are ``video, second, x1, y1, x2, y2, action, last``: annotations and detections alike, without a header.
Boxes are XYXY in shares of the frame (0..1), seconds may have decimals, an empty action is a box without one,
and a row of two columns names a frame without boxes. ``last`` is the person's id in annotations, a score in
detections.

Readers are strict: the first bad row raises, naming file, line and remedy. Given a list of ``findings``, they
append to it instead, leave the bad rows out, and go on.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from nlnet_d2.data.errors import DataError, Finding

NO_ACTION = -1
SLACK = 1e-3  # files have 3 decimals, and detectors overshoot by a rounding error
_MAX_NAME = 64  # bytes
_ROW = np.dtype(
    [("video", f"S{_MAX_NAME}"), ("second", "f8"), ("box", "f8", 4), ("action", "f8"), ("last", "f8")]
)
_CHUNK = 1 << 17  # lines
_COLUMNS = "8 columns (video, second, x1, y1, x2, y2, action, person or score)"


@dataclass(frozen=True)
class AvaTable:
    """Boxes on key frames and the rows of a file that speak of them; equal boxes in consecutive rows are one.

    Attributes:
        source: name of the file, for messages.
        videos: names of the videos.
        video: (B,) index into ``videos``.
        second: (B,) time of the key frame.
        box: (B, 4) XYXY in 0..1; NaN for a frame without boxes.
        row_box: (N,) the box that a row speaks of.
        action: (N,) class id, or ``NO_ACTION``.
        score: (N,) score of the row, 1 where the file has none.
        line: (N,) line in the file.
    """

    source: str
    videos: list[str]
    video: np.ndarray
    second: np.ndarray
    box: np.ndarray
    row_box: np.ndarray
    action: np.ndarray
    score: np.ndarray
    line: np.ndarray

    @classmethod
    def from_scores(
        cls,
        videos: Sequence[str],
        second: np.ndarray,
        box: np.ndarray,
        scores: np.ndarray,
        class_ids: Sequence[int],
    ) -> "AvaTable":
        """From a model's output: B names and seconds, boxes (B, 4) in 0..1, scores (B, len(class_ids))."""
        names, video = np.unique(np.asarray(videos, dtype=str), return_inverse=True)
        return cls(
            source="scores",
            videos=names.tolist(),
            video=video,
            second=np.asarray(second, np.float64),
            box=np.asarray(box, np.float64).reshape(-1, 4),
            row_box=np.repeat(np.arange(len(video), dtype=np.int32), len(class_ids)),
            action=np.tile(np.asarray(class_ids, np.int16), len(video)),
            score=np.asarray(scores, np.float64).reshape(-1),
            line=np.arange(1, np.size(scores) + 1, dtype=np.int32),
        )

    def key_frames(self) -> list[tuple[str, float]]:
        """Name of the video and second, for each of the B boxes."""
        return [(self.videos[v], s) for v, s in zip(self.video.tolist(), self.second.tolist(), strict=True)]

    def finding(self, row: int, key: str, expected: str, remedy: str, severity: str = "error") -> Finding:
        """A problem of a row, naming its line, frame and box."""
        box = self.row_box[row]
        frame = f"{self.videos[self.video[box]]},{second_text(self.second[box])}"
        got = f"{self.box[box].tolist()}, action {self.action[row]}"
        return Finding(f"{self.source}:{self.line[row]}", frame, key, expected, got, remedy, severity)


def frame_keys(*tables: AvaTable) -> list[np.ndarray]:
    """(B,) integers per table, equal where two boxes lie on the same frame, to a microsecond."""
    number: dict[str, int] = {}
    keys = []
    for table in tables:
        video = np.array([number.setdefault(name, len(number)) for name in table.videos], np.int64)
        keys.append((video[table.video] << 40) + np.rint(table.second * 1e6).astype(np.int64))
    return keys


def second_text(second: float) -> str:
    """A key frame's time as AVA writes it: ``0902``, or ``12.48`` where it is not whole."""
    return f"{int(second):04d}" if second == int(second) else f"{second:.6f}".rstrip("0")


def report(finding: Finding, findings: list[Finding] | None) -> None:
    """Add to the findings, or raise where nobody collects them.

    Raises:
        DataError: ``findings`` is None.
    """
    if findings is None:
        raise DataError(str(finding))
    findings.append(finding)


def read_ava_csv(path: str | Path, scored: bool = False, findings: list[Finding] | None = None) -> AvaTable:
    """Read annotations, detections (``scored``: the last column is a score) or a list of frames.

    Raises:
        DataError: the file cannot be read, or a row has not 2, 7 or 8 columns, text for a number, a bad time,
            coordinates outside 0..1, an action that is no positive integer, or a score that is not finite.
    """
    rows = _Rows(str(path), scored, findings)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
            while lines := list(islice(file, _CHUNK)):
                rows.add(lines)
    except (OSError, UnicodeDecodeError) as error:
        remedy = "correct the path, or save the file as UTF-8"
        report(Finding(str(path), "", "", "a readable text file", str(error), remedy), findings)
    return rows.table()


def read_frames(path: str | Path, findings: list[Finding] | None = None) -> AvaTable:
    """Read a list of frames (rows ``video, second``), such as AVA's excluded timestamps; errors as above."""
    table = read_ava_csv(path, findings=findings)
    with_box = np.flatnonzero(~np.isnan(table.box[table.row_box, 0]))
    if len(with_box):
        found = table.finding(with_box[0], "", "2 columns (video, second)", "name a list of frames")
        report(found, findings)
    return table


class _Rows:
    """Gathers chunks of lines into the columns of an AvaTable."""

    def __init__(self, source: str, scored: bool, findings: list[Finding] | None):
        self.source, self.scored, self.findings = source, scored, findings
        self.videos: dict[str, int] = {}
        self.num_lines = self.num_boxes = 0
        self.chunks = []

    def add(self, lines: list[str]) -> None:
        rows = _parse_fast(lines, self.scored)
        line = np.arange(self.num_lines + 1, self.num_lines + len(lines) + 1, dtype=np.int32)
        if rows is None:
            rows, parsed = self._parse_one_by_one(lines)
            line = line[parsed]
        good = self._check(rows, line)
        rows, line = rows[good], line[good]
        self.num_lines += len(lines)
        if len(rows):
            columns = rows["action"].astype(np.int16), rows["last"].copy(), line
            self.chunks.append((*self._boxes(rows), *columns))

    def _parse_one_by_one(self, lines: list[str]) -> tuple[np.ndarray, list[int]]:
        """Rows and the indices of their lines; slow, but a line that cannot be read is named."""
        rows, parsed = [], []
        for i, columns in enumerate(csv.reader(lines)):
            if not columns:  # a blank line
                continue
            try:
                rows.append(_parse_row(columns, self.scored))
                parsed.append(i)
            except ValueError as error:
                self._report(self.num_lines + i + 1, "", _COLUMNS, f"{error}: {columns}")
        return np.array(rows, _ROW), parsed

    def _check(self, rows: np.ndarray, line: np.ndarray) -> np.ndarray:
        """(N,) whether the numbers of a row are possible."""
        box, second, action = rows["box"], rows["second"], rows["action"]
        without_box = np.isnan(box).all(axis=1) & (action == NO_ACTION)
        inside = ((box >= -SLACK) & (box <= 1 + SLACK)).all(axis=1) | without_box
        positive = (action == np.rint(action)) & (action > 0) & (action < 1 << 15)
        rules = (
            (inside, "box", "coordinates in 0..1: shares of the frame, not pixels"),
            ((second >= 0) & (second < 1e6), "second", "0 to 999999"),
            (positive | (action == NO_ACTION), "action", "an integer from 1, or nothing"),
            (np.isfinite(rows["last"]), "last", "a finite score"),
        )
        for good, column, expected in rules:
            for row in np.flatnonzero(~good):
                self._report(line[row], column, expected, str(rows[column][row].tolist()))
        return np.logical_and.reduce([good for good, _, _ in rules])

    def _report(self, line: int, column: str, expected: str, got: str) -> None:
        remedy = "correct or remove the line"
        report(Finding(f"{self.source}:{line}", "", column, expected, got, remedy), self.findings)

    def _boxes(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Video, second and box of the distinct boxes in turn, and the box of every row."""
        new = np.ones(len(rows), bool)
        new[1:] = (rows["box"][1:] != rows["box"][:-1]).any(axis=1)
        for column in ("video", "second"):
            new[1:] |= rows[column][1:] != rows[column][:-1]
        distinct = rows[new]
        names = [name.decode() for name in distinct["video"].tolist()]
        video = np.array([self.videos.setdefault(name, len(self.videos)) for name in names], np.int32)
        row_box = (self.num_boxes - 1 + np.cumsum(new)).astype(np.int32)
        self.num_boxes += len(distinct)
        return video, distinct["second"].copy(), distinct["box"].copy(), row_box

    def table(self) -> AvaTable:
        integers = np.zeros(0, np.int32)
        nothing = (integers, np.zeros(0), np.zeros((0, 4)), integers, integers, np.zeros(0), integers)
        columns = zip(*(self.chunks or [nothing]), strict=True)
        return AvaTable(self.source, list(self.videos), *(np.concatenate(column) for column in columns))


def _parse_fast(lines: list[str], scored: bool) -> np.ndarray | None:
    """All lines at once where they have eight columns, all filled, in ASCII; else None."""
    if not all(map(str.isascii, lines)):  # numpy would write names in Latin-1
        return None
    try:
        rows = np.loadtxt(lines, _ROW, comments=None, delimiter=",", ndmin=1, quotechar='"')
    except ValueError:
        return None
    lengths = np.char.str_len(rows["video"])
    if len(rows) != len(lines) or lengths.min() == 0 or lengths.max() == _MAX_NAME:
        return None
    if not scored:
        rows["last"] = 1.0
    return rows


def _parse_row(columns: list[str], scored: bool) -> tuple:
    if len(columns) not in (2, 7, 8):
        raise ValueError(f"{len(columns)} columns")
    video, second = columns[0].encode(), float(columns[1])
    if not 0 < len(video) < _MAX_NAME:
        raise ValueError(f"a video's name must have 1 to {_MAX_NAME - 1} bytes")
    if len(columns) == 2:
        return video, second, (np.nan,) * 4, NO_ACTION, 1.0
    action = columns[6].strip()
    score = columns[7] if len(columns) == 8 and scored else 1.0
    box = tuple(float(c) for c in columns[2:6])
    return video, second, box, float(action) if action else NO_ACTION, float(score)


def write_people(path: str | Path, people: Mapping[str, np.ndarray], source: str = "people") -> int:
    """Write mmaction2's people, "video,second" -> (N, 5) x1, y1, x2, y2, score, as a CSV; returns how many.

    Raises:
        DataError: a key or an array of another form.
    """
    lines = []
    for key, boxes in people.items():
        video, _, second = key.rpartition(",")
        if not video or not second.isdecimal() or boxes.ndim != 2 or boxes.shape[1] != 5:
            expected = '"video,second" -> (N, 5) array x1, y1, x2, y2, score'
            got = f"{tuple(boxes.shape)}"
            raise DataError(
                str(Finding(source, repr(key), "", expected, got, "name a file of person proposals"))
            )
        frame = f"{_quoted(video)},{second}"
        lines += [
            f"{frame},{x1:.6f},{y1:.6f},{x2:.6f},{y2:.6f},,{score:.6f}\n" for x1, y1, x2, y2, score in boxes
        ]
    Path(path).write_text("".join(lines), encoding="utf-8")
    return len(lines)


def write_detections(path: str | Path, table: AvaTable) -> None:
    """Write a table as AVA's challenge wants it: ``video,second,x1,y1,x2,y2,action,score``."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(detection_rows(table))


def detection_rows(table: AvaTable) -> Iterator[str]:
    """The lines of ``write_detections``."""
    frames = zip(table.video.tolist(), table.second.tolist(), table.box.tolist(), strict=True)
    videos = [_quoted(name) for name in table.videos]
    prefixes = [
        f"{videos[video]},{second_text(second)},{x1:.6f},{y1:.6f},{x2:.6f},{y2:.6f}"
        for video, second, (x1, y1, x2, y2) in frames
    ]
    rows = zip(table.row_box.tolist(), table.action.tolist(), table.score.tolist(), strict=True)
    return (f"{prefixes[box]},{action},{score:.6g}\n" for box, action, score in rows)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if "," in name or '"' in name else name
