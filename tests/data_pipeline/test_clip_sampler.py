"""Frame numbers against those of PySlowFast's AVA loader."""

import pytest

from nlnet_d2.data.clip_sampler import clip_frames, key_frame_index, key_position

LENGTH = 27_030  # of a cut AVA video


def test_key_frame_of_ava():
    assert key_frame_index(902, 900, 30) == 60
    assert key_frame_index(1798, 900, 30) == 26_940


@pytest.mark.parametrize(
    "second, start, fps, frame", [(0.5, 0, 25, 12), (12.48, 0, 25, 312), (10, 4, 23.976, 144)]
)
def test_key_frame_of_other_rates(second, start, fps, frame):
    assert key_frame_index(second, start, fps) == frame


@pytest.mark.parametrize(
    "num_frames, stride, offsets",
    [
        (32, 2, range(-32, 32, 2)),  # SlowFast 8x8
        (64, 2, range(-64, 64, 2)),
        (4, 16, [-32, -16, 0, 16]),  # Slow 4x16
        (5, 3, [-7, -4, -1, 2, 5]),
        (1, 1, [0]),
    ],
)
def test_clip_inside(num_frames, stride, offsets):
    frames = clip_frames(5000, num_frames, stride, LENGTH)
    assert frames == [5000 + offset for offset in offsets]
    assert len(frames) == num_frames


def test_key_frame_is_where_it_is_said_to_be():
    for num_frames in (4, 8, 32):
        assert clip_frames(5000, num_frames, 2, LENGTH)[key_position(num_frames)] == 5000


def test_borders_repeat_the_first_and_last_frame():
    assert clip_frames(0, 8, 2, 100) == [0, 0, 0, 0, 0, 2, 4, 6]
    assert clip_frames(99, 8, 2, 100) == [91, 93, 95, 97, 99, 99, 99, 99]
    assert clip_frames(1, 8, 4, 3) == [0, 0, 0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("key_frame", [-1, 100])
def test_key_frame_outside(key_frame):
    with pytest.raises(ValueError, match=f"key frame {key_frame} is outside"):
        clip_frames(key_frame, 8, 2, 100)


def test_numbers_must_be_positive():
    with pytest.raises(ValueError, match="stride 0"):
        clip_frames(5, 8, 0, 100)
