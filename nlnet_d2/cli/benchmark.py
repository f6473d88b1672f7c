"""Speed and memory beside other ways to compute the same: ``tools/benchmark.py`` of a checkout.

The benchmarks compare with literal forms and other libraries; they are no part of the wheel.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"


def main(argv: Sequence[str]) -> int:
    if not TOOL.is_file():
        sys.stderr.write(
            "error: the benchmarks are part of the repository, not of the wheel: run it from there\n"
        )
        return 2
    return subprocess.call([sys.executable, str(TOOL), *argv])
