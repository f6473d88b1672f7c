"""A training of seconds on clips: two drawn videos per split, and the command line that trains on them."""

from pathlib import Path

from tiny_run import ROOT

from nlnet_d2.data.datasets.motions import MotionsParameters, motions_source, write_motions

CONFIG = ROOT / "tests" / "data" / "engine" / "tiny_clips.yaml"
PARAMETERS = {split: MotionsParameters(split, count=2, seconds=3) for split in ("train", "val")}


def write_tiny_clips(folder: Path) -> None:
    for parameters in PARAMETERS.values():
        write_motions(parameters, folder)


def arguments(data: Path, output: Path, *options: str, flags: tuple[str, ...] = ()) -> list[str]:
    """The command line of a tiny run: one data set of one's own by flag, the other, with boxes, by key."""
    train, val = (motions_source(PARAMETERS[split], data) for split in ("train", "val"))
    by_flag = ["--ava-dataset", "tiny_clips_train", train.annotations, train.label_map, train.videos]
    by_key = {
        "NAME": "tiny_clips_val",
        "ANNOTATIONS": val.annotations,
        "LABEL_MAP": val.label_map,
        "VIDEOS": val.videos,
        "BOXES": list(val.boxes),
        "FPS": val.fps,
    }
    options = ("DATASETS.REGISTER_AVA", str([by_key]), "OUTPUT_DIR", str(output), *options)
    return ["--config-file", str(CONFIG), *by_flag, *flags, *options]
