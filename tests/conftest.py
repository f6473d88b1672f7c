"""Shared by all tests. pytest puts this folder on ``sys.path``: ``import deterministic`` works everywhere."""

import logging
import os
import random

import numpy as np
import pytest
import torch
from detectron2.utils.logger import setup_logger
from tiny_clips import write_tiny_clips
from tiny_run import write_tiny_data


def pytest_configure():
    """One thread here and, unless the user says otherwise, in processes that tests start: they are small."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def same_numbers():
    """The same random numbers for a test, whether it runs alone or after others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


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


@pytest.fixture(scope="session")
def tiny_clips(tmp_path_factory):
    """A folder with the data of the runs of ``tiny_clips``."""
    folder = tmp_path_factory.mktemp("tiny_clips")
    write_tiny_clips(folder)
    return folder
