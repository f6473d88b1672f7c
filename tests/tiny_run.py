"""A training of seconds: a few drawn images in COCO format, and the command line that trains on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "tests" / "data" / "engine" / "tiny.yaml"
TRAIN_NET = ROOT / "tools" / "train_net.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
CLASSES = ("box", "disc", "cross")
PATIENCE = 1800  # seconds after which a run that takes some hangs, also on a machine with other work


def write_tiny_data(folder: Path, images: int, seed: int = 0) -> tuple[Path, Path]:
    """Noise with two bright rectangles each, wide and high; returns the JSON file and the image folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    records, annotations = [], []
    for i in range(images):
        height, width = (48, 64) if i % 3 else (64, 48)
        picture = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        for _ in range(2):
            w, h = (int(n) for n in rng.integers(10, 25, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            category = int(rng.integers(len(CLASSES)))
            picture[y : y + h, x : x + w, category] = 220
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": category + 1, "iscrowd": 0}
                | {"bbox": [x, y, w, h], "area": w * h, "segmentation": [outline]}
            )
        cv2.imwrite(str(folder / f"{i:03d}.png"), picture)
        records.append({"id": i, "file_name": f"{i:03d}.png", "height": height, "width": width})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    json_file = folder.with_suffix(".json")
    json_file.write_text(
        json.dumps({"images": records, "annotations": annotations, "categories": categories})
    )
    return json_file, folder


def arguments(data: Path, output: Path, *options: str, flags: tuple[str, ...] = ()) -> list[str]:
    """The command line of a tiny run on ``data``, a folder with train and val (see ``tiny_data``)."""
    sets = [["--dataset", f"tiny_{s}", str(data / f"{s}.json"), str(data / s)] for s in ("train", "val")]
    return ["--config-file", str(CONFIG), *sum(sets, []), *flags, "OUTPUT_DIR", str(output), *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def train_net(*args: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run tools/train_net.py to its end."""
    command = [sys.executable, *launcher, str(TRAIN_NET), *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE)
