"""Videos of a few kilobytes whose frames show their own number."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

SIZE = (64, 48)  # width, height
BITS = 8


def numbered_frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8: eight vertical bars, black or white as the bits of the number."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8) * 255
    row = np.repeat(bits, size[0] // BITS)
    return np.broadcast_to(row[None, :, None], (size[1], size[0], 3)).copy()


def number_of(frame: np.ndarray) -> int:
    """The number that a frame shows, whatever its size."""
    height, width = frame.shape[:2]
    return sum(
        int(frame[height // 2, int((bit + 0.5) * width / BITS), 0] > 127) << bit for bit in range(BITS)
    )


def write_video(path: Path, seconds: Sequence[float], codec: str = "libx264", size=SIZE, **options) -> Path:
    """Frame i is shown from ``seconds[i]`` on."""
    tick = Fraction(1, 90_000) if codec != "mpeg4" else Fraction(1, 30)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = tick
        stream.options = {key.replace("_", "-"): str(value) for key, value in options.items()}
        for number, second in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, size), format="rgb24")
            frame.pts, frame.time_base = round(second / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_frames(folder: Path, count: int, name: str = "{folder}_{number:06d}.jpg", size=SIZE) -> Path:
    """A folder of numbered frames, file 1 showing 0."""
    folder.mkdir(parents=True)
    for number in range(count):
        file = name.format(folder=folder.name, number=number + 1)
        Image.fromarray(numbered_frame(number, size)).save(folder / file, quality=95)
    return folder
