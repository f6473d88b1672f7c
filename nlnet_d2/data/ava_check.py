"""Is a folder of data in AVA's format complete and readable? All problems at once, and a line per video."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from nlnet_d2.data.datasets.ava import AvaSource, load_ava
from nlnet_d2.data.errors import DataError, Finding
from nlnet_d2.data.video_folder import Video


@dataclass(frozen=True)
class VideoSummary:
    """A video, the number of its key frames, and of the people on them that do something or were detected."""

    name: str
    video: Video
    key_frames: int
    acting: int
    detected: int
    readable: bool


def check_ava(source: AvaSource, decode: bool = False) -> tuple[list[VideoSummary], list[Finding]]:
    """Check all files of a data set.

    Args:
        decode: decode all key frames, instead of the first and the last frame of each video.

    Returns:
        the videos that are there, and all problems.

    Raises:
        DataError: the label map cannot be read.
    """
    findings: list[Finding] = []
    by_video: dict[str, list[dict]] = {}
    for record in load_ava(source, findings):
        by_video.setdefault(record["video_id"], []).append(record)
    if not by_video and not findings:
        remedy = "there is nothing to learn from or to score with: export again"
        findings.append(Finding(source.annotations, "", "", "rows of key frames", "none", remedy))
    videos = []
    for name, records in tqdm(by_video.items(), "reading", disable=None, delay=2):
        video, key_frames = records[0]["video"], {record["key_frame"] for record in records}
        problem = _read_problem(video, key_frames if decode else {0, video.num_frames - 1})
        if problem:
            place = source.videos, f"video {name}", ""
            findings.append(Finding(*place, "readable frames", "one that is not", problem))
        acting = sum(int(record["actions"].any(axis=1).sum()) for record in records)
        detected = sum(int((~np.isnan(record["scores"])).sum()) for record in records)
        videos.append(VideoSummary(name, video, len(records), acting, detected, not problem))
    return videos, findings


def _read_problem(video: Video, frames: Iterable[int]) -> str:
    try:
        for frame in frames:
            video.read([frame])
    except DataError as error:
        return str(error)
    return ""


def format_report(videos: Sequence[VideoSummary], findings: Sequence[Finding], limit: int = 50) -> str:
    """A table of the videos, the problems (at most ``limit`` of them), and a line that sums up."""
    rows = [
        (
            v.name,
            f"{v.video.width} x {v.video.height}",
            v.video.num_frames,
            *(v.key_frames, v.acting, v.detected),
            "ok" if v.readable else "damaged",
        )
        for v in videos
    ]
    headers = ("video", "pixels", "frames", "key frames", "acting", "detected", "")
    lines = [tabulate(rows, headers, disable_numparse=[0])] if rows else []
    lines += [str(finding) for finding in findings[:limit]]
    if len(findings) > limit:
        lines.append(f"... and {len(findings) - limit} more")
    key_frames = sum(video.key_frames for video in videos)
    problems = f"{len(findings)} problem(s)" if findings else "no problems"
    return "\n".join([*lines, f"{len(videos)} videos, {key_frames} key frames, {problems}"])
