"""Frames by number from videos of constant and variable rate, and from folders; damage is an error."""

import struct
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from PIL import Image
from small_videos import SIZE, number_of, numbered_frame, write_frames, write_video

from nlnet_d2.data import frame_reader
from nlnet_d2.data.errors import DataError
from nlnet_d2.data.frame_reader import FrameFolder, VideoFile
from nlnet_d2.data.video_folder import list_frames

COUNT = 90
EVEN = [i / 30 for i in range(COUNT)]
# Containers and codecs with their own ways of seeking: B-frames, long and open groups of pictures.
KINDS = {
    "h264.mp4": {},
    "long_groups.mkv": {"g": 250, "bf": 3},
    "open_groups.mp4": {"x264_params": "open-gop=1:keyint=12:bframes=3:b-pyramid=normal"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "length_of_all_streams.flv": {"codec": "flv1"},
    "vp9.webm": {"codec": "libvpx-vp9", "deadline": "realtime"},
    "decoded_before_shown.ts": {"g": 30, "bf": 3},
}


def numbers(images: np.ndarray) -> list[int]:
    return [number_of(image) for image in images]


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_frames_that_are_asked_for(kind, tmp_path):
    video = VideoFile.open(str(write_video(tmp_path / kind, EVEN, **KINDS[kind])), 30.0)
    assert (video.num_frames, video.width, video.height) == (COUNT, *SIZE)
    for frames in ([0], [COUNT - 1], [13, 14, 15], [40, 44, 48, 52, 56], [88, 3, 3, 61]):
        images = video.read(frames)
        assert numbers(images) == frames
        assert images.shape == (len(frames), SIZE[1], SIZE[0], 3)
        assert images.dtype == np.uint8


@pytest.mark.parametrize("fps", [30, 12.5, 60])
def test_variable_rate(fps, tmp_path):
    """Frame k is the last one whose time, rounded to the grid, is not after k, as for ffmpeg's ``-r``."""
    seconds = np.cumsum(np.random.default_rng(0).uniform(0.005, 0.2, COUNT))
    seconds -= seconds[0]
    video = VideoFile.open(str(write_video(tmp_path / "v.mp4", seconds)), fps)
    slots = [floor(Fraction(round(s * 90_000), 90_000) * Fraction(fps) + Fraction(1, 2)) for s in seconds]
    expected = [np.searchsorted(slots, k, "right") - 1 for k in range(video.num_frames)]
    assert numbers(video.read(range(video.num_frames))) == expected


@pytest.mark.parametrize("tag", [b"DURATION", b"NO  TAGS"])
def test_time_begins_with_the_first_frame(tag, tmp_path):
    """Cut videos often begin at some other time than 0; not every program writes the length of a stream."""
    path = write_video(tmp_path / "v.mkv", [7.0 + s for s in EVEN])
    path.write_bytes(path.read_bytes().replace(b"DURATION", tag))
    video = VideoFile.open(str(path), 30.0)
    assert video.num_frames == COUNT
    assert numbers(video.read([0, 10, COUNT - 1])) == [0, 10, COUNT - 1]


@pytest.mark.parametrize("lead", frame_reader.LEADS[1:])
def test_decoding_from_further_back(lead, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_reader, "LEADS", (lead,))
    video = VideoFile.open(str(write_video(tmp_path / "v.mp4", EVEN)), 30.0)
    assert numbers(video.read([80, 81])) == [80, 81]


def test_a_video_has_at_least_one_frame(tmp_path):
    video = VideoFile.open(str(write_video(tmp_path / "v.mp4", [0])), 1.0)
    assert video.num_frames == 1
    assert numbers(video.read([0])) == [0]


def test_a_last_frame_that_stays(tmp_path):
    video = VideoFile.open(str(write_video(tmp_path / "v.mp4", [0, 0.1, 0.2])), 30.0)
    assert numbers(video.read([video.num_frames - 1])) == [2]


@pytest.mark.parametrize("matrix", [(-1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0)])
def test_turned_video(matrix, tmp_path):
    """Phones write how a picture is shown: what is at (x, y) at (a x + c y, b x + d y), and an offset."""
    path = write_video(tmp_path / "v.mp4", EVEN[:5])
    (upright,) = VideoFile.open(str(path), 30.0).read([3])
    a, b, c, d = matrix
    content = bytearray(path.read_bytes())
    struct.pack_into(">5i", content, content.index(b"tkhd") + 44, *(2**16 * v for v in (a, b, 0, c, d)))
    path.write_bytes(content)

    y, x = np.indices(upright.shape[:2])
    shown_x, shown_y = a * x + c * y, b * x + d * y
    expected = np.empty_like(upright if a else upright.transpose(1, 0, 2))
    expected[shown_y - shown_y.min(), shown_x - shown_x.min()] = upright
    video = VideoFile.open(str(path), 30.0)
    assert (video.height, video.width) == expected.shape[:2]
    assert np.array_equal(video.read([3])[0], expected)


def test_tags_in_another_encoding(tmp_path):
    path = write_video(tmp_path / "v.mp4", EVEN[:5])
    content = path.read_bytes()
    assert content.count(b"Lavf") == 1  # of the tag that names the program
    path.write_bytes(content.replace(b"Lavf", b"\xe4\xf6\xfc "))
    assert numbers(VideoFile.open(str(path), 30.0).read([3])) == [3]


# --- damage ---


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"\x00\x00\x00\x20ftypisom" + b"\x00" * 300]
)
def test_no_video(content, tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match="v.mp4: expected a video"):
        VideoFile.open(str(path), 30.0)


