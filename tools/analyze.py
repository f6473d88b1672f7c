#!/usr/bin/env python
"""What a config costs, and the table of all configs: ``nlnet-d2 analyze``."""

import sys

from nlnet_d2.cli import analyze

if __name__ == "__main__":
    sys.exit(analyze.main())
