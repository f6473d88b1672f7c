#!/usr/bin/env python
"""Train SlowFast and Slow-only with every seed, and write the table and the plot.

    python projects/FastAndSlow/run.py [--models M ...] [--seeds S ...] [--output DIR]

Runs whose metrics are in the folder of outputs are not repeated.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

import matplotlib
import numpy as np

from nlnet_d2.data.datasets.motions import NAMES
from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.errors import exit_code
from nlnet_d2.engine.run import run

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

HERE = Path(__file__).parent
CONFIGS = {
    "Slow-only": HERE / "slow.yaml",
    "SlowFast": HERE.parents[1] / "configs" / "quickstart" / "slowfast_motions.yaml",
}
COLORS = {"Slow-only": "tab:orange", "SlowFast": "tab:blue"}


def train(model: str, seed: int, output: Path) -> dict[str, float]:
    """AP in percent of all classes and their mean, of a run that is kept as ``output/MODEL_SEED``."""
    folder = output / f"{model}_{seed}"
    kept = folder / "ap.json"
    if not kept.exists():
        config = ["--config-file", str(CONFIGS[model]), "OUTPUT_DIR", str(folder), "SEED", str(seed)]
        args = argument_parser().parse_args(config)
        kept.write_text(json.dumps(run(load_config(args), args)["action"], indent=1))
    return json.loads(kept.read_text())


def summarize(results: dict[str, list[dict[str, float]]]) -> str:
    """The table as Markdown: AP of every class, mean over the seeds, by model."""
    lines = [f"| action | {' | '.join(results)} |", "| --- |" + " --- |" * len(results)]
    for title, key in [*((name, f"AP-{name}") for name in NAMES), ("**mean**", "mAP")]:
        cells = [f"{mean(run[key] for run in runs):.1f}" for runs in results.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    spread = [", ".join(f"{run['mAP']:.1f}" for run in runs) for runs in results.values()]
    return "\n".join([*lines, f"| mean, by seed | {' | '.join(spread)} |"]) + "\n"


def plot(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Bars: AP by class and model, mean over the seeds; dots: the seeds."""
    figure, axes = pyplot.subplots(figsize=(8, 3))
    width = 0.8 / len(results)
    for i, (model, runs) in enumerate(results.items()):
        aps = np.array([[run[f"AP-{name}"] for name in NAMES] for run in runs])  # (seeds, classes)
        x = np.arange(len(NAMES)) + (i - (len(results) - 1) / 2) * width
        axes.bar(x, aps.mean(0), width, label=model, color=COLORS[model], alpha=0.6)
        axes.plot(np.tile(x, len(aps)), aps.ravel(), ".", color=COLORS[model], markersize=4)
    axes.set_xticks(range(len(NAMES)), [name.replace(" ", "\n") for name in NAMES])
    axes.set_ylabel("AP at 0.5 (%)")
    axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(path, dpi=100, bbox_inches="tight")


def main(args: argparse.Namespace) -> None:
    output = Path(args.output)
    results = {model: [train(model, seed, output) for seed in args.seeds] for model in args.models}
    table = summarize(results)
    (output / "results.md").write_text(table)
    plot(results, output / "results.png")
    print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="output/fast_and_slow", help="folder for all that it writes")
    sys.exit(exit_code(main, parser.parse_args()))
