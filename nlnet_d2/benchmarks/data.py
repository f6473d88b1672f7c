"""Suite ``data``: clips from videos and folders, images through large-scale jitter."""

import tempfile
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from nlnet_d2.benchmarks.measure import Case, Goal, Pair
from nlnet_d2.config import add_nlnet_config
from nlnet_d2.data.augmentation import build_mapper
from nlnet_d2.data.clip_sampler import clip_frames
from nlnet_d2.data.frame_reader import FrameFolder, VideoFile

FPS = 30
SIZE = (320, 240)  # width, height
COLOURS = 0.2  # two decoders differ so much, relative to 255; another frame differs by more

_folder = tempfile.TemporaryDirectory(prefix="benchmark")


def cases(quick: bool) -> list[Case]:
    seconds = 3 if quick else 120
    clip = f"32 of 64 frames in the middle of {seconds} s of video"
    images = 2 if quick else 20
    return [
        Case(clip, "OpenCV frame by frame", partial(build_video, seconds), 32, "frames", COLOURS, Goal(3)),
        Case(
            clip + " in JPEG files",
            "OpenCV file by file",
            partial(build_folder, seconds),
            32,
            "frames",
            COLOURS,
        ),
        Case(
            f"large-scale jitter of {images} images",
            "detectron2's recipe, padded",
            partial(build_jitter, images),
            images,
            "images",
        ),
    ]


def drawn_frame(number: int) -> np.ndarray:
    """(H, W, 3) uint8: a bright bar wanders over a ramp."""
    frame = np.broadcast_to(
        np.linspace(0, 120, SIZE[0], dtype=np.uint8)[None, :, None], (*SIZE[::-1], 3)
    ).copy()
    left = 8 * number % SIZE[0]
    frame[:, left : left + 16] = 240
    return frame


def build_video(seconds: int, device) -> Pair:
    path = f"{_folder.name}/video{seconds}.mp4"
    if not Path(path).exists():
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            stream.time_base = Fraction(1, FPS)
            for number in range(seconds * FPS):
                frame = av.VideoFrame.from_ndarray(drawn_frame(number), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    frames = clip_frames(seconds * FPS // 2, 32, 2, seconds * FPS)

    def frame_by_frame() -> np.ndarray:
        capture, wanted, images = cv2.VideoCapture(path), set(frames), []
        for number in range(frames[-1] + 1):
            _, image = capture.read()
            if number in wanted:
                images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        capture.release()
        return np.stack(images)

    return Pair(lambda: VideoFile.open(path, FPS).read(frames), frame_by_frame)


def build_folder(seconds: int, device) -> Pair:
    prefix = f"{_folder.name}/frame{seconds}_"
    frames = clip_frames(seconds * FPS // 2, 32, 2, seconds * FPS)
    folder = FrameFolder(prefix, 6, ".jpg", 1, seconds * FPS, *SIZE)
    for frame in frames:
        Image.fromarray(drawn_frame(frame)).save(folder.path(frame), quality=95)

    def file_by_file() -> np.ndarray:
        return np.stack([cv2.cvtColor(cv2.imread(folder.path(f)), cv2.COLOR_BGR2RGB) for f in frames])

    return Pair(lambda: folder.read(frames), file_by_file)


def build_jitter(images: int, device) -> Pair:
    """Both mappers draw the same random numbers; padding with zeros does not change the sums."""
    path = f"{_folder.name}/image.jpg"
    Image.fromarray(cv2.resize(drawn_frame(0), (640, 480))).save(path)
    box = {"bbox": [100, 100, 500, 400], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    polygon = {"segmentation": [[100, 100, 500, 100, 500, 400, 100, 400]], "iscrowd": 0}
    record = {
        "file_name": path,
        "height": 480,
        "width": 640,
        "image_id": 1,
        "annotations": [box | polygon for _ in range(7)],
    }
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.INPUT.AUGMENTATION, cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = "large_scale_jitter", True, "bitmask"
    side, (low, high) = cfg.INPUT.JITTER.SIZE, cfg.INPUT.JITTER.SCALES
    padded = [
        T.RandomFlip(),
        T.ResizeScale(low, high, target_height=side, target_width=side),
        T.FixedSizeCrop((side, side), pad_value=0),
    ]
    stock = DatasetMapper(cfg, True, augmentations=padded, recompute_boxes=True)

    def run(mapper) -> list:
        samples = [mapper(record) for _ in range(images)]
        return [(s["image"].sum(dtype=torch.float64), s["instances"].gt_boxes.tensor) for s in samples]

    return Pair(partial(run, build_mapper(cfg, True)), partial(run, stock), lambda: np.random.seed(0))
