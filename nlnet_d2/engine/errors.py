"""The ways a run can end early, with the exit code of each."""

import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.data.errors import DataError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # a run saves and leaves; see hooks.py


class ConfigError(ValueError):
    """A config or command line that cannot work; the message names the key and the remedy."""


class Diverged(FloatingPointError):
    """Training produced a number that is not finite; ``batch`` are the samples of this process that may be
    the reason.
    """

    def __init__(self, message: str, batch: Sequence[Mapping] = ()):
        super().__init__(message)
        self.batch = batch


# An OSError: the disk is full, or a place cannot be written to.
EXIT_CODES = {ConfigError: 2, DataError: 3, CheckpointError: 3, OSError: 3, FloatingPointError: 4}


def exit_code(function: Callable, *args) -> int:
    """Call a function; returns how it ended: 0, one of ``EXIT_CODES``, or 130 for Ctrl-C. Says why on stderr.

    Other exceptions are bugs, and pass.
    """
    try:
        function(*args)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever reads the output has gone: nlnet_d2_command ends quietly
        raise
    except tuple(EXIT_CODES) as error:
        sys.stderr.write(f"error: {error}\n")
        return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    return 0


def is_unexplained(record: logging.LogRecord) -> bool:
    """A filter of logs: all but the tracebacks of errors of which ``exit_code`` says what there is to say."""
    return not (record.exc_info and isinstance(record.exc_info[1], tuple(EXIT_CODES)))
