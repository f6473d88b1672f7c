#!/usr/bin/env python
"""Speed and memory beside other ways to compute the same: ``nlnet-d2 benchmark``."""

import sys

from nlnet_d2.cli import benchmark

if __name__ == "__main__":
    sys.exit(benchmark.main())
