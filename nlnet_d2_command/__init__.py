"""The command ``nlnet-d2``: its table of sub-commands and its doctor.

Both work where torch or detectron2 are missing, and the table at once: only the sub-commands in
``nlnet_d2/cli`` import the package ``nlnet_d2``, and with it those. Exit codes: see
``nlnet_d2/engine/errors.py``.
"""

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train a config, and evaluate it",
    "eval": "evaluate the weights of a config",
    "predict": "what a model finds in pictures, videos, before a webcam",
    "attention": "what a model looks at, as pictures",
    "report": "one HTML page about a run",
    "check": "look for mistakes in data, count and draw them",
    "models": "list the recipes, or show one",
    "analyze": "parameters and FLOPs of a config",
    "benchmark": "speed and memory beside other ways to compute the same",
    "export": "write a detector as TorchScript or ONNX, and compare",
    "convert": "turn published weights into a file for one config",
    "prepare-ava": "check and index data in AVA's format, convert boxes",
    "evaluate-ava": "frame-mAP of a detections file in AVA's format",
    "doctor": "versions, GPU, data: what is missing and how to get it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns its exit code."""
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(_usage())
        return 0
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(COMMANDS)}"
        sys.stderr.write(f"error: nlnet-d2 has no command {command!r}; {hint}\n")
        return 2
    sys.argv = [f"nlnet-d2 {command}", *rest]  # parsers show the first, a run notes them all
    folder = "nlnet_d2_command" if command == "doctor" else "nlnet_d2.cli"
    try:
        module = importlib.import_module(f"{folder}.{command.replace('-', '_')}")
    except ImportError as error:
        sys.stderr.write(f"error: {error}\n`nlnet-d2 doctor` says what is missing, and how to get it\n")
        return 2
    try:
        code = module.main(rest)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        return 128 + signal.SIGPIPE
    return code


def _usage() -> str:
    rows = "\n".join(f"  {command:14} {text}" for command, text in COMMANDS.items())
    return (
        "usage: nlnet-d2 COMMAND [ARGUMENTS]\n\nDetection, segmentation, pose and actions, on Detectron2.\n\n"
        f"{rows}\n\nnlnet-d2 COMMAND --help says more. Exit codes: 0 done, 2 usage or config, 3 data, "
        "checkpoint or disk,\n4 the loss is not finite, 130, 138 and 143 signals."
    )
