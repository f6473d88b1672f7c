#!/usr/bin/env python
"""Train a small Mask R-CNN with a non-local block on the embedded data set ``shapes``; show what it finds.

What ``make demo`` runs. It ends with the AP, and leaves a picture of predictions beside the truth:

    python tools/quickstart.py [--output DIR] [KEY VALUE ...]
"""

import argparse
import sys
import time
from pathlib import Path

from tabulate import tabulate

from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.errors import exit_code
from nlnet_d2.engine.run import run
from nlnet_d2.evaluation.gallery import draw_gallery

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart" / "mask_rcnn_nl_shapes.yaml"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/quickstart", help="folder for everything that it writes")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options, such as SEED 1")
    args = parser.parse_args()
    return exit_code(demo, ["--config-file", str(CONFIG), "OUTPUT_DIR", args.output, *args.opts])


def demo(argv: list[str]) -> None:
    start = time.monotonic()
    args = argument_parser().parse_args(argv)
    cfg = load_config(args)
    results = run(cfg, args)
    output = Path(cfg.OUTPUT_DIR)
    predictions = output / "inference" / "coco_instances_results.json"
    draw_gallery(cfg.DATASETS.TEST[0], predictions, output / "predictions.png", min_score=0.6)
    tasks = {"box": results["bbox"], "mask": results["segm"]}
    rows = [[name, *(metrics[key] for key in METRICS)] for name, metrics in tasks.items()]
    print(tabulate(rows, headers=(cfg.DATASETS.TEST[0], *METRICS), floatfmt=".1f"))
    print(f"checkpoint:  {output / 'model_final.pth'}")
    print(f"metrics:     {output / 'metrics.json'}")
    print(f"predictions: {output / 'predictions.png'}, beside the ground truth")
    box, mask = (metrics["AP"] for metrics in tasks.values())
    print(f"demo: box AP {box:.1f}, mask AP {mask:.1f}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
