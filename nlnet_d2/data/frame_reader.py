"""Frames of videos and of folders of images: uint8 RGB, exactly those asked for, or an error.

Videos are decoded by PyAV. Frame k is what is shown at k / fps seconds after the first frame, whatever rate
the file has, constant or not: the frame that ``ffmpeg -r FPS`` writes as number k + 1. OpenCV is not used: it
turns a damaged file into a shorter one without a word.
"""

import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, inf

import numpy as np
from PIL import Image

from nlnet_d2.data.errors import DataError

try:
    import av
except ImportError:  # only videos need it, not folders of frames
    av = None

# How far before the wanted frame decoding starts, in seconds: at the nearest key frame, and, where that turns
# out to lie behind it (open groups of pictures, coarse indices), further back.
LEADS = (0.0, 5.0, 60.0, inf)
MISSING_END = 0.5  # seconds by which a file may be shorter than its header says
# The length of one stream in Matroska. The header has only that of the longest, which may be the sound's.
_DURATION = re.compile(r"(\d+):(\d+):(\d+\.?\d*)")


@dataclass(frozen=True)
class FrameFolder:
    """Images ``{prefix}{number:0{digits}d}{suffix}``, numbered without holes from ``first``.

    ``width`` and ``height`` are in pixels, of every frame.
    """

    prefix: str
    digits: int
    suffix: str
    first: int
    num_frames: int
    width: int
    height: int

    @property
    def place(self) -> str:
        """The folder."""
        return os.path.dirname(self.prefix)

    def path(self, frame: int) -> str:
        """File of frame 0, 1, ..."""
        return f"{self.prefix}{self.first + frame:0{self.digits}d}{self.suffix}"

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """(len(frames), height, width, 3) RGB.

        Raises:
            DataError: a file is missing, damaged or of another size.
        """
        images = {frame: self._read(self.path(frame)) for frame in set(frames)}
        return np.stack([images[frame] for frame in frames])

    def _read(self, path: str) -> np.ndarray:
        image = read_image(path)
        if image.shape[:2] != (self.height, self.width):
            size = f"{image.shape[1]} x {image.shape[0]}"
            raise DataError(
                f"{path}: expected {self.width} x {self.height} pixels like the first frame, got {size}; "
                "extract the frames again"
            )
        return image


