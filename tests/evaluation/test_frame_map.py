"""The metric on cases computed by hand, by a literal loop, and by ActivityNet's own heap."""

import heapq
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from nlnet_d2.data.errors import DataError
from nlnet_d2.evaluation.frame_map import ActionBoxes, frame_map, number_frames
from nlnet_d2.evaluation.protocols import PROTOCOLS, Protocol

PLAIN = Protocol()
UNIT = (0.0, 0.0, 1.0, 1.0)
HALF = (0.0, 0.0, 1.0, 0.5)  # overlaps UNIT by exactly one half
CORNER = (0.0, 0.0, 0.5, 0.5)


def action_boxes(rows) -> ActionBoxes:
    """From (frame, box, action, score) rows."""
    frame, box, action, score = zip(*rows, strict=True) if rows else ((), (), (), ())
    box = np.array(box, float).reshape(-1, 4)
    return ActionBoxes(np.array(frame, int), box, np.arange(len(box)), np.array(action, int), np.array(score))


def evaluate(truth, found, protocol=PLAIN, classes=(1,), **kwargs):
    return frame_map(action_boxes(truth), action_boxes(found), classes, protocol, **kwargs)


def ap_of(order, num_gt: int) -> float:
    """AP of a ranking of true (1) and false (0) positives, by the definition."""
    precision = [sum(order[: i + 1]) / (i + 1) for i in range(len(order))]
    return sum(max(precision[i:]) for i, true in enumerate(order) if true) / num_gt


def test_ap_by_hand():
    truth = [(0, UNIT, 1, 1), (1, UNIT, 1, 1), (2, UNIT, 1, 1)]
    found = [(0, UNIT, 1, 0.9), (1, CORNER, 1, 0.8), (2, UNIT, 1, 0.7)]
    result = evaluate(truth, found)[1]
    assert result.ap == pytest.approx((1 + 2 / 3) / 3)
    assert (result.num_gt, result.num_det, result.num_tp) == (3, 3, 2)
    np.testing.assert_allclose(result.recall, [1 / 3, 2 / 3])
    np.testing.assert_allclose(result.precision, [1, 2 / 3])
    assert not result.tie_sensitive


def test_precision_is_made_monotone():
    truth = [(frame, UNIT, 1, 1) for frame in range(3)]
    found = [(0, CORNER, 1, 0.9), (1, UNIT, 1, 0.8), (2, UNIT, 1, 0.7)]  # precision 0, 1/2, 2/3
    np.testing.assert_allclose(evaluate(truth, found)[1].precision, [2 / 3, 2 / 3])


def test_an_overlap_of_one_half_is_enough():
    assert evaluate([(0, UNIT, 1, 1)], [(0, HALF, 1, 0.9)])[1].num_tp == 1
    assert evaluate([(0, UNIT, 1, 1)], [(0, HALF, 1, 0.9)], threshold=0.51)[1].num_tp == 0


def test_a_box_is_found_once_and_there_is_no_second_choice():
    other = (0.0, 0.0, 1.0, 0.6)  # overlaps UNIT by 0.6, but itself completely
    truth = [(0, UNIT, 1, 1), (0, other, 1, 1)]
    found = [(0, other, 1, 0.9), (0, other, 1, 0.8)]
    assert evaluate(truth, found)[1].num_tp == 1, (
        "the second detection's best box is taken; UNIT is not tried"
    )


def test_classes_and_frames_do_not_mix():
    truth = [(0, UNIT, 1, 1), (0, UNIT, 2, 1), (1, UNIT, 1, 1)]
    found = [(0, UNIT, 2, 0.9), (1, UNIT, 2, 0.8), (1, UNIT, 3, 0.7)]
    results = evaluate(truth, found, classes=(1, 2))
    assert {id_: (r.num_gt, r.num_det, r.num_tp) for id_, r in results.items()} == {
        1: (2, 0, 0),
        2: (1, 2, 1),
    }


