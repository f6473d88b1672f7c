"""Evaluate: ``train --eval-only``."""

from collections.abc import Sequence

from nlnet_d2.engine.run import main as train


def main(argv: Sequence[str]) -> int:
    return train(["--eval-only", *argv])
