"""The progress bar that stands for the printed lines where a person looks at a terminal."""

import logging
import shutil
import sys

import torch
from detectron2.utils.events import EventWriter, get_event_storage
from tqdm import tqdm

LOGGERS = ("detectron2", "fvcore", "nlnet_d2")


def consoles(*loggers: str) -> list[logging.Handler]:
    """The handlers of these loggers that print to standard output."""
    handlers = [handler for name in loggers for handler in logging.getLogger(name).handlers]
    return [handler for handler in handlers if getattr(handler, "stream", None) is sys.stdout]


class ProgressBar(EventWriter):
    """Iterations, rate, time left, loss, learning rate, images per second and GPU memory in one line.

    ``log.txt`` keeps the printed lines.

    Args:
        max_iter: iterations of the whole training.
        batch_size: images per iteration of all processes.
    """

    def __init__(self, max_iter: int, batch_size: int):
        self.max_iter, self.batch_size = max_iter, batch_size
        self.bar: tqdm | None = None
        self._consoles = consoles(*LOGGERS)
        for handler in self._consoles:
            handler.addFilter(self._give_way)

    def write(self) -> None:
        storage = get_event_storage()
        if "lr" not in storage.histories():  # not one iteration was completed
            return
        if self.bar is None:  # only now it is known where the run starts
            size = shutil.get_terminal_size()  # tqdm shows nothing where a terminal has no size (containers)
            self.bar = tqdm(total=self.max_iter, initial=storage.iter, ncols=size.columns, nrows=size.lines)
        numbers = {"loss": storage.history("total_loss").median(20), "lr": storage.history("lr").latest()}
        if "time" in storage.histories():
            numbers["img/s"] = self.batch_size / storage.history("time").median(20)
        if torch.cuda.is_available():
            numbers["GiB"] = torch.cuda.max_memory_allocated() / 2**30
        self.bar.set_postfix(numbers, refresh=False)
        self.bar.update(min(storage.iter + 1, self.max_iter) - self.bar.n)

    def close(self) -> None:
        for handler in self._consoles:
            handler.removeFilter(self._give_way)
        if self.bar is not None:
            self.bar.close()

    def _give_way(self, record: logging.LogRecord) -> bool:
        """Log filter: the printed lines of progress are left to the bar, all others come above it."""
        if record.name.endswith("utils.events"):
            return False
        if self.bar is not None:
            self.bar.clear()
        return True
