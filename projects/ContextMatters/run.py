#!/usr/bin/env python
"""Train every variant with every seed, and write the table and the plot.

    python projects/ContextMatters/run.py [--variants V ...] [--seeds S ...] [--output DIR]

Finished runs are kept in results.json and not repeated: delete the file to start over.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import matplotlib
import scenes  # registers the data

from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.errors import exit_code
from nlnet_d2.engine.run import run

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"  # box AP50 in percent, by variant and seed
VARIANTS = {
    "baseline": "no context",
    "se": "squeeze-excitation",
    "gc": "global context",
    "snl": "simplified non-local",
    "nonlocal": "non-local",
}
CHANCE = 100 / len(scenes.COLOURS)  # AP of finding every object and guessing its class


def train(variant: str, seed: int, output: str) -> float:
    """Box AP50 in percent of one run."""
    folder = Path(output) / f"{variant}_{seed}"
    config = ["--config-file", str(HERE / f"{variant}.yaml"), "OUTPUT_DIR", str(folder), "SEED", str(seed)]
    args = argument_parser().parse_args(config)
    return run(load_config(args), args)["bbox"]["AP50"]


def read_results() -> dict[str, dict[str, float]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def summarize(results: dict[str, dict[str, float]]) -> str:
    """The table as Markdown, from AP50 by variant and seed."""
    lines = ["| block | AP50, mean ± standard deviation | runs |", "| --- | --- | --- |"]
    for variant, label in VARIANTS.items():
        values = [value for _, value in sorted(results.get(variant, {}).items())]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            runs = ", ".join(f"{value:.1f}" for value in values)
            lines.append(f"| {label} | {statistics.mean(values):.1f} ± {spread:.1f} | {runs} |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """One dot per run, one bar per mean, and the level of guessing."""
    figure, axes = pyplot.subplots(figsize=(6, 3))
    for i, variant in enumerate(variant for variant in VARIANTS if variant in results):
        values = list(results[variant].values())
        axes.bar(i, statistics.mean(values), color="lightsteelblue")
        axes.plot([i] * len(values), values, "o", color="navy", markersize=4)
    axes.axhline(CHANCE, color="grey", linestyle="--", linewidth=1)
    axes.text(i + 0.55, CHANCE + 1.5, "guessing", color="grey", ha="right")
    labels = [label.replace(" ", "\n") for variant, label in VARIANTS.items() if variant in results]
    axes.set_xticks(range(i + 1), labels, fontsize=8)
    axes.set_ylabel("box AP50 (%)")
    figure.savefig(path, dpi=100, bbox_inches="tight")


def main(args: argparse.Namespace) -> None:
    for seed in args.seeds:
        for variant in args.variants:
            if str(seed) in read_results().get(variant, {}):
                continue
            ap50 = train(variant, seed, args.output)
            results = read_results()  # again: another process may have added its own
            results.setdefault(variant, {})[str(seed)] = ap50
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    (HERE / "results.md").write_text(summarize(read_results()))
    plot(read_results(), HERE / "results.png")
    print(summarize(read_results()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="output/context_matters", help="folder for logs and checkpoints")
    sys.exit(exit_code(main, parser.parse_args()))
