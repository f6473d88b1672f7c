"""What the command lines of this folder have in common."""

import argparse
import logging
from collections.abc import Callable, Sequence

from nlnet_d2.engine.errors import exit_code


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the description as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run_command(
    run: Callable[[argparse.Namespace], object], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parse, run, and say on stderr what was written; returns the exit code (see ``engine/errors.py``)."""
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("nlnet_d2.reporting").setLevel(logging.INFO)
    return exit_code(run, args)
