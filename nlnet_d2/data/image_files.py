"""Whether an image file can be trained on, mostly without decoding it."""

import io
import os

from PIL import Image

EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
TAIL = 64  # bytes at the end of a file in which its end marker is searched: some writers pad
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")


def image_problem(path: str, width: int, height: int, decode: bool = False) -> tuple[str, str, str] | None:
    """What is wrong with an image file, as (expected, got, remedy), or None.

    Reads the header and the last bytes; a file that does not end as its format prescribes is decoded.

    Args:
        width, height: in pixels, of the image as it is shown (Detectron2 applies the EXIF orientation).
        decode: decode every file, which also finds damage in the middle (tens of times slower).
    """
    try:
        with Image.open(path) as image:
            if image.mode not in EIGHT_BIT_MODES:
                return "8 bits per channel", f"mode {image.mode}", "convert it: Detectron2 clips the rest"
            shown = image.size[::-1] if _is_turned(image) else image.size
            if shown != (width, height):
                size = f"{shown[0]} x {shown[1]}"
                return f"{width} x {height} pixels", size, "correct the JSON, or put the original image back"
            if decode or not _ends_properly(image.fp, image.format):
                image.load()
    except FileNotFoundError:
        return "an image file", "no such file", "put it there, or correct file_name or the image folder"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return "a complete image", f"{type(error).__name__}: {error}", "copy or download the image again"
    return None


def _is_turned(image: Image.Image) -> bool:
    return "exif" in image.info and image.getexif().get(EXIF_ORIENTATION) in QUARTER_TURNS


def _ends_properly(file: io.BufferedIOBase, image_format: str) -> bool:
    """Whether the file ends with the end marker of its format; leaves the position in the file as it was."""
    position = file.tell()
    file.seek(0, os.SEEK_END)
    file.seek(-min(TAIL, file.tell()), os.SEEK_END)
    tail = file.read()
    file.seek(position)
    return image_format in END_MARKERS and END_MARKERS[image_format] in tail
