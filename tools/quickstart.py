#!/usr/bin/env python
"""Train a small model on an embedded data set, from scratch, and show what it learns.

    python tools/quickstart.py [--clips] [--output DIR] [KEY VALUE ...]

What ``make demo`` runs: a Mask R-CNN with a non-local block on the images ``shapes``; it ends with the AP,
and leaves a picture of predictions beside the truth. With ``--clips``, ``make demo-ava``: a SlowFast on the
videos ``motions``; it ends with the frame-mAP of AVA's official protocol.
"""

import argparse
import sys
import time
from pathlib import Path

from detectron2.config import CfgNode
from tabulate import tabulate

from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.errors import exit_code
from nlnet_d2.engine.run import run
from nlnet_d2.evaluation.ava import DETECTIONS_FILE
from nlnet_d2.evaluation.gallery import draw_gallery

CONFIGS = Path(__file__).parents[1] / "configs" / "quickstart"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", action="store_true", help="a SlowFast on videos")
    parser.add_argument(
        "--output", help="folder for everything that it writes, instead of output/quickstart..."
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options, such as SEED 1")
    return exit_code(demo, parser.parse_args())


def demo(args: argparse.Namespace) -> None:
    start = time.monotonic()
    config = CONFIGS / ("slowfast_motions.yaml" if args.clips else "mask_rcnn_nl_shapes.yaml")
    output = ["OUTPUT_DIR", args.output] if args.output else []
    run_args = argument_parser().parse_args(["--config-file", str(config), *output, *args.opts])
    cfg = load_config(run_args)
    results = run(cfg, run_args)
    line = report_clips(cfg, results) if args.clips else report_images(cfg, results)
    print(f"checkpoint:  {Path(cfg.OUTPUT_DIR, 'model_final.pth')}")
    print(f"metrics:     {Path(cfg.OUTPUT_DIR, 'metrics.json')}")
    print(f"{line}, {time.monotonic() - start:.0f} s")


def report_images(cfg: CfgNode, results: dict) -> str:
    """Print the table of APs and draw the pictures; returns the beginning of the last line."""
    output = Path(cfg.OUTPUT_DIR)
    predictions = output / "inference" / "coco_instances_results.json"
    draw_gallery(cfg.DATASETS.TEST[0], predictions, output / "predictions.png", min_score=0.6)
    tasks = {"box": results["bbox"], "mask": results["segm"]}
    rows = [[name, *(metrics[key] for key in METRICS)] for name, metrics in tasks.items()]
    print(tabulate(rows, headers=(cfg.DATASETS.TEST[0], *METRICS), floatfmt=".1f"))
    print(f"predictions: {output / 'predictions.png'}, beside the ground truth")
    box, mask = (metrics["AP"] for metrics in tasks.values())
    return f"demo: box AP {box:.1f}, mask AP {mask:.1f}"


def report_clips(cfg: CfgNode, results: dict) -> str:
    """The same for actions; the evaluation itself has printed the table of all classes."""
    detections = Path(cfg.OUTPUT_DIR, "inference", DETECTIONS_FILE)
    print(f"detections:  {detections}, as AVA's challenge takes them")
    return f"demo-ava: mAP {results['action']['mAP']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
