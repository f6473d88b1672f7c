"""One self-contained HTML page about a run: results, gallery, attention, curves, data, command and config.

nlnet-d2 report output/quickstart

The config's data sets must be where the config says, as for an evaluation; what is not there is named.
"""

from collections.abc import Sequence

from nlnet_d2.reporting import report_command


def main(argv: Sequence[str]) -> int:
    return report_command.main(argv, description=__doc__)
