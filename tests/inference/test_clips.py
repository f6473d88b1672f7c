"""Clips cut from a stream are those that random access gives, and little is held for them."""

import weakref

import numpy as np
import pytest
from small_videos import number_of, write_video

from nlnet_d2.data.clip_sampler import clip_frames
from nlnet_d2.data.errors import DataError
from nlnet_d2.data.frame_reader import VideoFile
from nlnet_d2.inference.clips import KeyFrame, PeopleFile, cut_clips, regular_key_frames

SECONDS = 2.4


def same(image: np.ndarray) -> np.ndarray:
    return image.copy()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Frame rate -> file."""
    folder = tmp_path_factory.mktemp("videos")
    return {
        fps: write_video(folder / f"{fps}.mp4", [i / fps for i in range(round(SECONDS * fps))])
        for fps in (12, 30, 50)
    }


@pytest.mark.parametrize("fps", [12, 30, 50])
@pytest.mark.parametrize(("num_frames", "stride"), [(32, 2), (4, 16), (5, 3), (1, 4), (1, 1)])
def test_as_by_random_access(videos, fps, num_frames, stride):
    video = VideoFile.open(str(videos[fps]), 30)
    clips = list(
        cut_clips(video.stream(), regular_key_frames(0.4, 30), num_frames, stride, lambda image: image[::2])
    )
    assert [clip.key.second for clip in clips] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2.0])
    for clip in clips:
        expected = video.read(clip_frames(clip.key.slot, num_frames, stride, video.num_frames))
        assert [number_of(x) for x in clip.frames] == [number_of(x) for x in expected]
        assert clip.frames.shape == (num_frames, 24, 64, 3)
        assert number_of(clip.image) == number_of(video.read([clip.key.slot])[0])
        assert clip.image.shape == (48, 64, 3)


def test_two_key_frames_in_one_slot():
    frames = [(k, np.full((2, 2, 3), k, np.uint8)) for k in range(8)]
    keys = [KeyFrame(3, 0.30), KeyFrame(3, 0.31), KeyFrame(7, 0.7), KeyFrame(9, 0.9)]
    clips = list(cut_clips(frames, keys, 4, 1, same))
    assert [clip.key.second for clip in clips] == [0.30, 0.31, 0.7], "the last one is behind the end"
    assert clips[0].frames[:, 0, 0, 0].tolist() == clips[1].frames[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert clips[2].frames[:, 0, 0, 0].tolist() == [5, 6, 7, 7]


def test_only_frames_of_clips_are_resized():
    seen = []

    def resize(image):
        seen.append(int(image[0, 0, 0]))
        return image

    frames = [(k, np.full((2, 2, 3), k, np.uint8)) for k in range(50)]
    list(cut_clips(frames, regular_key_frames(20, 1), 3, 4, resize))
    assert seen == [0, 2, *(14, 18, 22), *(34, 38, 42)]


@pytest.mark.parametrize("length", [200, 800])
def test_no_more_is_held_than_a_clip_spans(length):
    alive, most = weakref.WeakSet(), 0

    class Frame(np.ndarray):
        """An array that a WeakSet takes."""

        __hash__ = object.__hash__

    def frames():
        nonlocal most
        for k in range(length):
            image = np.zeros((2, 2, 3), np.uint8).view(Frame)
            alive.add(image)
            most = max(most, len(alive))
            yield k, image

    clips = cut_clips(frames(), regular_key_frames(1, 30), 8, 4, same)
    assert sum(1 for _ in clips) == -(-length // 30)
    assert most <= 5, "the frame in hand, the one before it, and key frames that wait for their clip"


ROWS = """\
film,0.5,0.1,0.1,0.5,0.5,,0.9
film,0.5,0.1,0.1,0.5,0.5,12,0.95
film,0.5,0.2,0.2,0.6,0.6,,0.3
film,1,0.2,0.2,0.6,0.6,,0.3
film,1.5
other,0.25,0,0,1,1,,1
"""


def people_file(path, text=ROWS, min_score=0.8):
    path.write_text(text)
    return PeopleFile(path, min_score)


def test_people_of_a_file(tmp_path):
    keys = people_file(tmp_path / "people.csv").key_frames("film", 30, 60)
    assert [(key.slot, key.second, len(key.boxes)) for key in keys] == [
        (15, 0.5, 1),
        (30, 1.0, 0),
        (45, 1.5, 0),
    ]
    assert keys[0].boxes.tolist() == [pytest.approx([0.1, 0.1, 0.5, 0.5])]
    (other,) = people_file(tmp_path / "people.csv").key_frames("other", 30, 60)
    assert other.boxes.tolist() == [[0, 0, 1, 1]]


def test_people_of_other_videos(tmp_path):
    with pytest.raises(
        DataError, match="people.csv: expected rows of video 'mine', got those of film, other"
    ):
        people_file(tmp_path / "people.csv").key_frames("mine", 30, 60)


def test_people_behind_the_end(tmp_path):
    with pytest.raises(DataError, match=r"people.csv: expected seconds up to 1.00.* 'film', got 0001"):
        people_file(tmp_path / "people.csv").key_frames("film", 30, 30)


def test_people_without_area(tmp_path):
    with pytest.raises(DataError, match=r"people.csv:2: .*x1 < x2"):
        people_file(tmp_path / "people.csv", "a,1,0,0,1,1,,1\na,2,0.5,0.5,0.4,0.6,,1\n")
