#!/usr/bin/env python
"""One self-contained HTML page about a run: results, gallery, attention, curves, data, command and config.

    tools/report.py output/quickstart

The config's data sets must be where the config says, as for an evaluation; what is not there is named.
"""

import sys

from nlnet_d2.reporting.report_command import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__))
