"""Which frames make a clip: integers only (SlowFast, arXiv 1812.03982; numbers of PySlowFast's AVA loader).

Frame k of a video is what is shown at ``k / fps`` seconds after its beginning; AVA's file
``..._000001.jpg`` is frame 0.
"""


def key_frame_index(second: float, start_second: float, fps: float) -> int:
    """The frame that an annotation speaks of.

    Args:
        second: time of the annotation.
        start_second: time at which the file begins (AVA's are cut from second 900 of the movie).
        fps: frames per second.
    """
    return round((second - start_second) * fps)


def clip_frames(key_frame: int, num_frames: int, stride: int, length: int) -> list[int]:
    """Frames of the clip around a key frame: ``num_frames`` of them, ``stride`` apart.

    They begin ``num_frames * stride // 2`` frames before the key frame, as in PySlowFast. So the key frame is
    at ``key_position(num_frames)`` where ``num_frames`` is even or ``stride`` is 1; otherwise the clip may
    step over it. Beyond the borders of the video its first or last frame is repeated.

    Args:
        length: number of frames of the video.

    Raises:
        ValueError: the key frame is not in the video, or a number is below 1.
    """
    if min(num_frames, stride, length) < 1:
        raise ValueError(
            f"expected positive numbers, got {num_frames} frames, stride {stride}, length {length}"
        )
    if not 0 <= key_frame < length:
        raise ValueError(
            f"key frame {key_frame} is outside the video, which has the frames 0 to {length - 1}"
        )
    first = key_frame - num_frames * stride // 2
    return [min(max(first + i * stride, 0), length - 1) for i in range(num_frames)]


def key_position(num_frames: int) -> int:
    """Position of the key frame in a clip: the middle, or the first of the second half of an even number."""
    return num_frames // 2