def test_missing_video(tmp_path):
    with pytest.raises(DataError, match="nowhere.mp4"):
        VideoFile.open(str(tmp_path / "nowhere.mp4"), 30.0)


def test_cut_off_mp4_does_not_open(tmp_path):
    path = write_video(tmp_path / "v.mp4", EVEN)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="v.mp4: expected a video"):
        VideoFile.open(str(path), 30.0)


def test_cut_off_mkv_ends_early(tmp_path):
    """Its header still promises the whole length: the last frame must not stand in for the missing ones."""
    path = write_video(tmp_path / "v.mkv", EVEN, g=10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video = VideoFile.open(str(path), 30.0)
    assert video.num_frames == COUNT
    assert numbers(video.read([5, 9])) == [5, 9]
    with pytest.raises(DataError, match="v.mkv"):
        video.read([80, 85])


def test_damage_in_the_middle(tmp_path):
    path = write_video(tmp_path / "v.avi", EVEN, codec="mpeg4", g=30)
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = np.random.default_rng(0).bytes(third)
    path.write_bytes(content)
    video = VideoFile(str(path), 30.0, COUNT, *SIZE)
    with pytest.raises(DataError, match="v.avi"):
        video.read(range(COUNT))


def test_sound_alone(tmp_path):
    path = tmp_path / "v.mp4"
    with frame_reader.av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = frame_reader.av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no picture"):
        VideoFile.open(str(path), 30.0)


def test_without_pyav(monkeypatch, tmp_path):
    monkeypatch.setattr(frame_reader, "av", None)
    with pytest.raises(DataError, match="pip install"):
        VideoFile.open(str(tmp_path / "v.mp4"), 30.0)


# --- folders of frames ---


def test_folder(tmp_path):
    folder = list_frames(str(write_frames(tmp_path / "v", 12)))
    assert (folder.num_frames, folder.first, folder.width, folder.height) == (12, 1, *SIZE)
    assert folder.path(0).endswith("v/v_000001.jpg")
    assert numbers(folder.read([11, 0, 0, 5])) == [11, 0, 0, 5]


@pytest.mark.parametrize("name", ["img_{number:05d}.jpg", "{number}.png", "a-2-{number:03d}.JPG"])
def test_names_of_frames(name, tmp_path):
    folder = list_frames(str(write_frames(tmp_path / "v", 11, name)))
    assert numbers(folder.read(range(11))) == list(range(11))


def test_hole(tmp_path):
    path = write_frames(tmp_path / "v", 12)
    (path / "v_000007.jpg").unlink()
    with pytest.raises(DataError, match="1 missing, first 7"):
        list_frames(str(path))


def test_two_series(tmp_path):
    path = write_frames(tmp_path / "v", 3)
    Image.fromarray(numbered_frame(0)).save(path / "other_000001.jpg")
    with pytest.raises(DataError, match="several series"):
        list_frames(str(path))


def test_empty_folder(tmp_path):
    (tmp_path / "v").mkdir()
    with pytest.raises(DataError, match="v: expected frames"):
        list_frames(str(tmp_path / "v"))


def test_frame_that_vanished(tmp_path):
    path = write_frames(tmp_path / "v", 4)
    folder = list_frames(str(path))
    (path / "v_000002.jpg").unlink()
    with pytest.raises(DataError, match="v_000002.jpg"):
        folder.read([0, 1])


def test_truncated_frame(tmp_path):
    path = write_frames(tmp_path / "v", 4)
    file = path / "v_000003.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match="v_000003.jpg: expected a frame"):
        list_frames(str(path)).read([2])


def test_frame_of_another_size(tmp_path):
    path = write_frames(tmp_path / "v", 4)
    Image.fromarray(numbered_frame(2, (32, 48))).save(path / "v_000003.jpg")
    with pytest.raises(
        DataError, match="v_000003.jpg: expected 64 x 48 pixels like the first frame, got 32 x 48"
    ):
        list_frames(str(path)).read([2])


def test_readers_are_plain_data():
    """They travel to loader processes inside the records."""
    import pickle

    for reader in (VideoFile("a.mp4", 30.0, 9, 4, 4), FrameFolder("a/b_", 6, ".jpg", 1, 9, 4, 4)):
        assert pickle.loads(pickle.dumps(reader)) == reader
