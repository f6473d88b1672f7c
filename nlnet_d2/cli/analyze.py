"""What a config costs: parameters, FLOPs, activations, attention maps; and the table of all configs.

%(prog)s --config-file mask_rcnn_nl_R50_FPN --tree 3
%(prog)s --config-file C --input-size 800 1344 --json
%(prog)s --all
%(prog)s --table configs/README.md
%(prog)s --memory 8 16 24 80 --config-file C

params            all parameters, exact
backbone_params   those of the backbone without its feature pyramid
gflops            10^9 multiply-adds at input_size, counted by the rule that is printed with it (rule)
mega_activations  10^6 elements of the outputs of what is counted in gflops
attention_map_mb  10^6 bytes of all attention maps in float32, if they were formed and kept
modules           with --tree: parameters and FLOPs of every module down to DEPTH; exact with --json
largest           with --memory: side of the image, or frames of the clip, on which one training step fits
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from nlnet_d2.analysis import zoo
from nlnet_d2.analysis.complexity import RULE, Complexity
from nlnet_d2.analysis.memory import RULE as MEMORY_RULE
from nlnet_d2.analysis.memory import step_memory
from nlnet_d2.config.zoo import CONFIGS, config_files
from nlnet_d2.engine.config import WITHOUT_DATA, config_of
from nlnet_d2.engine.errors import ConfigError, exit_code
from nlnet_d2.engine.seeding import seeded


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", metavar="C", help="one config")
    what.add_argument("--all", action="store_true", help="every config, one JSON object per line")
    what.add_argument("--table", metavar="FILE", help="write the table of all configs as Markdown")
    parser.add_argument(
        "--input-size",
        nargs="+",
        type=int,
        metavar="N",
        help="height and width, for clips after the number of frames (default: that of the config's tests)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--tree", type=int, default=0, metavar="DEPTH", help="parameters and FLOPs per module"
    )
    parser.add_argument(
        "--memory",
        nargs="+",
        type=float,
        metavar="GB",
        help="the largest input of a training step in so many 10^9 bytes",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options: KEY VALUE ...")
    args = parser.parse_args(argv)
    if not args.config_file and (args.input_size or args.tree or args.memory or args.opts):
        parser.error("--input-size, --tree, --memory and config options are for one --config-file")
    return args


def report(config: str, size: tuple[int, ...], cost: Complexity, depth: int = 0) -> dict:
    """The JSON object of one config, with the modules down to ``depth``."""
    result = {
        "config": config,
        "params": cost.params,
        "backbone_params": cost.backbone_params,
        "gflops": cost.flops / 1e9,
        "input_size": size,
        "mega_activations": cost.activations / 1e6,
        "attention_map_mb": cost.attention_bytes / 1e6,
        "rule": RULE,
    }
    if depth:
        result["modules"] = {
            name: {"params": params, "flops": flops}
            for name, (params, flops) in cost.modules.items()
            if name.count(".") < depth and (params or flops)
        }
    return result


def tree(modules: dict[str, dict[str, int]]) -> str:
    """The modules of a report, indented."""
    lines = [f"{'module':44} {'params':>14} {'GFLOPs':>10}"]
    for name, cost in modules.items():
        label = "  " * name.count(".") + name.rpartition(".")[2]
        lines.append(f"{label:44} {cost['params']:14,} {cost['flops'] / 1e9:10.2f}")
    return "\n".join(lines)


def read_config(args: argparse.Namespace) -> CfgNode:
    """``--config-file`` with the options; raises ConfigError where it cannot be read."""
    return config_of(args.config_file, [*args.opts, *WITHOUT_DATA])


def memory_report(args: argparse.Namespace) -> dict:
    """The JSON object of ``--memory``."""
    with seeded(0):  # how many proposals there are depends on the weights and on the paths that are dropped
        memory = step_memory(read_config(args))
    clip = memory.size is not None
    return {
        "config": args.config_file,
        "states_gb": memory.states / 1e9,
        "kept_mb_per_" + ("frame" if clip else "megapixel"): memory.slope * (1 if clip else 1e6) / 1e6,
        "largest": {f"{gb:g} GB": memory.largest(gb * 1e9) for gb in args.memory},
        "unit": f"frames of {memory.size} px" if clip else "px of the side",
        "rule": MEMORY_RULE,
    }


def analyze_config(args: argparse.Namespace) -> tuple[tuple[int, ...], Complexity]:
    """Input size and cost of ``--config-file``.

    Raises:
        ConfigError: the config cannot be read, the model not be built, or the size does not fit.
    """
    cfg = read_config(args)
    default = zoo.input_size(cfg)
    size = (3, *args.input_size) if args.input_size else default
    if len(size) != len(default) or min(size) < 1:
        raise ConfigError(f"--input-size: expected {len(default) - 1} numbers > 0, got {args.input_size}")
    try:
        return size, zoo.analyze(cfg, size)
    except (ValueError, AssertionError) as error:  # Detectron2 asserts
        raise ConfigError(f"{args.config_file}: {error}") from error


def run(args: argparse.Namespace) -> None:
    if args.table:
        Path(args.table).write_text(zoo.table(CONFIGS))
        return
    if args.all:
        for path in config_files():
            cfg = zoo.read_config(path)
            print(json.dumps(report(str(path), zoo.input_size(cfg), zoo.analyze(cfg))), flush=True)
        return
    if args.memory:
        result = memory_report(args)
        lines = [f"{key}: {value}" for key, value in result.items()]
        print(json.dumps(result) if args.json else "\n".join(lines))
        return
    size, cost = analyze_config(args)
    result = report(args.config_file, size, cost, args.tree)
    if args.json:
        print(json.dumps(result))
        return
    modules = result.pop("modules", {})
    print("\n".join(f"{key}: {value}" for key, value in result.items()))
    if modules:
        print(tree(modules))


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))
