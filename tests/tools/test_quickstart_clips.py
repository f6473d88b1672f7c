"""What ``make demo-ava`` prints and leaves behind; what it learns is measured, not tested."""

import re
import subprocess
import sys

from tiny_clips import PARAMETERS
from tiny_run import ROOT, environment

from nlnet_d2.data.datasets.motions import motions_source


def test_demo_ends_with_its_line(tiny_clips, tmp_path):
    entries = []
    for split, parameters in PARAMETERS.items():
        source = motions_source(parameters, tiny_clips)
        files = {"ANNOTATIONS": source.annotations, "LABEL_MAP": source.label_map, "VIDEOS": source.videos}
        entries.append({"NAME": f"tiny_{split}", **files, "FPS": source.fps})
    options = {
        "DATASETS.REGISTER_AVA": entries,
        "DATASETS.TRAIN": ["tiny_train"],
        "DATASETS.TEST": ["tiny_val"],
        "SOLVER.MAX_ITER": 2,
        "SOLVER.IMS_PER_BATCH": 2,
    }
    words = [str(word) for pair in options.items() for word in pair]
    command = [sys.executable, str(ROOT / "tools" / "quickstart_clips.py"), "--output", str(tmp_path), *words]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert ended.returncode == 0, ended.stderr
    *lines, last = ended.stdout.splitlines()
    assert re.fullmatch(r"demo-ava: mAP \d+\.\d, \d+ s", last)
    assert any("wave fast" in line for line in lines), "the table of all classes"
    for name in ("model_final.pth", "metrics.json", "inference/ava_detections.csv"):
        assert (tmp_path / name).exists()
        assert any(str(tmp_path / name) in line for line in lines)
