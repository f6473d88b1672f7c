"""Speed and memory beside other ways to compute the same, in alternating rounds, each case in a new process.

nlnet-d2 benchmark blocks
nlnet-d2 benchmark vit mvit --case "512 px" --rounds 7 --json out.json --plot out.png
nlnet-d2 benchmark slowfast --device cuda
nlnet-d2 benchmark blocks --json docs/benchmarks/M.json --markdown docs/benchmarks/M.md

A case whose results differ from the alternative's by more than rounding errors ends the run. Rows of FILE
that are measured again are replaced, the others stay: a long run can be cut into pieces.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from nlnet_d2.benchmarks import backbones, blocks, data, evaluation, report, training
from nlnet_d2.benchmarks.measure import Case, Goal, WrongNumbers, measure
from nlnet_d2.engine.errors import ConfigError, exit_code

SUITES = {
    "blocks": blocks.cases,
    "vit": backbones.vit,
    "mvit": backbones.mvit,
    "slowfast": backbones.slowfast,
    "ava-eval": evaluation.ava,
    "coco-eval": evaluation.coco,
    "data": data.cases,
    "train-step": training.cases,
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="+", choices=SUITES, metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument(
        "--busy", action="store_true", help="the machine does other work: one thread, its processor time"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round: does everything run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write or update the rows")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write all rows as a page")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw cost against work (needs matplotlib)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of the cases asked for, printed as they come."""
    rows, device = [], torch.device(args.device)
    for suite in args.suites:
        for case in SUITES[suite](args.quick):
            if args.case not in case.name:
                continue
            if args.quick:
                row = measure_alone(replace(case, goal=Goal()), suite, device, 1, args.busy)
            else:
                with ProcessPoolExecutor(1, get_context("spawn")) as new_process:
                    row = new_process.submit(
                        measure_alone, case, suite, device, args.rounds, args.busy
                    ).result()
            rows.append(row)
            print(f"{suite}: {' | '.join(report.cells(row))}", flush=True)
    return rows


def measure_alone(case: Case, suite: str, device: torch.device, rounds: int, busy: bool) -> dict:
    """``measure`` as the first in its process: what was freed before decides how costly new memory is."""
    torch.manual_seed(0)
    if busy:
        torch.set_num_threads(1)
    return measure(case, suite, device, rounds, busy)


def compare(args: argparse.Namespace) -> None:
    """Measure and write; ends the process where two sides do not compute the same.

    Raises:
        ConfigError: no case has the text of ``--case`` in its name.
    """
    try:
        rows = run(args)
    except WrongNumbers as error:
        sys.exit(f"refused: {error}")
    if not rows:
        raise ConfigError(f"no case of {' '.join(args.suites)} has {args.case!r} in its name")
    if args.json:
        rows = report.merge(args.json, rows)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(report.table(rows))
    if args.markdown:
        args.markdown.write_text(report.markdown(rows))
    if args.plot:
        report.plot(rows, args.plot)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(compare, parse_arguments(argv))
