"""Speed and memory beside other ways to compute the same, in one process, in alternating rounds.

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
from dataclasses import replace
from pathlib import Path

import torch

from nlnet_d2.benchmarks import backbones, blocks, data, evaluation, report, training
from nlnet_d2.benchmarks.measure import Goal, WrongNumbers, measure
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
    torch.manual_seed(0)
    if args.busy:
        torch.set_num_threads(1)
    for suite in args.suites:
        for case in SUITES[suite](args.quick):
            if args.quick:
                case = replace(case, goal=Goal())
            if args.case in case.name:
                rows.append(measure(case, suite, device, 1 if args.quick else args.rounds, args.busy))
                print(f"{suite}: {' | '.join(report.cells(rows[-1]))}", flush=True)
    return rows


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
