import logging
import sys

from detectron2.utils.events import EventStorage

from nlnet_d2.engine.progress import ProgressBar


def step(storage, **scalars):
    storage.put_scalars(total_loss=1.25, lr=0.02, **scalars)


def test_bar_counts_from_where_the_run_resumes(capsys):
    bar = ProgressBar(max_iter=40, batch_size=8)
    with EventStorage(30) as storage:
        step(storage, time=0.5)
        bar.write()
        assert bar.bar.n == 31
        storage.iter = 39
        step(storage, time=0.5)
        bar.write()
        storage.iter = 40  # after_train writes once more
        bar.write()
        bar.close()
    line = capsys.readouterr().err
    assert "40/40" in line and "loss=1.25" in line and "lr=0.02" in line and "img/s=16" in line


def test_bar_of_a_run_that_failed_at_once(capsys):
    bar = ProgressBar(max_iter=40, batch_size=8)
    with EventStorage():
        bar.write()
    bar.close()


def test_bar_stands_for_the_printed_lines_on_the_console_only(capsys, tmp_path):
    logger = logging.getLogger("detectron2")
    logger.setLevel(logging.INFO)
    with open(tmp_path / "log.txt", "w") as file:
        for stream in (sys.stdout, file):
            logger.addHandler(logging.StreamHandler(stream))
        bar = ProgressBar(max_iter=40, batch_size=8)
        for name in ("utils.events", "engine.hooks"):
            logger.getChild(name).info("line of %s", name)
        bar.close()
        logger.getChild("utils.events").info("after the bar")
    assert capsys.readouterr().out.splitlines() == ["line of engine.hooks", "after the bar"]
    assert (tmp_path / "log.txt").read_text().splitlines() == [
        "line of utils.events",
        "line of engine.hooks",
        "after the bar",
    ]
