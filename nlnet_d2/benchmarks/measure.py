"""One comparison: first the numbers of both sides, then the time in alternating rounds, then the memory."""

import ctypes
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np
import torch

M_MMAP_THRESHOLD = -3  # of mallopt(3)


class Pair(NamedTuple):
    """Two functions without arguments that return the same; ``prepare`` runs before each call, not measured.

    ``repeat``: how many times its own work the alternative stands for, where it is measured on a part.
    """

    ours: Callable[[], object]
    other: Callable[[], object]
    prepare: Callable[[], object] | None = None
    repeat: float = 1.0


class Goal(NamedTuple):
    """What the project wants to reach: at least this ratio of times, at most this ratio of memory."""

    time: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
        name: what is computed, with its size at the end.
        alternative: what it is compared with.
        build: makes the two functions on a device.
        work: what the cost grows with; ``unit`` says of what.
        tolerance: largest difference, relative to the largest number; None where results cannot be compared.
        goal: on two CPU cores in float32.
    """

    name: str
    alternative: str
    build: Callable[[torch.device], Pair]
    work: int
    unit: str
    tolerance: float | None = 1e-4
    goal: Goal = Goal()


class WrongNumbers(AssertionError):
    """The two sides do not compute the same."""


def measure(case: Case, suite: str, device: torch.device, rounds: int, busy: bool = False) -> dict:
    """One row: ratios above 1 in time and below 1 in memory say that ours is better.

    Args:
        busy: the machine does other work too: take the processor's time, which needs a single thread.

    Raises:
        WrongNumbers: the results differ by more than the tolerance.
    """
    pair = case.build(device)
    gc.collect()  # what the case before left
    sides = [_prepared(call, pair.prepare) for call in pair[:2]]
    difference = None
    if case.tolerance is not None:
        difference = max_difference(sides[0](), sides[1](), case.tolerance, f"{suite}: {case.name}")
    clock = process_time if busy else perf_counter
    seconds = np.array([[timed(c, device, clock, pair.prepare) for c in pair[:2]] for _ in range(rounds)])
    seconds[:, 1] *= pair.repeat
    # Last, since it changes how the process allocates.
    ours_bytes, other_bytes = (peak_bytes(call, device, pair.prepare) for call in pair[:2])
    ours, other = np.median(seconds, axis=0)
    by_round = seconds[:, 1] / seconds[:, 0]
    return {
        "suite": suite,
        "case": case.name,
        "alternative": case.alternative,
        "time_ratio": float(other / ours),
        "memory_ratio": ours_bytes / (other_bytes * pair.repeat) if other_bytes else None,
        "max_abs_diff": difference,
        "time_ratio_spread": [float(by_round.min()), float(by_round.max())],
        "seconds": [float(ours), float(other)],
        "peak_bytes": [ours_bytes, other_bytes],
        "rounds": rounds,
        "work": case.work,
        "unit": case.unit,
        "goal": list(case.goal),
        "device": device.type,
        "busy": busy,
    }


def max_difference(ours: object, other: object, tolerance: float, what: str) -> float:
    """Largest absolute difference over all arrays of two results.

    Raises:
        WrongNumbers: an array differs in shape, or by more than ``tolerance`` times its largest number (and
            the rounding errors of the largest of all: some gradients are zero but for those).
    """
    pairs = list(zip(_arrays(ours), _arrays(other), strict=True))
    rounding = 1e-7 * max(float(np.abs(b).max(initial=0)) for _, b in pairs)
    largest = 0.0
    for a, b in pairs:
        if a.shape != b.shape:
            raise WrongNumbers(f"{what}: shapes {a.shape} and {b.shape}")
        if np.array_equal(a, b, equal_nan=True):
            continue
        difference, magnitude = float(np.abs(a - b).max()), float(np.abs(b).max())
        if not difference <= tolerance * magnitude + rounding:
            raise WrongNumbers(f"{what}: {difference:.2g} apart in numbers of up to {magnitude:.2g}")
        largest = max(largest, difference)
    return largest


def _arrays(result: object) -> Iterator[np.ndarray]:
    """All numbers of a nested result, in order."""
    if isinstance(result, dict):
        result = result.values()
    if isinstance(result, torch.Tensor):
        yield result.detach().cpu().double().numpy()
    elif isinstance(result, (np.ndarray, float, int)):
        yield np.asarray(result, np.float64)
    else:
        for part in result:
            yield from _arrays(part)


def _prepared(call: Callable, prepare: Callable | None) -> Callable[[], list[np.ndarray]]:
    """``call`` after ``prepare``; its result is copied, for the other side may write over it."""

    def run() -> list[np.ndarray]:
        if prepare:
            prepare()
        return [array.copy() for array in _arrays(call())]

    return run


def timed(call: Callable, device: torch.device, clock: Callable, prepare: Callable | None = None) -> float:
    """Seconds of one call; on a GPU between two events."""
    if prepare:
        prepare()
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    start = clock()
    call()
    return clock() - start


def peak_bytes(call: Callable, device: torch.device, prepare: Callable | None = None) -> int | None:
    """How far memory rises during a call, whoever allocates: on a CPU the resident memory of the process.

    None where the system (not Linux) does not tell.
    """
    prepare = prepare or (lambda: None)
    if device.type == "cuda":
        prepare()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    with ThreadPoolExecutor(1) as thread:  # a heap of its own, without the gaps that others have left
        return thread.submit(_rise, call, prepare).result()


def _rise(call: Callable, prepare: Callable) -> int:
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)  # what is freed goes back at once
    for _ in range(2):  # the first time libraries start threads, and make buffers that they keep
        prepare()
        libc.malloc_trim(0)  # or the call would live on what was freed before
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = _resident("VmRSS")
        call()
        risen = _resident("VmHWM") - before
    return risen


def _resident(key: str) -> int:
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(key))
    return int(line.split()[1]) << 10
