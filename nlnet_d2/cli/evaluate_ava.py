"""Frame-mAP of a detections CSV in AVA's format, by one of the public protocols.

%(prog)s --groundtruth ava_val_v2.2.csv --detections ava_detections.csv \\
    --labelmap ava_action_list_v2.2_for_activitynet_2019.pbtxt \\
    --excluded ava_val_excluded_timestamps_v2.2.csv
"""

import argparse
import json
import logging
import math
from collections.abc import Sequence

from nlnet_d2.engine.errors import exit_code
from nlnet_d2.evaluation.ava import evaluate_ava, format_result
from nlnet_d2.evaluation.protocols import PROTOCOLS


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groundtruth", required=True, help="annotations (.csv)")
    parser.add_argument("--detections", required=True, help="detections (.csv)")
    parser.add_argument("--labelmap", required=True, help="the evaluated classes (.pbtxt)")
    parser.add_argument("--excluded", help="frames that are left out (.csv)")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="activitynet")
    parser.add_argument("--json", action="store_true", help="print one JSON object, APs in 0..1")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    result = evaluate_ava(args.groundtruth, args.detections, args.labelmap, args.excluded, args.protocol)
    if not args.json:
        print(format_result(result))
        return
    del result["curves"]
    print(json.dumps(_without_nan(result)))


def _without_nan(value):
    """JSON has no NaN: null stands for the AP of a class without ground truth."""
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return exit_code(run, args)
