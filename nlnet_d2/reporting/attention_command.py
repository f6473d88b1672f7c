"""Pictures of attention from the command line: ``tools/visualize_attention.py`` is this ``main``."""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from tabulate import tabulate
from torch import nn

from nlnet_d2.analysis.attention_maps import attention_modules
from nlnet_d2.analysis.attention_pictures import draw_view, strongest_positions
from nlnet_d2.analysis.attention_views import View, what_is_not_drawn
from nlnet_d2.config.zoo import find_config
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.inference.config import predict_config
from nlnet_d2.inference.predictor import takes_clips, trained_model
from nlnet_d2.reporting.command_line import new_parser, run_command
from nlnet_d2.reporting.run_folder import CONFIG, device_options
from nlnet_d2.reporting.scenes import Scene, object_points, read_scene, view_scene

logger = logging.getLogger(__name__)


def argument_parser(description: str | None = None) -> argparse.ArgumentParser:
    """The flags of pictures of attention."""
    parser = new_parser(description)
    parser.add_argument(
        "--input", required=True, metavar="PICTURE", help="an image; for models of clips a video"
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint")
    parser.add_argument("--config-file", metavar="C", help=f"default: {CONFIG} beside the checkpoint")
    parser.add_argument("--output", default="attention", metavar="DIR", help="folder of the pictures")
    parser.add_argument(
        "--point",
        nargs=2,
        type=float,
        action="append",
        metavar=("X", "Y"),
        help="look from this pixel (repeatable; default: from the centres of what the model finds)",
    )
    parser.add_argument(
        "--objects", type=int, default=3, metavar="N", help="at most so many centres (default: 3)"
    )
    parser.add_argument(
        "--min-score", type=float, default=0.5, metavar="P", help="of what is found (default: 0.5)"
    )
    parser.add_argument(
        "--second", type=float, metavar="S", help="time of the clip in the video (default: its middle)"
    )
    parser.add_argument(
        "--blocks", default="*", metavar="PATTERN", help="draw only blocks of such names, as '*res4*'"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options")
    return parser


def main(argv: Sequence[str] | None = None, description: str | None = None) -> int:
    """Draw as the command line says; returns the exit code (see ``engine/errors.py``)."""
    return run_command(run, argument_parser(description), argv)


def run(args: argparse.Namespace) -> list[Path]:
    """Write ``queryN.png`` for each point and ``attention.json``; returns their paths.

    Raises:
        ConfigError: no attention, a point outside the picture, nothing found, an unknown block.
        DataError: the picture cannot be read.
        CheckpointError: the weights do not fit.
    """
    config = args.config_file or str(Path(args.weights).with_name(CONFIG))
    try:
        path = str(find_config(config))
    except FileNotFoundError as error:
        remedy = "name that of the training with --config-file"
        raise ConfigError(f"there is no config {config}: {remedy}") from error
    cfg = predict_config(path, [*device_options(), "MODEL.WEIGHTS", args.weights, *args.opts])
    scene = read_scene(cfg, args.input, args.second)
    model, points = _model_and_points(cfg, scene, args)
    view = _chosen(view_scene(model, scene, points), args.blocks)
    paths = write_view(view, points, Path(args.output))
    rows = [(b.name, b.difference.cosine, b.difference.jensen_shannon) for b in view.blocks]
    table = tabulate(rows, ("block", "cosine", "Jensen-Shannon"), floatfmt=".4f")
    logger.info("How much the attention of different queries differs (0: not at all)\n%s", table)
    logger.info("Wrote %s", ", ".join(map(str, paths)))
    return paths


def _model_and_points(cfg: CfgNode, scene: Scene, args: argparse.Namespace) -> tuple[nn.Module, np.ndarray]:
    """The trained model, and the queries: x, y in pixels of the picture."""
    if not args.point and takes_clips(cfg) and not cfg.MODEL.PEOPLE.NAME:
        raise ConfigError(
            "this model does not find people itself (MODEL.PEOPLE.NAME is empty): choose a point, --point X Y"
        )
    model = trained_model(cfg).eval()
    if outside := what_is_not_drawn(model):
        logger.warning(outside)
    if args.point:
        return model, np.array(args.point)
    if not attention_modules(model.backbone):
        return model, np.zeros((1, 2))  # that is said before anything is looked for
    return model, object_points(model, scene, args.objects, args.min_score)


def _chosen(view: View, pattern: str) -> View:
    blocks = [block for block in view.blocks if fnmatch(block.name, pattern)]
    if not blocks:
        names = ", ".join(block.name for block in view.blocks)
        raise ConfigError(f"--blocks {pattern}: no block is named so; there are {names}")
    return replace(view, blocks=blocks)


def write_view(view: View, points: np.ndarray, folder: Path) -> list[Path]:
    """Pictures of all queries and the numbers behind them, into a folder; returns their paths.

    Args:
        points: (Q, 2), x, y in pixels of the source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"query{i + 1}.png" for i in range(len(points))]
    for i, path in enumerate(paths):
        Image.fromarray(draw_view(view, i)).save(path)
    blocks = {block.name: _numbers(view, block) for block in view.blocks}
    numbers = {"points": points.tolist(), "blocks": blocks}
    (folder / "attention.json").write_text(json.dumps(numbers, indent=1))
    return [*paths, folder / "attention.json"]


def _numbers(view: View, block) -> dict:
    means = block.rows.mean(1)  # (Q, *grid)
    grids = means if means.ndim == 4 else means[:, None]
    return {
        "heads": block.rows.shape[1],
        "grid": means.shape[1:],
        "cosine": block.difference.cosine,
        "jensen_shannon": block.difference.jensen_shannon,
        "strongest": [strongest_positions(view, grid) for grid in grids],
    }
