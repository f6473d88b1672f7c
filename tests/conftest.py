"""Shared by all tests. pytest puts this folder on ``sys.path``: ``import deterministic`` works everywhere."""

import logging

import pytest
from detectron2.utils.logger import setup_logger
from tiny_run import write_tiny_data


@pytest.fixture(autouse=True)
def stock_logging():
    """Undo what a run does to the loggers: the next test can listen to them, and its logs go nowhere."""
    yield
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "nlnet_d2"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A folder with train.json, train/, val.json and val/ for the runs of ``tiny_run``."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder / "train", images=12)
    write_tiny_data(folder / "val", images=3, seed=1)
    return folder
