"""What ``make demo`` and ``make demo-ava`` print and leave behind; what is learnt is measured, not tested."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from tiny_clips import PARAMETERS
from tiny_run import ROOT, environment

from nlnet_d2.data.datasets.motions import motions_source


def demo(output: Path, *flags: str, **options) -> list[str]:
    """Lines that the demo prints when it is cut to two iterations; in names of options ``__`` is a dot."""
    options = options | {"SOLVER__MAX_ITER": 2}
    words = [str(word) for key, value in options.items() for word in (key.replace("__", "."), value)]
    command = [sys.executable, str(ROOT / "tools" / "quickstart.py"), *flags, "--output", str(output), *words]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def assert_names_its_files(lines: list[str], output: Path, *names: str) -> None:
    for name in names:
        assert (output / name).exists()
        assert any(str(output / name) in line for line in lines)


def test_demo_ends_with_its_line_and_a_picture(tiny_data, tmp_path):
    entry = {"NAME": "tiny", "JSON": str(tiny_data / "val.json"), "IMAGES": str(tiny_data / "val")}
    *lines, last = demo(
        tmp_path,
        DATASETS__REGISTER=[entry],
        DATASETS__TRAIN=["tiny"],
        DATASETS__TEST=["tiny"],
        MODEL__ROI_HEADS__NUM_CLASSES=3,
        INPUT__MIN_SIZE_TRAIN=[64],
        INPUT__MIN_SIZE_TEST=64,
    )
    assert re.fullmatch(r"demo: box AP \d+\.\d, mask AP \d+\.\d, \d+ s", last)
    assert_names_its_files(lines, tmp_path, "model_final.pth", "metrics.json", "predictions.png")
    assert min(Image.open(tmp_path / "predictions.png").size) > 300


def test_demo_of_clips_ends_with_its_line(tiny_clips, tmp_path):
    entries = []
    for split, parameters in PARAMETERS.items():
        source = motions_source(parameters, tiny_clips)
        files = {"ANNOTATIONS": source.annotations, "LABEL_MAP": source.label_map, "VIDEOS": source.videos}
        entries.append({"NAME": f"tiny_{split}", **files, "FPS": source.fps})
    *lines, last = demo(
        tmp_path,
        "--clips",
        DATASETS__REGISTER_AVA=entries,
        DATASETS__TRAIN=["tiny_train"],
        DATASETS__TEST=["tiny_val"],
        SOLVER__IMS_PER_BATCH=2,
    )
    assert re.fullmatch(r"demo-ava: mAP \d+\.\d, \d+ s", last)
    assert any("wave fast" in line for line in lines), "the table of all classes"
    assert_names_its_files(lines, tmp_path, "model_final.pth", "metrics.json", "inference/ava_detections.csv")