def test_a_class_without_ground_truth_is_nan_and_without_detections_zero():
    results = evaluate([(0, UNIT, 1, 1)], [(0, UNIT, 2, 1)], classes=(1, 2))
    assert results[1].ap == 0
    assert np.isnan(results[2].ap)
    assert not results[2].tie_sensitive


def test_one_action_box_may_have_several_rows():
    truth = ActionBoxes(np.array([4]), np.array([UNIT]), np.array([0, 0]), np.array([1, 2]), np.ones(2))
    results = frame_map(truth, truth, (1, 2), PLAIN)
    assert [results[id_].ap for id_ in (1, 2)] == [1.0, 1.0]


# --- what the protocols do differently ---


def test_file_order_against_score_order():
    """The first of two detections of a box is the true one; which one is first, is the protocol."""
    truth = [(0, UNIT, 1, 1)]
    found = [(0, HALF, 1, 0.2), (0, UNIT, 1, 0.9)]
    assert evaluate(truth, found, PROTOCOLS["activitynet"])[1].ap == 1
    assert evaluate(truth, found, PROTOCOLS["mmaction2"])[1].ap == 1
    assert evaluate(truth, found, PROTOCOLS["pyslowfast"])[1].ap == 0.5


@pytest.mark.parametrize("name, counted", [("pyslowfast", 3), ("activitynet", 2), ("mmaction2", 1)])
def test_frames_without_evaluated_ground_truth(name, counted):
    """Frame 0 has ground truth, frame 1 only of a class that is not evaluated, frame 2 none."""
    truth = [(0, UNIT, 1, 1), (1, UNIT, 7, 1)]
    found = [(frame, UNIT, 1, 0.5) for frame in range(3)]
    assert evaluate(truth, found, PROTOCOLS[name])[1].num_det == counted


def test_a_frame_listed_without_boxes_is_scored_by_activitynet():
    nothing = (np.nan,) * 4
    truth = [(0, UNIT, 1, 1), (1, nothing, -1, 1)]
    found = [(1, UNIT, 1, 0.5)]
    assert evaluate(truth, found, PROTOCOLS["activitynet"])[1].num_det == 1


@pytest.mark.parametrize("name, num_gt", [("pyslowfast", 1), ("activitynet", 1), ("mmaction2", 2)])
def test_excluded_frames(name, num_gt):
    truth = [(0, UNIT, 1, 1), (1, UNIT, 1, 1)]
    found = [(0, UNIT, 1, 0.5), (1, UNIT, 1, 0.5)]
    result = evaluate(truth, found, PROTOCOLS[name], excluded=np.array([1]))[1]
    assert (result.num_gt, result.num_det, result.num_tp) == (num_gt, 1, 1)


@pytest.mark.parametrize("name, counted", [("pyslowfast", 1), ("activitynet", 1), ("mmaction2", 2)])
def test_detections_without_area(name, counted):
    truth = [(0, UNIT, 1, 1)]
    found = [(0, UNIT, 1, 0.5), (0, (0.3, 0.3, 0.3, 0.8), 1, 0.9)]
    assert evaluate(truth, found, PROTOCOLS[name])[1].num_det == counted


@pytest.mark.parametrize("name, mean", [("pyslowfast", 0.5), ("activitynet", 0.5), ("mmaction2", 1.0)])
def test_a_class_without_detections(name, mean):
    truth = [(0, UNIT, 1, 1), (0, UNIT, 2, 1)]
    results = evaluate(truth, [(0, UNIT, 1, 0.5)], PROTOCOLS[name], classes=(1, 2))
    assert np.nanmean([r.ap for r in results.values()]) == mean


def heap_of_activitynet(rows, cap: int):
    """The rows that a heap of limited size keeps, fed as the official reader feeds it."""
    heap = []
    for score, action, x1, y1, x2, y2 in rows:
        entry = (score, action, y1, x1, y2, x2)
        if len(heap) < cap:
            heapq.heappush(heap, entry)
        elif score > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return sorted(heap)