def read_image(path: str) -> np.ndarray:
    """(height, width, 3) RGB.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: expected a frame, got {error}; extract the frames again") from error


@dataclass(frozen=True)
class VideoFile:
    """A video seen at ``fps`` frames per second; ``width`` and ``height`` in pixels, as shown."""

    path: str
    fps: float
    num_frames: int
    width: int
    height: int

    @property
    def place(self) -> str:
        """The file."""
        return self.path

    @classmethod
    def open(cls, path: str, fps: float) -> "VideoFile":
        """Look into a file: decodes its first frame.

        Raises:
            DataError: the file is missing, is no video, or does not say how long it is.
        """
        with _opened(path) as (container, stream):
            first = next(container.decode(stream))
            height, width = _pixels(first).shape[:2]
            if stream.duration:
                seconds = stream.duration * stream.time_base
            elif tag := _DURATION.match(stream.metadata.get("DURATION", "")):
                hours, minutes, rest = (Fraction(number) for number in tag.groups())
                seconds = 3600 * hours + 60 * minutes + rest
            elif container.duration:
                seconds = Fraction(container.duration, av.time_base)
            else:
                raise DataError(
                    f"{path}: its header gives no duration; rewrite it: ffmpeg -i OLD -c copy NEW"
                )
            if "matroska" in container.format.name:  # it counts from time 0, not from the first frame
                seconds -= (stream.start_time or 0) * stream.time_base
        return cls(path, fps, max(1, round(seconds * Fraction(fps))), width, height)

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """(len(frames), height, width, 3) RGB.

        Raises:
            DataError: the file is missing, damaged, or ends before the last of the frames.
        """
        wanted = sorted(set(frames))
        with _opened(self.path) as (container, stream):
            images = {k: _pixels(frame) for k, frame in self._shown(container, stream, wanted)}
        return np.stack([images[frame] for frame in frames])

    def stream(self) -> Iterator[tuple[int, np.ndarray]]:
        """(k, picture (height, width, 3) RGB) in turn: it is shown from k / fps on, the last one to the end.

        Only the picture in hand is in memory, whatever the length of the video.

        Raises:
            DataError: the file is missing, damaged, or ends before its header says.
        """
        with _opened(self.path) as (container, stream):
            for slot, frame in self._decode_from(container, stream, 0):
                image = _pixels(frame)
                yield slot, image
            self._require_frame(self.num_frames - 1, slot, frame)
            if slot < self.num_frames - 1:
                yield self.num_frames - 1, image

    def _shown(self, container, stream, wanted: list[int]) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """(k, frame shown at k / fps) for the ascending numbers ``wanted``."""
        waiting = deque(wanted)
        decoded = self._decode_from(container, stream, wanted[0])
        slot, frame = next(decoded)
        for next_slot, next_frame in decoded:
            while waiting and waiting[0] < next_slot:
                yield waiting.popleft(), frame
            if not waiting:
                return
            slot, frame = next_slot, next_frame
        self._require_frame(waiting[-1], slot, frame)
        yield from ((k, frame) for k in waiting)

    def _require_frame(self, k: int, slot: int, last: "av.VideoFrame") -> None:
        """Frame k must be about where the video ends, with the frame ``last``, shown from ``slot`` on."""
        end = slot + self.fps * (MISSING_END + float((last.duration or 0) * last.time_base))
        if k > end:
            raise DataError(
                f"{self.path}: ends at {slot / self.fps:.2f} s, although its header says "
                f"{self.num_frames / self.fps:.2f} s; is it truncated? Copy or download it again"
            )

    def _decode_from(self, container, stream, k: int) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """(slot, frame) from what is shown at k / fps, or before, on; a frame is shown from its slot on."""
        start, ticks_per_slot = stream.start_time or 0, 1 / (stream.time_base * Fraction(self.fps))
        latest = ceil((k + Fraction(1, 2)) * ticks_per_slot) - 1  # of the ticks that round to slot k
        for lead in LEADS:
            ticks = max(0, latest - floor(lead / stream.time_base)) if lead < inf else 0
            # Transport streams are searched by decoding times: the first frame's may lie before ``start``.
            container.seek(start + ticks if ticks else min(start, 0), stream=stream)
            frames = _decoded(container, stream, from_start=ticks == 0)
            slots = ((self._slot(frame, start, ticks_per_slot), frame) for frame in frames)
            first = next(slots, None)
            if first is not None and (first[0] <= k or ticks == 0):
                yield first
                yield from slots
                return
        raise DataError(f"{self.path}: nothing can be decoded at {k / self.fps:.2f} s; rewrite the file")

    def _slot(self, frame: "av.VideoFrame", start: int, ticks_per_slot: Fraction) -> int:
        if frame.pts is None:
            raise DataError(f"{self.path}: frames without time stamps; rewrite it: ffmpeg -i OLD NEW.mp4")
        ticks, slots = ticks_per_slot.as_integer_ratio()
        return (2 * (frame.pts - start) * slots + ticks) // (2 * ticks)  # rounded, halves up


def require_av(path: str) -> None:
    """Raises DataError where PyAV is not installed, which reads and writes videos."""
    if av is None:
        raise DataError(f"{path}: videos need PyAV, which is not installed: pip install av")


@contextmanager
def _opened(path: str) -> Iterator[tuple]:
    """(container, video stream); whatever FFmpeg finds wrong becomes a DataError that names the file."""
    require_av(path)
    # Tags that are no UTF-8 are no damage; PyAV 19 and later do not ask.
    options = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        with av.open(path, **options) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise DataError(f"{path}: there is no picture in this file, or none that FFmpeg can decode")
            stream.codec_context.thread_count = 1  # loader processes share the cores already
            # Otherwise FFmpeg paints over what is damaged, and nobody learns of it.
            stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream
    except (av.FFmpegError, StopIteration) as error:
        reason = str(error) or "no frame"
        raise DataError(
            f"{path}: expected a video, got: {reason}; copy, convert or download it again"
        ) from error


def _decoded(container, stream, from_start: bool) -> Iterator["av.VideoFrame"]:
    """Frames in the order they are shown.

    Elsewhere than at the start, the first packets may refer to frames before them (open groups of pictures):
    what fails before the first frame is no damage.
    """
    begun = from_start
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            if begun:
                raise
            continue
        begun = begun or bool(frames)
        yield from frames


def _pixels(frame: "av.VideoFrame") -> np.ndarray:
    """(height, width, 3) RGB, turned by multiples of 90 degrees as the file says it is to be shown."""
    if frame.is_corrupt:
        raise av.InvalidDataError(0, f"a damaged frame at {frame.time:.2f} s")
    # Not by frame.side_data, which tells of mirroring, too: it makes the frame part of a cycle, and if the
    # garbage collector of a forked loader process frees that, FFmpeg waits for threads that are not there.
    # One thread: those that PyAV 19 keeps from frame to frame are not there in a forked process either.
    return np.rot90(frame.to_ndarray(format="rgb24", threads=1), frame.rotation // 90)
