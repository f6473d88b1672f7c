"""Threads for work that lets go of Python's lock: numpy, OpenCV, Pillow."""

import os
from concurrent.futures import ThreadPoolExecutor


def core_threads() -> ThreadPoolExecutor:
    """A pool with a thread for every core that this process may use, which can be fewer than there are."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count())
