"""The command line in this process."""

import sys

import pytest

from nlnet_d2.cli import main


@pytest.fixture
def nlnet(monkeypatch, capsys):
    """Runs ``nlnet-d2 ARGUMENTS``; returns its exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["nlnet-d2"])

    def run(*arguments):
        try:
            code = main([str(word) for word in arguments])
        except SystemExit as left:  # argparse
            code = left.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
