"""Clips around key frames, cut from a stream of frames in one pass: as much of it is kept as a clip spans."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path

import numpy as np

from nlnet_d2.data.clip_sampler import clip_frames, key_frame_index
from nlnet_d2.data.datasets.ava_files import AvaTable, read_ava_csv, report, second_text
from nlnet_d2.data.errors import DataError


@dataclass(frozen=True)
class KeyFrame:
    """A moment at which actions are asked for.

    Attributes:
        slot: frame number at the rate of the clips.
        second: from the beginning of the video.
        boxes: (B, 4) float32, people in shares of the frame (XYXY, 0..1); None: the model finds them.
    """

    slot: int
    second: float
    boxes: np.ndarray | None = None


@dataclass(frozen=True)
class Clip:
    """``frames`` (T, h, w, 3) around a key frame, whose ``image`` (H, W, 3) has its full size."""

    key: KeyFrame
    image: np.ndarray
    frames: np.ndarray


def regular_key_frames(every: float, fps: float) -> Iterator[KeyFrame]:
    """Without end: at 0, ``every``, 2 * ``every``, ... seconds."""
    return (KeyFrame(key_frame_index(i * every, 0, fps), i * every) for i in count())


def stretches(frames: Iterable[tuple[int, np.ndarray]], pause: float) -> Iterator[tuple[int, Iterator]]:
    """(first slot, frames) of each part of a stream, which ends where no frame comes for ``pause`` slots."""
    before = start = 0

    def start_of(frame: tuple[int, np.ndarray]) -> int:
        nonlocal before, start
        start, before = (frame[0] if frame[0] - before >= pause else start), frame[0]
        return start

    return groupby(frames, start_of)


def cut_clips(
    frames: Iterable[tuple[int, np.ndarray]],
    keys: Iterable[KeyFrame],
    num_frames: int,
    stride: int,
    resize: Callable[[np.ndarray], np.ndarray],
) -> Iterator[Clip]:
    """Clips of the key frames that lie in the stream, with the frames of ``clip_sampler.clip_frames``.

    Args:
        frames: (k, picture that is shown from slot k on), as of ``VideoFile.stream``.
        keys: ascending.
        num_frames, stride: of a clip, in slots.
        resize: what a clip shows of a picture.
    """
    keys, begun = iter(keys), deque()
    key, image, small = next(keys, None), None, None
    for slot, shown in _every_slot(frames):
        while key is not None and key.slot - num_frames * stride // 2 <= slot:
            begun.append(_Begun(key, num_frames, stride))
            key = next(keys, None)
        if shown is not image:
            image, small = shown, None
        if small is None and any(slot in clip.indices for clip in begun):
            small = resize(image)
        for clip in begun:
            clip.show(slot, image, small)
        while begun and max(begun[0].indices[-1], begun[0].key.slot) <= slot:
            yield begun.popleft().finish()
    for clip in begun:
        if clip.image is not None:  # the end of the video is repeated
            yield clip.finish(resize(image))


class _Begun:
    """A clip whose last frame is still to come."""

    def __init__(self, key: KeyFrame, num_frames: int, stride: int):
        self.key, self.image, self.small = key, None, {}
        endless = key.slot + num_frames * stride + 1
        self.indices = clip_frames(key.slot, num_frames, stride, endless)

    def show(self, slot: int, image: np.ndarray, small: np.ndarray | None) -> None:
        if slot == self.key.slot:
            self.image = image
        if slot in self.indices:
            self.small[slot] = small

    def finish(self, end: np.ndarray | None = None) -> Clip:
        """``end``: what is shown at all slots that did not come."""
        return Clip(self.key, self.image, np.stack([self.small.get(i, end) for i in self.indices]))


def _every_slot(frames: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """(k, picture shown at slot k) for k = 0, 1, ... to the last frame."""
    k, shown = 0, None
    for slot, image in frames:
        for earlier in range(k, slot):
            yield earlier, image if shown is None else shown
        k, shown = max(k, slot), image
    if shown is not None:
        yield k, shown


class PeopleFile:
    """Boxes of people on key frames, from a CSV in AVA's format whose last column is a score.

    Seconds count from the beginning of the video. Its name is that of its file, without suffix.

    Args:
        min_score: boxes below it are left out; their key frames stay.

    Raises:
        DataError: see ``read_ava_csv``, or a box without area.
    """

    def __init__(self, path: str | Path, min_score: float):
        self.table, self.min_score = read_ava_csv(path, scored=True), min_score
        self.score = np.zeros(len(self.table.box))  # of each box
        np.maximum.at(self.score, self.table.row_box, self.table.score)
        _require_area(self.table)

    def key_frames(self, video: str, fps: float, num_frames: int) -> list[KeyFrame]:
        """Key frames of a video at their boxes, ascending.

        Raises:
            DataError: the file has none for this video, or one beyond its end.
        """
        if video not in self.table.videos:
            known = ", ".join(self.table.videos[:3]) or "none"
            raise DataError(f"{self.table.source}: expected rows of video {video!r}, got those of {known}")
        of_video = self.table.video == self.table.videos.index(video)
        keys = []
        for second in np.unique(self.table.second[of_video]).tolist():
            slot = key_frame_index(second, 0, fps)
            if slot >= num_frames:
                raise DataError(
                    f"{self.table.source}: expected seconds up to {num_frames / fps:.2f}, the length of "
                    f"video {video!r}, got {second_text(second)}; seconds count from its beginning"
                )
            here = of_video & (self.table.second == second) & (self.score >= self.min_score)
            boxes = np.unique(self.table.box[here], axis=0)
            keys.append(KeyFrame(slot, second, boxes[~np.isnan(boxes[:, 0])].clip(0, 1).astype(np.float32)))
        return keys


def _require_area(table: AvaTable) -> None:
    has_area = (table.box[:, 2:] > table.box[:, :2]).all(axis=1) | np.isnan(table.box[:, 0])
    for row in np.flatnonzero(~has_area[table.row_box]):
        report(table.finding(row, "box", "x1 < x2 and y1 < y2", "correct or remove the row"), None)
