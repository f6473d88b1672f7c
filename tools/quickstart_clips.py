#!/usr/bin/env python
"""Train a small SlowFast on the embedded clips ``motions`` and evaluate it by AVA's official protocol.

What ``make demo-ava`` runs. It ends with the mAP over all actions:

    python tools/quickstart_clips.py [--output DIR] [KEY VALUE ...]
"""

import argparse
import sys
import time
from pathlib import Path

from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.errors import exit_code
from nlnet_d2.engine.run import run
from nlnet_d2.evaluation.ava import DETECTIONS_FILE

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart" / "slowfast_motions.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/quickstart_clips", help="folder for all that it writes")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options, such as SEED 1")
    args = parser.parse_args()
    return exit_code(demo, ["--config-file", str(CONFIG), "OUTPUT_DIR", args.output, *args.opts])


def demo(argv: list[str]) -> None:
    start = time.monotonic()
    args = argument_parser().parse_args(argv)
    cfg = load_config(args)
    mean_ap = run(cfg, args)["action"]["mAP"]  # the table of all classes is in the log
    print(f"checkpoint: {Path(cfg.OUTPUT_DIR, 'model_final.pth')}")
    print(f"metrics:    {Path(cfg.OUTPUT_DIR, 'metrics.json')}")
    print(f"detections: {Path(cfg.OUTPUT_DIR, 'inference', DETECTIONS_FILE)}, as AVA's challenge takes them")
    print(f"demo-ava: mAP {mean_ap:.1f}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
