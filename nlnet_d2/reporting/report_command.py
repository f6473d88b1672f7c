"""The page about a run from the command line: ``tools/report.py`` is this ``main``."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from nlnet_d2.reporting.command_line import new_parser, run_command
from nlnet_d2.reporting.page import PAGE, report

logger = logging.getLogger(__name__)


def argument_parser(description: str | None = None) -> argparse.ArgumentParser:
    """The flags of a report."""
    parser = new_parser(description)
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="of a training or evaluation")
    parser.add_argument("--page", metavar="FILE", help=f"where to write it (default: {PAGE} in the folder)")
    parser.add_argument(
        "--attention", type=int, default=2, metavar="N", help="draw attention in N images (default: 2)"
    )
    return parser


def main(argv: Sequence[str] | None = None, description: str | None = None) -> int:
    """Write the page; returns the exit code (see ``engine/errors.py``)."""
    return run_command(run, argument_parser(description), argv)


def run(args: argparse.Namespace) -> Path:
    """Write the page; returns its path.

    Raises:
        DataError: see ``report``.
    """
    page = report(args.folder, args.page, args.attention)
    logger.info("Wrote %s (%.1f MB)", page, page.stat().st_size / 1e6)
    return page