@pytest.mark.parametrize("levels", [3, 12, 1000])
def test_cap_keeps_what_the_official_heap_keeps(levels):
    """Ties included: ``levels`` different scores for 40 rows of which 10 are kept."""
    rng = np.random.default_rng(levels)
    frames = np.repeat(np.arange(30), 40)
    xy = rng.integers(0, 3, (len(frames), 2)) / 4
    boxes = np.hstack([xy, xy + 0.25])
    actions = rng.integers(1, 5, len(frames))
    scores = rng.integers(0, levels, len(frames)) / levels
    found = list(zip(frames, map(tuple, boxes), actions, scores, strict=True))
    truth = [(frame, UNIT, 1, 1) for frame in range(30)]

    kept = 0
    for frame in range(30):
        on_frame = [(score, action, *box) for f, box, action, score in found if f == frame]
        kept_rows = heap_of_activitynet(on_frame, 10)
        expected = np.bincount([row[1] for row in kept_rows], minlength=5)
        alone = [row for row in found if row[0] == frame]
        results = evaluate(truth, alone, Protocol(cap=10), classes=(1, 2, 3, 4))
        assert [r.num_det for r in results.values()] == expected[1:].tolist()
        kept += len(kept_rows)
    together = evaluate(truth, found, Protocol(cap=10), classes=(1, 2, 3, 4))
    assert sum(r.num_det for r in together.values()) == kept


def test_cap_does_not_count_classes_that_are_not_evaluated():
    truth = [(0, UNIT, 1, 1)]
    found = [(0, UNIT, 9, 0.9), (0, UNIT, 1, 0.1)]
    assert evaluate(truth, found, Protocol(cap=1))[1].num_tp == 1


def test_cap_holds_on_every_one_of_many_frames():
    found = [(frame, UNIT, 1, score) for frame in range(1200) for score in (0.1, 0.9, 0.5)]
    assert evaluate([(0, UNIT, 1, 1)], found, Protocol(cap=2))[1].num_det == 2, "only frame 0 is scored"
    assert evaluate([(0, UNIT, 1, 1)], found, Protocol(cap=2, frames="all"))[1].num_det == 2400


# --- ties and order ---


def test_bounds_are_those_of_all_orders_of_equal_scores():
    scores = [0.9, 0.5, 0.5, 0.5, 0.5, 0.1]
    hits = [0, 1, 0, 1, 0, 1]
    truth = [(frame, UNIT, 1, 1) for frame in range(6)]
    found = [(i, UNIT if hit else CORNER, 1, s) for i, (s, hit) in enumerate(zip(scores, hits, strict=True))]
    result = evaluate(truth, found)[1]
    possible = [ap_of([0, *middle, 1], 6) for middle in permutations(hits[1:5])]
    assert result.ap_fp_first == pytest.approx(min(possible))
    assert result.ap_tp_first == pytest.approx(max(possible))
    assert result.ap == pytest.approx(ap_of([0, 0, 1, 0, 1, 1], 6)), "later rows rank first"
    assert result.tie_sensitive


def naive(truth, found, protocol: Protocol, class_id: int) -> float:
    """The definition, one detection after the other."""
    if protocol.match_by_score:
        found = sorted(found, key=lambda row: -row[3])
    taken, ranked = set(), []
    for frame, box, action, score in found:
        boxes = [(i, t[1]) for i, t in enumerate(truth) if (t[0], t[2]) == (frame, class_id)]
        if action != class_id or (protocol.frames == "listed" and frame not in {t[0] for t in truth}):
            continue
        best = max(boxes, key=lambda b: overlap(b[1], box), default=None)
        hit = best is not None and overlap(best[1], box) >= 0.5 and best[0] not in taken
        taken |= {best[0]} if hit else set()
        ranked.append((score, hit))
    order = [hit for _, hit in sorted(ranked, reverse=True)]
    return ap_of(order, sum(t[2] == class_id for t in truth))


