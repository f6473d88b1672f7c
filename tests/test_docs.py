"""Every command and snippet of README.md and docs/ is run, as it stands, in the order of the page.

The rule for fenced blocks: ``bash`` is run; ``python`` and ``yaml`` that begin with ``# file: NAME`` are
written to that file, other ``python`` is run, other ``yaml`` merged into a config; ``text`` is shown only.
A comment ``<!-- not run: REASON -->`` on the line before a block exempts it. Trainings are cut to two
iterations of small pictures.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from tiny_run import ROOT
from torchvision.models import resnet50

import nlnet_d2

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SMALL = {
    "SOLVER.MAX_ITER": "2",
    "SOLVER.STEPS": "[]",
    "SOLVER.IMS_PER_BATCH": "2",
    "DATALOADER.NUM_WORKERS": "0",
    "INPUT.MIN_SIZE_TRAIN": "[64]",
    "INPUT.MIN_SIZE_TEST": "64",
}


class Block(NamedTuple):
    kind: str
    text: str
    reason: str | None

    @property
    def file(self) -> str | None:
        """The file that the block is, if it is one."""
        named = re.match(r"# file: (\S+)\n", self.text)
        return named and named[1]


def blocks(page: Path) -> list[Block]:
    return [Block(m["kind"], m["text"], m["reason"]) for m in FENCE.finditer(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_has_a_kind_and_no_command_hides(page):
    for block in blocks(page):
        assert block.kind in ("bash", "python", "yaml", "text"), block.text
        if block.kind == "text":
            assert not re.search(r"^(nlnet-d2|python|make|pip|torchrun) ", block.text, re.MULTILINE), (
                block.text
            )
    assert page.read_text().count("```") == 2 * len(blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_fits_the_config(page):
    for block in blocks(page):
        if block.kind == "yaml":
            cfg = get_cfg()
            nlnet_d2.add_nlnet_config(cfg)
            cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(block.text)))


@pytest.fixture
def folder(tiny_data, tiny_clips, tmp_path):
    """What the pages take for granted: data, a photo, weights of torchvision's, the commands."""
    (tmp_path / "fruits").mkdir()
    for name in ("train", "val"):
        shutil.copy(tiny_data / f"{name}.json", tmp_path / "fruits")
        shutil.copytree(tiny_data / name, tmp_path / "fruits" / "images", dirs_exist_ok=True)
    shutil.copytree(next(path.parent for path in tiny_clips.rglob("boxes.csv")), tmp_path / "clips")
    shutil.copy(next((tiny_data / "val").iterdir()), tmp_path / "photo.jpg")  # its content counts
    torch.save(resnet50().state_dict(), tmp_path / "resnet50.pth")
    (tmp_path / "bin").mkdir()
    small = " ".join(f"{key} '{value}'" for key, value in SMALL.items())
    for name, training, module in (
        ("python", "run.py train", ""),
        ("nlnet-d2", "train *", "-m nlnet_d2.cli"),
    ):
        path, pattern = tmp_path / "bin" / name, training.replace(" ", "\\ ")
        cut = f'case "$1 $2" in {pattern}) set -- "$@" {small};; esac'
        path.write_text(f'#!/bin/sh\n{cut}\nexec {sys.executable} {module} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs_from_top_to_bottom(page, folder):
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "DETECTRON2_DATASETS": str(folder / "datasets"),
        "OMP_NUM_THREADS": "1",
    }
    for block in blocks(page):
        if block.reason or block.kind == "text":
            continue
        if block.file:
            (folder / block.file).write_text(block.text)
        if block.kind == "yaml" or block.file == "run.py":
            continue
        interpreter = ["bash", "-euc"] if block.kind == "bash" else ["python", "-c"]
        command = [*interpreter, block.text]
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
        assert ended.returncode == 0, f"{block.text}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
