"""Rows of measurements as JSON, as tables, as a plot."""

import json
import os
import platform
from collections import defaultdict
from pathlib import Path

import torch
from tabulate import tabulate

KEY = ("suite", "case", "alternative", "device", "busy")
COLUMNS = ("case", "alternative", "time", "spread", "memory", "difference", "ours", "goal")
EXPLANATION = """\
`time`: the alternative's median time over ours, higher is better; `spread`: lowest and highest of the rounds.
Each row has a process of its own, since what was freed before decides how much new memory costs.
`memory`: our peak over the alternative's, lower is better: on a CPU the rise of the process's resident memory
during one call (VmHWM, reset before it; the second call of a thread with a heap of its own, so that neither
gaps nor first buffers count), on a GPU that of the allocator. `difference`: largest absolute difference of
the results, gradients included (sums over all positions, so large numbers); one above the tolerance, of
networks 0.0001 of the tensor's largest number, would have been refused.
`ours`: our median time and peak. `goal`: time on two cores, memory; a missed one is in bold. `--busy`: the
machine did other work too, so times are those of the processor, on one thread.
"""


def merge(path: Path, rows: list[dict]) -> list[dict]:
    """The rows of a file, if there is one, with those measured again in place of the old."""
    old = json.loads(path.read_text()) if path.exists() else []
    merged = {tuple(row[k] for k in KEY): row for row in [*old, *rows]}
    return list(merged.values())


def cells(row: dict) -> tuple[str, ...]:
    """A row as text, in the order of COLUMNS."""
    memory, difference = row["memory_ratio"], row["max_abs_diff"]
    low, high = row["time_ratio_spread"]
    ours_bytes = row["peak_bytes"][0]
    time_goal, memory_goal = row["goal"]
    goals = []
    if time_goal:
        goals.append(_goal(f"≥ {time_goal:g}", row["time_ratio"] >= time_goal))
    if memory_goal:
        goals.append(_goal(f"≤ {memory_goal:g}", memory is not None and memory <= memory_goal))
    return (
        row["case"],
        row["alternative"],
        f"{row['time_ratio']:.2f}",
        f"{low:.2f} – {high:.2f}",
        "-" if memory is None else f"{memory:.3f}",
        "-" if difference is None else f"{difference:.1e}",
        _seconds(row["seconds"][0]) + ("" if ours_bytes is None else f", {ours_bytes / 2**20:.0f} MiB"),
        ", ".join(goals),
    )


def _goal(text: str, reached: bool) -> str:
    return text if reached else f"**{text}**"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def table(rows: list[dict], **style) -> str:
    """The rows as ``tabulate`` shows them in a style."""
    return tabulate([cells(row) for row in rows], COLUMNS, disable_numparse=True, **style)


def markdown(rows: list[dict]) -> str:
    """A page: the machine, and a table per suite with its command."""
    parts = [f"# {machine()}\n", EXPLANATION]
    by_suite = defaultdict(list)
    for row in rows:
        by_suite[row["suite"], row["device"], row["busy"]].append(row)
    for (suite, device, busy), its in by_suite.items():
        flag = ("" if device == "cpu" else f" --device {device}") + (" --busy" if busy else "")
        rounds = ", ".join(sorted({str(row["rounds"]) for row in its}))
        parts.append(f"## {suite}\n\n`nlnet-d2 benchmark {suite}{flag}`, {rounds} alternating rounds\n")
        parts.append(table(its, tablefmt="github", stralign=None) + "\n")
    if not any(row["device"] == "cuda" for row in rows):
        parts.append("## GPU\n\nNot run on this machine (`--device cuda`).\n")
    return "\n".join(parts)


def machine() -> str:
    """Processor, cores, threads, memory and versions of this machine."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        processor = f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{processor}, {capability}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}, "
        f"{gigabytes:.0f} GiB, torch {torch.__version__}"
    )


def plot(rows: list[dict], path: Path) -> None:
    """How time and memory grow with the work, for the cases that were measured at several sizes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    families = defaultdict(list)
    for row in rows:
        families[row["suite"], row["case"].rpartition(", ")[0], row["alternative"]].append(row)
    families = {key: its for key, its in families.items() if len({row["work"] for row in its}) > 1}
    if not families:
        raise ValueError("nothing to plot: no case was measured at two sizes")
    figure, axes = pyplot.subplots(len(families), 2, figsize=(9, 3 * len(families)), squeeze=False)
    for (ax_time, ax_memory), ((_, name, alternative), its) in zip(axes, families.items(), strict=True):
        its = sorted(its, key=lambda row: row["work"])
        for axis, key, unit in ((ax_time, "seconds", "s"), (ax_memory, "peak_bytes", "bytes")):
            for side, label in enumerate(("ours", alternative)):
                axis.loglog([r["work"] for r in its], [r[key][side] for r in its], "o-", label=label)
            axis.set(xlabel=its[0]["unit"], ylabel=unit, title=name)
            axis.legend()
    figure.tight_layout()
    figure.savefig(path)
