"""Which videos are in a folder: ``NAME.mp4`` (or another container), or ``NAME/`` with numbered frames."""

import csv
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict
from multiprocessing.pool import ThreadPool

from tqdm import tqdm

from nlnet_d2.data.datasets.ava_files import report
from nlnet_d2.data.errors import DataError, Finding
from nlnet_d2.data.frame_reader import FrameFolder, VideoFile, read_image
from nlnet_d2.data.paths import safe_join

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
READERS = 8  # threads that open files
_FRAME_NAME = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)(?P<suffix>\.(?:jpe?g|png))", re.IGNORECASE)
_FRAME_LIST_HEADER = ["original_vido_id", "video_id", "frame_id", "path", "labels"]  # spelt so in the wild

INDEX_FILE = "video_index.json"  # in the folder: what was found in it last time

Video = FrameFolder | VideoFile


def find_videos(
    root: str, names: Iterable[str], fps: float, findings: list[Finding] | None = None
) -> dict[str, Video]:
    """Look up videos by name and look into each.

    Args:
        root: the folder.
        names: without suffix.
        fps: rate at which video files are seen, and at which frames were extracted.

    Raises:
        DataError: a video is missing, there twice, or cannot be read; unless ``findings`` collects that.
    """
    if not os.path.isdir(root):
        report(
            Finding(root, "", "", "a folder of videos, or of folders of frames", "none", "correct it"),
            findings,
        )
        return {}
    present: dict[str, list[str]] = {}
    with os.scandir(os.path.abspath(root)) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if entry.is_dir():
                present.setdefault(entry.name, []).append(entry.path)
            elif suffix.lower() in VIDEO_SUFFIXES:
                present.setdefault(stem, []).append(entry.path)

    names, index = list(names), _read_index(root)

    def look(name: str) -> Video | Finding:
        paths = present.get(name, [])
        known = index.get(_state(paths[0], fps)) if len(paths) == 1 else None
        is_there = known is not None and known.place == paths[0]  # the index came with the data
        return known if is_there else _look(root, name, paths, fps)

    with ThreadPool(READERS) as pool:
        looked = pool.imap(look, names)
        looked = list(tqdm(looked, "videos", len(names), disable=None, delay=2))
    for problem in looked:
        if isinstance(problem, Finding):
            report(problem, findings)
    return {name: video for name, video in zip(names, looked, strict=True) if not isinstance(video, Finding)}


def _look(root: str, name: str, paths: list[str], fps: float) -> Video | Finding:
    """The only video among the ``paths`` of a name, or what is wrong."""
    item = f"video {name}"
    if len(paths) != 1:
        got = " and ".join(os.path.basename(path) for path in sorted(paths)) or "nothing"
        remedy = "put it there, or remove it from the CSV; `nlnet-d2 prepare-ava` lists all that is missing"
        return Finding(root, item, "", f"{name}.mp4 (or .mkv, ...) or a folder {name}", got, remedy)
    try:
        return list_frames(paths[0]) if os.path.isdir(paths[0]) else VideoFile.open(paths[0], fps)
    except DataError as error:
        return Finding(root, item, "", *_unreadable(error))


def write_index(root: str, videos: Iterable[Video], fps: float) -> str:
    """Keep what is known of videos, so that they need not be opened again while they stay as they are.

    Returns:
        the path of the index, in the folder.
    """
    kinds = {FrameFolder: "frames", VideoFile: "file"}
    entries = [{"state": _state(v.place, fps), "kind": kinds[type(v)], **asdict(v)} for v in videos]
    path = os.path.join(root, INDEX_FILE)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(entries, file, indent=0)
    return path


def _read_index(root: str) -> dict[str, Video]:
    """State -> video; empty if there is no index."""
    path, kinds = os.path.join(root, INDEX_FILE), {"frames": FrameFolder, "file": VideoFile}
    try:
        with open(path, encoding="utf-8") as file:
            return {entry.pop("state"): kinds[entry.pop("kind")](**entry) for entry in json.load(file)}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected an index of videos, got {error!r}; delete it") from error


def _state(path: str, fps: float) -> str:
    """Changes when the video does, or the rate at which it is seen."""
    stat = os.stat(path)
    return f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns} {fps}"


def _unreadable(error: Exception) -> tuple[str, str, str]:
    """Expected, got and remedy of a finding that repeats an error."""
    return "a complete video", "one that cannot be read", str(error)


def list_frames(folder: str) -> FrameFolder:
    """The frames of a folder.

    Raises:
        DataError: there are none, two kinds of them, holes in the numbers, or the first one is damaged.
    """
    return _frame_folder(folder, [name for name in sorted(os.listdir(folder)) if _FRAME_NAME.fullmatch(name)])


def _frame_folder(folder: str, names: list[str]) -> FrameFolder:
    """Frames of the given names, which must be numbered without holes."""
    parts = [_FRAME_NAME.fullmatch(name) for name in names]
    if not names or None in parts:
        raise DataError(f"{folder}: expected frames such as NAME_000001.jpg, got {names[:1]}; extract them")
    kinds = {(part["prefix"], part["suffix"]) for part in parts}
    numbers = sorted(int(part["number"]) for part in parts)
    (prefix, suffix), digits = min(kinds), min(len(part["number"]) for part in parts)
    holes = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if len(kinds) > 1 or holes or len(set(numbers)) < len(numbers):
        got = f"{len(holes)} missing, first {holes[0]}" if holes else f"several series {sorted(kinds)[:2]}"
        raise DataError(f"{folder}: expected frames numbered without holes, got {got}; extract them again")
    path = safe_join(folder, names[0])
    height, width = read_image(path).shape[:2]
    return FrameFolder(os.path.join(folder, prefix), digits, suffix, numbers[0], len(numbers), width, height)


def read_frame_list(
    path: str, root: str, names: Iterable[str], findings: list[Finding] | None = None
) -> dict[str, FrameFolder]:
    """Videos of a frame list: rows ``original_vido_id video_id frame_id path labels``, separated by spaces.

    Like PySlowFast, takes the frames of a video in the order of the file, and the columns 0 and 3 alone.

    Args:
        root: what the paths are relative to.
        names: the videos that are needed.

    Raises:
        DataError: a malformed row, a video that is not listed, or frames that cannot be read; unless
            ``findings`` collects that.
    """
    files: dict[str, list[str]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for line, row in enumerate(csv.reader(file, delimiter=" "), start=1):
                if len(row) != len(_FRAME_LIST_HEADER) or (line == 1) != (row == _FRAME_LIST_HEADER):
                    expected = f"{' '.join(_FRAME_LIST_HEADER)}, then 5 columns"
                    raise DataError(f"{path}:{line}: expected {expected}, got {row}; correct the line")
                if line > 1:
                    files.setdefault(row[0], []).append(row[3])
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a frame list, got {error}; correct the path") from error
    videos = {}
    for name in names:
        try:
            videos[name] = _listed_frames(root, files.get(name, []))
        except (DataError, ValueError) as error:
            report(Finding(path, f"video {name}", "", *_unreadable(error)), findings)
    return videos


def _listed_frames(root: str, files: list[str]) -> FrameFolder:
    folders = {os.path.dirname(file) for file in files}
    if len(folders) != 1:
        raise DataError(f"expected paths in one folder, got paths in {len(folders)} folders; list its frames")
    return _frame_folder(safe_join(root, folders.pop()), [os.path.basename(file) for file in files])
