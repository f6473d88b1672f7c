import itertools
import multiprocessing

import numpy as np
import pytest
from detectron2.data.samplers import TrainingSampler

from nlnet_d2.engine import loader as loader_module
from nlnet_d2.engine.loader import ReadError, TrainLoader, plan_batches

WIDE = [i % 3 == 0 for i in range(10)]
RECORDS = [{"id": i, "width": 2 if wide else 1, "height": 1} for i, wide in enumerate(WIDE)]


def jitter(record):
    return {**record, "drawn": float(np.random.rand())}


def make_loader(workers=0, grouped=True):
    return TrainLoader(
        RECORDS,
        jitter,
        lambda seed: TrainingSampler(len(RECORDS), seed=seed),
        batch_size=3,
        num_workers=workers,
        group_by_aspect=grouped,
    )


def batches(count, *, start=0, workers=0, seed=4, grouped=True):
    loader = make_loader(workers, grouped)
    loader.seed, loader.start_iter = seed, start
    return list(itertools.islice(loader, count))


def test_plan_keeps_every_index_once_and_shapes_apart():
    plan = list(plan_batches(range(10), WIDE, 2))
    assert plan == [[(1, 1), (2, 2)], [(0, 0), (3, 3)], [(4, 4), (5, 5)], [(7, 7), (8, 8)], [(6, 6), (9, 9)]]


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_is_a_function_of_seed_and_iteration(workers):
    whole = batches(12)
    assert batches(5, start=7, workers=workers) == whole[7:]
    assert batches(12, seed=5) != whole


def test_images_of_a_batch_lie_the_same_way():
    for batch in batches(20):
        assert len({record["width"] > record["height"] for record in batch}) == 1
    assert any(len({r["width"] for r in batch}) == 2 for batch in batches(20, grouped=False))


def test_every_visit_of_an_image_draws_anew():
    drawn = [record["drawn"] for batch in batches(20) for record in batch]
    assert len(set(drawn)) == len(drawn)


def test_loading_does_not_touch_the_global_generators():
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    batches(3)
    assert np.random.rand() == expected


def test_closing_the_stream_ends_its_processes():
    before = set(multiprocessing.active_children())  # of runs whose garbage is not collected yet
    stream = iter(make_loader(workers=2))
    next(stream)
    assert len(set(multiprocessing.active_children()) - before) == 2
    stream.close()
    assert not set(multiprocessing.active_children()) - before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_named(workers):
    def mapper(record):
        if record["file_name"] == "3.jpg":
            raise OSError("image file is truncated")
        return record

    dicts = [{"file_name": f"{i}.jpg", "width": 2, "height": 1} for i in range(6)]
    loader = TrainLoader(dicts, mapper, lambda seed: range(6), batch_size=2, num_workers=workers)
    before, stream = set(multiprocessing.active_children()), iter(loader)
    next(stream)
    with pytest.raises(ReadError, match="sample 3, 3.jpg, cannot be read: image file is truncated"):
        next(stream)
    assert not set(multiprocessing.active_children()) - before, "none lives on"


@pytest.mark.parametrize(
    "error, expected",
    [
        (ConnectionResetError("reset by peer"), ReadError),
        (FileNotFoundError("/tmp/pymp-1/listener-1"), ReadError),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), ReadError),
        (RuntimeError("anything else"), RuntimeError),
        (FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0."), FileNotFoundError),
    ],
)
def test_the_death_of_a_process_is_told_from_other_errors(monkeypatch, error, expected):
    """It may show as a broken connection: tensors are fetched from the process that read them."""

    def one_batch_and_an_error(loader):
        yield next(iter(loader))
        raise error

    monkeypatch.setattr(loader_module, "_without_sigchld", one_batch_and_an_error)
    with pytest.raises(expected) as raised:
        batches(2)
    assert raised.type is expected
    if expected is ReadError:
        assert "was killed" in str(raised.value)
