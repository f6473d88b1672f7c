"""What a model is shown: pictures, videos and cameras, named by a path, folder, glob or number."""

import glob
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import detection_utils
from PIL import Image

from nlnet_d2.data.errors import DataError
from nlnet_d2.data.frame_reader import VideoFile
from nlnet_d2.data.image_files import EIGHT_BIT_MODES
from nlnet_d2.data.video_folder import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
TICKS = 1000  # per second, where the time of a frame is all that counts

Frames = Iterator[tuple[int, np.ndarray]]


@dataclass(frozen=True)
class _File:
    path: str

    @property
    def name(self) -> str:
        """Of the file."""
        return os.path.basename(self.path)


class Picture(_File):
    """An image file."""

    def frames(self, fps: float) -> Frames:
        """(0, (H, W, 3) uint8 RGB), turned as its EXIF data say.

        Raises:
            DataError: the file is missing, damaged or has more than 8 bits per channel.
        """
        try:
            with Image.open(self.path) as image:
                if image.mode not in EIGHT_BIT_MODES:
                    raise ValueError(f"mode {image.mode}, which has more than 8 bits per channel")
            yield 0, detection_utils.read_image(self.path, "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.path}: expected a picture, got {error}; replace it") from error


class Video(_File):
    """A video file."""

    def frames(self, fps: float) -> Frames:
        """(k, (H, W, 3) uint8 RGB): what is shown from k / fps seconds on.

        Raises:
            DataError: the file is missing, no video, damaged, or shorter than its header says.
        """
        return VideoFile.open(self.path, fps).stream()


@dataclass(frozen=True)
class Camera:
    """A webcam, by its number from 0. It ends when somebody interrupts."""

    number: int

    @property
    def name(self) -> str:
        """camera_0"""
        return f"camera_{self.number}"

    def frames(self, fps: float) -> Frames:
        """(k, (H, W, 3) uint8 RGB): what was seen at k / fps seconds after the start.

        Raises:
            DataError: there is no such camera, or it stops.
        """
        import cv2  # needed only where there is a camera

        camera = cv2.VideoCapture(self.number)
        try:
            start = None
            while True:
                there, image = camera.read()
                if not there:
                    state = "cannot be opened" if start is None else "gives no more pictures"
                    raise DataError(f"camera {self.number} {state}: is it plugged in, and free?")
                start = time.monotonic() if start is None else start
                yield round((time.monotonic() - start) * fps), np.ascontiguousarray(image[:, :, ::-1])
        finally:
            camera.release()


Source = Picture | Video | Camera


def find_sources(source: str | Path | int | Sequence) -> list[Source]:
    """The files and cameras meant by a path, a folder (its files), a glob, a camera's number, or several.

    Raises:
        DataError: a folder or glob holds neither pictures nor videos.
    """
    several = source if isinstance(source, list | tuple) else [source]
    return list(dict.fromkeys(found for one in several for found in _expand(one)))


def _expand(source: str | Path | int) -> list[Source]:
    name = str(source)
    if name.isdecimal() and not os.path.exists(name):
        return [Camera(int(name))]
    if os.path.isdir(name):
        names = [os.path.join(name, file) for file in sorted(os.listdir(name))]
    elif glob.has_magic(name) and not os.path.exists(name):
        names = sorted(glob.glob(name, recursive=True))
    else:
        return [Video(name) if _suffix(name) in VIDEO_SUFFIXES else Picture(name)]
    found = [Picture(file) for file in names if _suffix(file) in PICTURE_SUFFIXES]
    found += [Video(file) for file in names if _suffix(file) in VIDEO_SUFFIXES]
    if not found:
        raise DataError(
            f"{name}: expected pictures ({' '.join(sorted(PICTURE_SUFFIXES))}) or videos "
            f"({' '.join(sorted(VIDEO_SUFFIXES))}), got {len(names)} other files; correct the path"
        )
    return found


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


class Failures:
    """Sources that could not be read to their end: named at once, an error when all others are done."""

    def __init__(self):
        self.reasons: dict[Source, str] = {}

    @contextmanager
    def kept(self, source: Source) -> Iterator[None]:
        """Go on after what is wrong with this source."""
        try:
            yield
        except DataError as error:
            if source not in self.reasons:
                logger.error("%s", error)
            self.reasons[source] = str(error)

    def raise_any(self, sources: Sequence[Source]) -> None:
        """
        Raises:
            DataError: names the sources that failed.
        """
        if self.reasons:
            names = ", ".join(source.name for source in self.reasons)
            reason = next(iter(self.reasons.values()))
            raise DataError(
                f"{len(self.reasons)} of {len(sources)} inputs could not be read to the end: {names} "
                f"(the first: {reason})"
            )


def frames_of(source: Source, fps: float, failures: Failures) -> Frames:
    """``source.frames``, up to where it cannot be read."""
    with failures.kept(source):
        yield from source.frames(fps)


def all_frames(sources: Iterable[Source], failures: Failures) -> Iterator[tuple[Source, float, np.ndarray]]:
    """(source, second, picture) of all frames of all sources, as far as they can be read."""
    for source in sources:
        for tick, image in frames_of(source, TICKS, failures):
            yield source, tick / TICKS, image
