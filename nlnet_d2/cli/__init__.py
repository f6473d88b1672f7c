"""The sub-commands of ``nlnet-d2``: a module each, with its parser and ``main(argv)``."""

from nlnet_d2_command import COMMANDS, main

__all__ = ["COMMANDS", "main"]
