"""200 seeded mutations of each kind of file: read, or refused by an error that names it; nothing hangs."""

import json
import signal

import numpy as np
import pytest
from PIL import Image
from small_videos import numbered_frame, write_video

from nlnet_d2.data.check import check_coco
from nlnet_d2.data.datasets.ava_files import read_ava_csv
from nlnet_d2.data.datasets.label_map import read_label_map
from nlnet_d2.data.errors import DataError
from nlnet_d2.data.frame_reader import VideoFile, read_image
from nlnet_d2.data.image_files import image_problem

MUTATIONS = 200
PATIENCE = 10  # seconds after which a file is said to hang
CSV = "".join(f"video{i % 3},{902 + i:04d},0.{i}1,0.22,0.73,0.94,{i % 80 + 1},{i % 4}\n" for i in range(9))
LABELS = "".join(f'item {{\n  name: "act {i}"\n  id: {i}\n}}\n' for i in range(1, 6))


def mutated(content: bytes, rng) -> bytes:
    """Bytes changed, cut off, cut out or doubled."""
    data, at = bytearray(content), int(rng.integers(len(content)))
    size = int(rng.integers(1, max(2, len(content) // 8)))
    kind = rng.choice(["change", "truncate", "remove", "double"])
    if kind == "change":
        for _ in range(int(rng.choice([1, 3, 10]))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    elif kind == "truncate":
        del data[at:]
    elif kind == "remove":
        del data[at : at + size]
    else:
        data[at:at] = data[at : at + size]
    return bytes(data)


def read_json(path):
    findings = check_coco(str(path), str(path.parent / "images"))
    if errors := [finding for finding in findings if finding.severity == "error"]:
        raise DataError(str(errors[0]))


def read_csv(path):
    table = read_ava_csv(path)
    assert np.isfinite(table.second).all()


def read_picture(path):
    image = read_image(str(path))
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    image_problem(str(path), 64, 48, decode=True)


def read_video(path):
    video = VideoFile.open(str(path), 30)
    frames = video.read([0, video.num_frames // 2, video.num_frames - 1])
    assert frames.shape == (3, video.height, video.width, 3)


@pytest.fixture
def originals(tmp_path, own):
    """Kind -> (an intact file, how it is read)."""
    picture = Image.fromarray(numbered_frame(77))
    picture.save(tmp_path / "whole.jpg")
    picture.save(tmp_path / "whole.png")
    (tmp_path / "whole.csv").write_text(CSV)
    (tmp_path / "whole.pbtxt").write_text(LABELS)
    (tmp_path / "whole.json").write_text(json.dumps(own.content))
    write_video(tmp_path / "whole.mp4", [i / 30 for i in range(12)])
    readers = {"jpg": read_picture, "png": read_picture, "csv": read_csv, "json": read_json}
    return readers | {"mp4": read_video, "pbtxt": read_label_map}


@pytest.fixture
def no_hang():
    def hangs(number, frame):
        raise AssertionError(f"no answer after {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["jpg", "png", "csv", "json", "mp4", "pbtxt"])
def test_every_file_is_read_or_refused_by_name(tmp_path, originals, no_hang, kind):
    whole, read, rng = tmp_path / f"whole.{kind}", originals[kind], np.random.default_rng(0)
    read(whole)
    path, refused = tmp_path / f"mutated.{kind}", 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(whole.read_bytes(), rng))
        signal.alarm(PATIENCE)
        try:
            read(path)
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > MUTATIONS // 10
