"""What ``make demo`` prints and leaves behind; what it learns is measured, not tested."""

import re
import subprocess
import sys

from PIL import Image
from tiny_run import ROOT, environment


def test_demo_ends_with_its_line_and_a_picture(tiny_data, tmp_path):
    entry = {"NAME": "tiny", "JSON": str(tiny_data / "val.json"), "IMAGES": str(tiny_data / "val")}
    options = {
        "DATASETS.REGISTER": [entry],
        "DATASETS.TRAIN": ["tiny"],
        "DATASETS.TEST": ["tiny"],
        "MODEL.ROI_HEADS.NUM_CLASSES": 3,
        "SOLVER.MAX_ITER": 2,
        "INPUT.MIN_SIZE_TRAIN": [64],
        "INPUT.MIN_SIZE_TEST": 64,
    }
    words = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, str(ROOT / "tools" / "quickstart.py"), "--output", str(tmp_path), *words]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert ended.returncode == 0, ended.stderr
    *lines, last = ended.stdout.splitlines()
    assert re.fullmatch(r"demo: box AP \d+\.\d, mask AP \d+\.\d, \d+ s", last)
    for name in ("model_final.pth", "metrics.json", "predictions.png"):
        assert (tmp_path / name).exists()
        assert any(str(tmp_path / name) in line for line in lines)
    assert min(Image.open(tmp_path / "predictions.png").size) > 300
