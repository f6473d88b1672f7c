#!/usr/bin/env python
"""Published weights into a native file for one config: ``nlnet-d2 convert``."""

import sys

from nlnet_d2.cli import convert

if __name__ == "__main__":
    sys.exit(convert.main())
