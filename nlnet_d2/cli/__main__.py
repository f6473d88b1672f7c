"""``python -m nlnet_d2.cli``, for launchers such as torchrun that take a module."""

import sys

from nlnet_d2.cli import main

if __name__ == "__main__":
    sys.exit(main())
