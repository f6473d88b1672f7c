"""The context ablation: its scenes hide the class from a local detector, and its report says what was run."""

import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from nlnet_d2.analysis.zoo import read_config

FOLDER = Path(__file__).parents[2] / "projects" / "ContextMatters"
VARIANTS = ("baseline", "nonlocal", "snl", "gc", "se")


@pytest.fixture(scope="module", params=["scenes", "run"])
def module(request):
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module(request.param)
    sys.path.remove(str(FOLDER))


only = {name: pytest.mark.parametrize("module", [name], indirect=True) for name in ("scenes", "run")}


def key_pixels(image: np.ndarray) -> np.ndarray:
    """(P, 2): x and y of the pixels that have a colour."""
    low, high = image.min(2).astype(int), image.max(2).astype(int)
    return np.argwhere(high - low > 100)[:, ::-1]


@only["scenes"]
def test_scenes_are_reproducible_and_all_classes_occur(module):
    image, annotations = module.draw_scene("train", 3)
    again, same = module.draw_scene("train", 3)
    other, _ = module.draw_scene("val", 3)
    assert np.array_equal(image, again) and annotations == same and not np.array_equal(image, other)
    counts = Counter(module.draw_scene("train", i)[1][0]["form"] for i in range(60))
    assert set(counts) == set(module.COLOURS) and min(counts.values()) >= 10


@only["scenes"]
def test_all_discs_of_a_scene_have_the_class_of_the_key_far_away(module):
    for index in range(40):
        image, annotations = module.draw_scene("train", index)
        assert 1 <= len(annotations) <= 3
        key = key_pixels(image)
        (name,) = {annotation["form"] for annotation in annotations}
        assert image[key[:, 1], key[:, 0]].mean(0).argmax() == list(module.COLOURS).index(name)
        for x, y, w, h in (annotation["bbox"] for annotation in annotations):
            off = np.abs(key + 0.5 - [x + w / 2, y + h / 2]) - [w / 2, h / 2]
            assert off.max(1).min() > module.GAP - 2


@only["scenes"]
def test_boxes_are_those_of_the_discs(module):
    """Whatever side the key is on: bright inside, the dark ground just outside."""
    for index in range(20):
        image, annotations = module.draw_scene("train", index)
        for x, y, w, h in (annotation["bbox"] for annotation in annotations):
            grey = image.min(2)
            middle = grey[round(y + h / 2), round(x + 2) : round(x + w - 2)]
            above = grey[max(round(y) - 3, 0), round(x) : round(x + w)]
            assert middle.min() > 110 > 90 > above.max()


@only["scenes"]
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_baseline_cannot_see_the_key_and_the_others_can(module, variant):
    """Exactly no gradient from the map under a disc, and under a margin around it, to the key."""
    cfg = read_config(FOLDER / f"{variant}.yaml")
    cfg.MODEL.DEVICE = "cpu"
    backbone = build_model(cfg).backbone.eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    image = torch.randn(1, 3, module.SIDE, module.SIDE, requires_grad=True)
    margin = module.DISCS_AT[0] - module.DISC_RADII[1] - 8
    backbone(image)["p2"][..., margin // 4 :].sum().backward()
    gradient = image.grad[..., : module.KEY_WIDTH].abs().max()
    assert (gradient == 0) == (variant == "baseline")


def test_configs_differ_in_the_block_alone():
    configs = {variant: read_config(FOLDER / f"{variant}.yaml") for variant in VARIANTS}
    names = {v: [b["NAME"] for b in config.MODEL.CONTEXT.BLOCKS] for v, config in configs.items()}
    assert names == {
        "baseline": [],
        "nonlocal": ["NonLocal"],
        "snl": ["SimplifiedNonLocal"],
        "gc": ["GlobalContext"],
        "se": ["SqueezeExcitation"],
    }
    for config in configs.values():
        config.MODEL.CONTEXT.BLOCKS = []
    assert len({config.dump() for config in configs.values()}) == 1


@only["run"]
def test_finished_runs_are_kept_and_reported(module, tmp_path, monkeypatch, capsys):
    trained = []

    def train(variant, seed, output):
        trained.append((variant, seed))
        return 30.0 + seed

    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(module, "train", train)
    arguments = module.argparse.Namespace(variants=["gc", "se"], seeds=[0, 2], output="unused")
    module.main(arguments)
    arguments.seeds = [0, 1, 2]
    module.main(arguments)
    assert trained == [("gc", 0), ("se", 0), ("gc", 2), ("se", 2), ("gc", 1), ("se", 1)]
    assert json.loads((tmp_path / "results.json").read_text())["gc"] == {"0": 30.0, "1": 31.0, "2": 32.0}
    row = "| global context | 31.0 ± 1.0 | 30.0, 31.0, 32.0 |"
    assert row in (tmp_path / "results.md").read_text() and row in capsys.readouterr().out
    assert (tmp_path / "results.png").stat().st_size > 1000


def test_the_report_is_of_the_results_and_they_show_what_it_says():
    results = json.loads((FOLDER / "results.json").read_text())
    table, readme = (FOLDER / "results.md").read_text(), (FOLDER / "README.md").read_text()
    assert set(results) == set(VARIANTS)
    for values in results.values():
        assert set(values) >= {"0", "1", "2"}
        assert f"{np.mean(list(values.values())):.1f} ± {np.std(list(values.values()), ddof=1):.1f}" in table
    assert table in readme and re.search(r"\(results\.png\)", readme)
    assert max(results["baseline"].values()) < 45
    assert min(min(results[variant].values()) for variant in VARIANTS if variant != "baseline") > 80
