"""What is right, confused, missed and false."""

import numpy as np
import pytest

from nlnet_d2.reporting.matching import Objects, confusion, match

BOX, FAR = [10, 10, 20, 20], [60, 60, 20, 20]


def objects(*rows, crowd=None) -> Objects:
    """Rows (class, box) or (class, box, score)."""
    return Objects.of([(*row, 0.9)[:3] for row in rows], crowd)


def test_right_and_missed_and_false():
    verdict = match(objects((0, BOX), (1, FAR)), objects((0, [11, 11, 20, 20]), (0, [100, 0, 9, 9])))
    assert verdict.right == [(0, 0)]
    assert verdict.overlaps == [pytest.approx(19**2 / (2 * 400 - 19**2))]
    assert verdict.missed == [1]
    assert verdict.false == [1]
    assert verdict.quality[0] == pytest.approx(2 / (2 + 2))


def test_confused():
    verdict = match(objects((0, BOX)), objects((1, BOX)))
    assert verdict.confused == [(0, 0)]
    assert (verdict.right, verdict.missed, verdict.false) == ([], [], [])
    assert verdict.quality == (0, 0)


def test_the_right_class_comes_before_the_larger_overlap():
    verdict = match(objects((0, BOX)), objects((1, BOX), (0, [12, 10, 20, 20])))
    assert verdict.right == [(0, 1)]
    assert verdict.false == [0]


def test_one_to_one():
    verdict = match(objects((0, BOX)), objects((0, [11, 10, 20, 20]), (0, BOX)))
    assert verdict.right == [(0, 1)]
    assert verdict.false == [0]


def test_low_scores_and_small_overlaps_do_not_count():
    verdict = match(objects((0, BOX), (0, FAR)), objects((0, BOX, 0.4), (0, [72, 60, 20, 20])))
    assert verdict.missed == [0, 1]
    assert verdict.false == [1]


def test_crowds_are_neither_missed_nor_is_anything_false_in_them():
    verdict = match(objects((0, [0, 0, 50, 50]), crowd=[True]), objects((0, BOX), (0, FAR)))
    assert verdict.missed == []
    assert verdict.false == [1]


def test_nothing_at_all():
    nothing = objects()
    assert match(nothing, nothing).quality == (1.0, 0.0)
    assert match(objects((0, BOX)), nothing).missed == [0]
    assert match(nothing, objects((0, BOX))).false == [0]


def test_confusion():
    images = [
        (objects((0, BOX), (1, FAR)), objects((0, BOX), (0, FAR))),
        (objects((1, BOX)), objects((1, FAR))),
    ]
    matrix = confusion(((t, f, match(t, f)) for t, f in images), num_classes=2)
    expected = np.zeros((3, 3), int)
    expected[0, 0] = expected[1, 0] = 1
    expected[1, 2] = 1  # missed
    expected[2, 1] = 1  # false
    assert (matrix == expected).all()
