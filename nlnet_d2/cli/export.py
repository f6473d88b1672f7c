"""A detector as one file that needs neither Python nor Detectron2, compared with the original on two sizes.

%(prog)s --config-file C --output model.ts --image photo.jpg MODEL.WEIGHTS W
%(prog)s --config-file C --output model.onnx --image photo.jpg MODEL.WEIGHTS W

nlnet_d2/inference/export.py says what goes in and what comes out.
"""

import argparse
import logging
from collections.abc import Sequence

import torch
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge

from nlnet_d2.data.errors import DataError
from nlnet_d2.engine.errors import exit_code
from nlnet_d2.inference.config import predict_config
from nlnet_d2.inference.export import export
from nlnet_d2.inference.predictor import trained_model


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="C", help="config of the model")
    parser.add_argument("--output", required=True, metavar="FILE", help="*.ts (TorchScript) or *.onnx")
    parser.add_argument("--image", required=True, help="a picture with objects to find, for the comparison")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options, such as MODEL.WEIGHTS W"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Export and print the differences.

    Raises:
        ConfigError, CheckpointError: see ``export`` and ``trained_model``.
        DataError: the picture cannot be read.
    """
    cfg = predict_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    images = prepared(args.image, cfg)
    differences = export(trained_model(cfg), args.output, images)
    sizes = " and ".join(f"{image.shape[1]} x {image.shape[2]}" for image in images)
    print(f"{args.output}: compared at {sizes} pixels; largest differences, relative:")
    for name, difference in differences.items():
        print(f"  {name:16} {difference:.1e}")


def prepared(path: str, cfg) -> list[torch.Tensor]:
    """A picture as the model takes it, at the size of tests and at three quarters of it."""
    try:
        image = read_image(path, cfg.INPUT.FORMAT)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    sides = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    scaled = [[round(side * scale) for side in sides] for scale in (1, 0.75)]
    resized = [ResizeShortestEdge(*limits).get_transform(image).apply_image(image) for limits in scaled]
    return [torch.from_numpy(image.astype("float32").transpose(2, 0, 1)) for image in resized]


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    return exit_code(run, args)
