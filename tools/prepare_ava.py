#!/usr/bin/env python
"""Check, index and convert data in AVA's format: ``nlnet-d2 prepare-ava``."""

import sys

from nlnet_d2.cli import prepare_ava

if __name__ == "__main__":
    sys.exit(prepare_ava.main())
