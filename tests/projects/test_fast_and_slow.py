"""Slow-only against SlowFast: the two differ in the fast pathway alone, and the report says what was run."""

import importlib.util
from pathlib import Path

import pytest

from nlnet_d2.analysis.zoo import read_config
from nlnet_d2.backbones.video.slowfast import slow_frames
from nlnet_d2.data.clip_sampler import clip_frames
from nlnet_d2.data.datasets.motions import NAMES

FOLDER = Path(__file__).parents[2] / "projects" / "FastAndSlow"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("fast_and_slow", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def configs(module):
    return {model: read_config(path) for model, path in module.CONFIGS.items()}


def test_slow_only_sees_the_frames_of_the_slow_pathway(configs):
    frames = {}
    for model, cfg in configs.items():
        clip = cfg.INPUT.CLIP
        frames[model] = clip_frames(100, clip.NUM_FRAMES, clip.STRIDE, 1000)
    video = configs["SlowFast"].MODEL.VIDEO
    seen = slow_frames(len(frames["SlowFast"]), video.ALPHA, video.SLOW_FRAMES)
    assert [frames["SlowFast"][i] for i in seen] == frames["Slow-only"]


def test_data_schedule_and_slow_pathway_are_the_same(configs):
    slow, fast = configs["Slow-only"], configs["SlowFast"]
    for section in ("DATASETS", "SOLVER", "TEST", "SEED"):
        assert slow[section] == fast[section]
    for key in ("DEPTH", "STEM_OUT_CHANNELS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS", "NORM"):
        assert slow.MODEL.RESNETS[key] == fast.MODEL.RESNETS[key]


def test_report(module, tmp_path):
    runs = [
        {f"AP-{name}": 10.0 * i + seed for i, name in enumerate(NAMES)} | {"mAP": 40.0 + seed}
        for seed in (0, 1)
    ]
    results = {"Slow-only": runs, "SlowFast": runs[:1]}
    table = module.summarize(results)
    assert f"| {NAMES[2]} | 20.5 | 20.0 |" in table
    assert "| **mean** | 40.5 | 40.0 |" in table and "| mean, by seed | 40.0, 41.0 | 40.0 |" in table
    module.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
