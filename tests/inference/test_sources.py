"""What a source is, and what becomes of those that cannot be read."""

import logging
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from small_videos import SIZE, number_of, numbered_frame, write_video

from nlnet_d2.data.errors import DataError
from nlnet_d2.data.frame_reader import VideoFile
from nlnet_d2.inference.sources import TICKS, Camera, Failures, Picture, Video, all_frames, find_sources


@pytest.fixture
def folder(tmp_path):
    """b.png and a.JPG, a video, and something else."""
    for name in ("b.png", "a.JPG"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    write_video(tmp_path / "c.mp4", [0, 0.1])
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


def test_a_folder_is_its_pictures_and_videos(folder):
    expected = [Picture(str(folder / "a.JPG")), Picture(str(folder / "b.png")), Video(str(folder / "c.mp4"))]
    assert find_sources(folder) == expected
    assert find_sources([folder, str(folder / "b.png")]) == expected, "each once"
    assert find_sources(f"{folder}/*.p*") == [expected[1]]
    assert find_sources(f"{folder}/**") == expected


def test_a_number_is_a_camera_unless_a_file_is_called_so(tmp_path, monkeypatch):
    assert find_sources(1) == find_sources("1") == [Camera(1)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1").touch()
    assert find_sources("1") == [Picture("1")]


@pytest.mark.parametrize("pattern", ["", "*.tga"])
def test_nothing_to_look_at(tmp_path, pattern):
    with pytest.raises(DataError, match=r"expected pictures \(.*\.jpg"):
        find_sources(tmp_path / pattern)


def test_pictures_are_turned_as_they_are_shown(tmp_path):
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    ((_, shown),) = Picture(str(tmp_path / "turned.jpg")).frames(1)
    assert shown.shape == (8, 6, 3) and shown.dtype == np.uint8


def test_unreadable_pictures_are_named_and_the_rest_goes_on(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:1500])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    sources, failures = find_sources([tmp_path, tmp_path / "absent.jpg"]), Failures()
    with caplog.at_level(logging.ERROR):
        names = [source.name for source, *_ in all_frames(sources, failures)]
    assert names == ["0.jpg", "2.jpg"]
    assert [record.message.split(":")[0] for record in caplog.records] == [
        str(tmp_path / name) for name in ("1.jpg", "deep.png", "absent.jpg")
    ]
    with pytest.raises(DataError, match="3 of 5 inputs .*1.jpg, deep.png, absent.jpg .*truncated"):
        failures.raise_any(sources)


def test_failures_of_nothing_are_none():
    Failures().raise_any([Camera(0)])


class FakeCamera:
    """Gives two pictures, blue in OpenCV's order, and then nothing."""

    released = False

    def __init__(self, number):
        self.left = 2 if number == 0 else 0

    def read(self):
        self.left -= 1
        return self.left >= 0, np.full((4, 6, 3), (255, 0, 0), np.uint8)

    def release(self):
        FakeCamera.released = True


def test_a_camera(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    frames = Camera(0).frames(TICKS)
    (first, image), (second, _) = next(frames), next(frames)
    assert first == 0 <= second and image[0, 0].tolist() == [0, 0, 255]
    with pytest.raises(DataError, match="camera 0 gives no more pictures"):
        next(frames)
    assert FakeCamera.released
    with pytest.raises(DataError, match="camera 1 cannot be opened"):
        next(Camera(1).frames(TICKS))


def test_a_video_streams_all_its_frames(tmp_path):
    seconds = [0, 0.1, 0.15, 0.5, 0.6, 0.7]
    path = str(write_video(tmp_path / "vfr.mp4", seconds))
    frames = list(Video(path).frames(TICKS))
    assert [tick for tick, _ in frames[:6]] == [1000 * second for second in seconds]
    assert [number_of(image) for _, image in frames[:6]] == list(range(6))
    assert all(number_of(image) == 5 for _, image in frames[6:]), "the last one is shown to the end"
    every_slot = dict(VideoFile.open(path, 20).stream())
    shown = {0: 0, 2: 1, 3: 2, 10: 3, 12: 4}
    assert {slot: number_of(image) for slot, image in every_slot.items() if slot in range(13)} == shown


def test_a_truncated_video_gives_what_it_has_then_an_error(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", [i / 30 for i in range(90)], g=15)
    part = tmp_path / "part.mkv"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    seen = []
    with pytest.raises(DataError, match=r"part.mkv: .*(truncated|damaged|download it again)"):
        seen.extend(number_of(image) for _, image in Video(str(part)).frames(30))
    assert seen == list(range(len(seen))) and 20 < len(seen) < 80


def test_sound_that_outlasts_the_picture_is_no_damage(tmp_path):
    path = str(tmp_path / "sound.mkv")
    with av.open(path, "w") as container:
        video, sound = container.add_stream("libx264", rate=30), container.add_stream("flac", rate=16000)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        for number in range(30):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        container.mux(video.encode())
        for i in range(30):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, i * 1600, Fraction(1, 16000)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert [number_of(image) for _, image in Video(path).frames(30)] == list(range(30))