def overlap(a, b) -> float:
    width, height = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(area) - width * height)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("protocol", [PLAIN, PROTOCOLS["pyslowfast"]], ids=["by score", "by file"])
def test_equal_to_a_literal_loop(seed, protocol):
    rng = np.random.default_rng(seed)

    def rows(count):
        xy = rng.random((count, 2)) * 0.3
        boxes = np.hstack([xy, xy + 0.4 + rng.random((count, 2)) * 0.2])
        columns = rng.integers(0, 12, count), map(tuple, boxes), rng.integers(1, 4, count), rng.random(count)
        return list(zip(*columns, strict=True))

    truth, found = rows(40), rows(150)
    results = evaluate(truth, found, protocol, classes=(1, 2, 3))
    for class_id, result in results.items():
        assert result.ap == pytest.approx(naive(truth, found, protocol, class_id), abs=1e-12)


def test_frames_of_a_file_may_come_in_any_order():
    rng = np.random.default_rng(0)
    truth = [(frame, UNIT, 1, 1) for frame in range(20)]
    found = [(frame, UNIT if rng.random() < 0.5 else CORNER, 1, rng.random()) for frame in range(20)]
    shuffled = [found[i] for i in rng.permutation(20)]
    assert evaluate(truth, found)[1].ap == evaluate(truth, shuffled)[1].ap


@pytest.mark.parametrize("name", PROTOCOLS)
def test_boxes_of_a_frame_may_lie_apart_in_the_file(name):
    """Frame by frame, equal scores rank as before, and the rows of a box stay its own."""
    rng = np.random.default_rng(0)
    frame, row_box = rng.integers(0, 9, 200), np.repeat(np.arange(200), 3)
    corner = rng.random((200, 2)) / 10
    rows = rng.integers(1, 4, 600), rng.integers(0, 5, 600) / 5
    apart = ActionBoxes(frame, np.hstack([corner, corner + 0.5]), row_box, *rows)
    order, row_order = np.argsort(frame, kind="stable"), np.argsort(frame[row_box], kind="stable")
    columns = [column[row_order] for column in (apart.action, apart.score)]
    together = ActionBoxes(frame[order], apart.box[order], row_box, *columns)
    results = [frame_map(together, found, (1, 2, 3), PROTOCOLS[name]) for found in (apart, together)]
    assert 0 < results[1][1].ap < 1 and results[1][1].tie_sensitive
    np.testing.assert_equal(*[{id_: vars(r) for id_, r in result.items()} for result in results])


@pytest.mark.parametrize("of, name", [(0, "the ground truth"), (1, "the detections")])
def test_rows_must_be_in_the_order_of_their_boxes(of, name):
    boxes = action_boxes([(frame, UNIT, 1, 0.5) for frame in range(4)])
    both = [boxes, boxes]
    both[of] = replace(boxes, row_box=np.array([0, 2, 1, 3]))
    with pytest.raises(DataError, match=f"{name}: .* got row 2 of box 1 after one of box 2; sort row_box"):
        frame_map(*both, (1,), PLAIN)


def test_float32_rounds_scores_as_mmaction2_does():
    truth = [(0, UNIT, 1, 1), (1, UNIT, 1, 1)]
    found = [(0, UNIT, 1, 0.5), (1, CORNER, 1, 0.5 + 1e-12)]
    single = replace(PLAIN, precision=np.float32)
    assert not evaluate(truth, found)[1].tie_sensitive
    assert evaluate(truth, found, single)[1].tie_sensitive


def test_no_rows_at_all():
    empty = evaluate([], [], PROTOCOLS["activitynet"])[1]
    assert np.isnan(empty.ap)
    assert (empty.num_gt, empty.num_det) == (0, 0)


def test_number_frames_by_first_appearance():
    first, second = number_frames(np.array([7, 7, 3, 7]), np.array([5, 3]))
    assert (first.tolist(), second.tolist()) == ([0, 0, 1, 0], [2, 1])
