"""Turn published weights into a native file for one config, and say what became of each tensor.

%(prog)s FILE OUT.safetensors --config-file C
%(prog)s R-50.pkl r50.pth --config-file C --allow-missing 'backbone.fpn_*' \\
    --allow-missing 'proposal_generator.*' --allow-missing 'roi_heads.*'
%(prog)s --list-origins
"""

import argparse
from collections.abc import Sequence

from nlnet_d2.analysis.complexity import build_on_meta
from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.convert import convert
from nlnet_d2.checkpoint.download import local_path
from nlnet_d2.checkpoint.read import read_tensors
from nlnet_d2.checkpoint.report import grouped
from nlnet_d2.checkpoint.sources import SOURCES
from nlnet_d2.checkpoint.tensors import reverse_channels
from nlnet_d2.checkpoint.write import write_weights
from nlnet_d2.engine.config import WITHOUT_DATA, config_of
from nlnet_d2.engine.errors import exit_code


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", help="a file, or its https:// or detectron2:// address")
    parser.add_argument("output", nargs="?", help="what to write: *.safetensors or *.pth")
    parser.add_argument("--config-file", metavar="C", help="config of the model that the weights are for")
    parser.add_argument("--origin", choices=SOURCES, help="naming of the file (default: recognised)")
    parser.add_argument(
        "--allow-missing",
        metavar="GLOB",
        action="append",
        default=[],
        help="tensors of the model or of the file that need no counterpart (repeatable)",
    )
    parser.add_argument(
        "--reverse-channels", action="store_true", help="first convolution: RGB to BGR or back"
    )
    parser.add_argument("--list-origins", action="store_true", help="what can be read, as Markdown")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config options at the end: KEY VALUE ..."
    )
    args = parser.parse_args(argv)
    if not args.list_origins and not (args.source and args.output and args.config_file):
        parser.error("SOURCE, OUTPUT and --config-file are needed")
    return args


def origins() -> str:
    """The tables of ``checkpoint/sources`` in one table."""
    rows = []
    for source in SOURCES.values():
        marks = [
            f"`{pattern}`" + (f" of {ndim} dimensions" if ndim else "") for pattern, ndim in source.marks
        ]
        marks += [f"no `{pattern}`" for pattern in source.absent]
        drops = [f"`{pattern}`: {reason}" for pattern, reason in source.drops]
        left_out = f"all: {source.refused}" if source.refused else "; ".join(drops)
        row = (source.name, source.files, ", ".join(marks), left_out, source.expects)
        rows.append([cell.replace("|", "\\|") for cell in row])
    headers = ["origin", "files", "recognised by names", "left out", "trained with"]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headers, ["---"] * len(headers), *rows))


def convert_file(args: argparse.Namespace) -> None:
    """Print the report, and write the file if no tensor is left over.

    Raises:
        ConfigError, CheckpointError: see ``load_config`` and ``load_weights``; tensors are left over.
    """
    model = build_on_meta(config_of(args.config_file, [*args.opts, *WITHOUT_DATA]))
    conversion = convert(read_tensors(local_path(args.source)), model, args.origin)
    print(conversion.report)
    if left := conversion.report.leftovers(args.allow_missing):
        raise CheckpointError(
            f"{len(left)} tensors have no counterpart, nothing is written. Give --allow-missing for those "
            f"that need none: {grouped(left, ' ')}"
        )
    if args.reverse_channels:
        reverse_channels(conversion.state)
    write_weights(args.output, conversion.state, conversion.source.name)
    print(f"wrote {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.list_origins:
        print(origins())
        return 0
    return exit_code(convert_file, args)
