#!/usr/bin/env python
"""Frame-mAP of a detections CSV in AVA's format: ``nlnet-d2 evaluate-ava``."""

import sys

from nlnet_d2.cli import evaluate_ava

if __name__ == "__main__":
    sys.exit(evaluate_ava.main())
