"""What other projects rely on: registration by import, one config function, Lazy configs and plain Python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

import nlnet_d2
from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.backbones.vit_pyramid import SimpleFeaturePyramid
from nlnet_d2.evaluation import evaluate_ava

BLOCK = {"NAME": "NonLocal", "AT": {"res4": [-2]}}


def test_import_alone_fills_the_registries():
    script = (
        "import nlnet_d2\n"
        "from detectron2.modeling import BACKBONE_REGISTRY as B\n"
        "from nlnet_d2.blocks import BLOCKS\n"
        "assert 'build_context_resnet_fpn_backbone' in B and 'ContextResNet' in B\n"
        "assert 'NonLocal' in BLOCKS\n"
        "from detectron2.config import get_cfg\n"
        "cfg = get_cfg()\n"
        "before = cfg.dump()\n"
        "nlnet_d2.add_nlnet_config(cfg)\n"
        "assert cfg.dump() != before and 'CONTEXT' in cfg.MODEL\n"
        "assert get_cfg().dump() == before, 'the defaults of detectron2 are left alone'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_detectron2_the_import_says_how_to_get_it(tmp_path):
    script = "import sys\nsys.modules['detectron2'] = None\nimport nlnet_d2\n"
    blocked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert blocked.returncode == 1
    *_, how, compiled = blocked.stderr.strip().splitlines()
    assert "ImportError: nlnet_d2 extends detectron2, which is not installed" in blocked.stderr
    python, installer = how.split()
    assert os.path.normpath(python) == os.path.normpath(sys.executable)
    assert Path(installer).name == "install_detectron2.py" and Path(installer).exists()
    assert "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2" in compiled


def test_defaults_are_those_of_detectron2():
    """add_nlnet_config only adds keys."""
    stock, ours = get_cfg(), get_cfg()
    nlnet_d2.add_nlnet_config(ours)

    def leaves(node, prefix=""):
        for key, value in node.items():
            if hasattr(value, "items"):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    ours = dict(leaves(ours))
    for key, value in leaves(stock):
        assert ours[key] == value, key


def test_yaml_in_another_project():
    cfg = get_cfg()
    nlnet_d2.add_nlnet_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "ContextResNet", "MODEL.CONTEXT.BLOCKS", str([BLOCK])])
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res5"]
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    assert {name: (s.channels, s.stride) for name, s in shapes.items()} == {
        "res3": (512, 8),
        "res5": (2048, 32),
    }
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    assert features["res5"].shape == (1, 2048, 2, 3)


def test_lazy_config():
    lazy = L(FPN)(
        bottom_up=L(ContextResNet)(depth=18, norm="GN", blocks=[BLOCK]),
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=32,
        top_block=L(LastLevelMaxPool)(),
    )
    backbone = instantiate(lazy)
    assert backbone.bottom_up.res4[0].after_add[0].theta.in_channels == 256
    with torch.no_grad():
        assert set(backbone(torch.randn(1, 3, 64, 64))) == {"p2", "p3", "p4", "p5", "p6"}


def test_the_snippets_of_the_readme():
    """Those under "Use from another project", in order: Python runs, YAML builds its backbone."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    section = re.search(r"## Use from another project\n(.*?)\n## ", text, re.S)[1]
    names, built = {}, []
    with torch.device("meta"):
        for language, code in re.findall(r"```(\w+)\n(.*?)```", section, re.S):
            if language == "python":
                exec(code, names)
            else:
                cfg = names["cfg"].clone()
                cfg.merge_from_other_cfg(CfgNode.load_cfg(code))
                built.append(build_backbone(cfg, ShapeSpec(channels=3)))
        lazy = instantiate(names["backbone"])
    assert [type(b).__name__ for b in built] == ["SimpleFeaturePyramid", "FPN"]
    assert built[0].net.pos_embed.shape[-1] == 384 and built[0].square_pad == 1024
    assert built[1].bottom_up.res4[-2].after_add, "the block is there"
    assert isinstance(lazy, SimpleFeaturePyramid) and lazy.net.use_act_checkpoint


def test_evaluation_of_ava_by_its_public_name(tmp_path):
    rows = "clip,0902,0.1,0.1,0.5,0.9,1"
    for name, text in {
        "truth.csv": f"{rows},0\n",
        "found.csv": f"{rows},0.9\n",
        "labels.pbtxt": 'item {\n  name: "stand"\n  id: 1\n}\n',
    }.items():
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / name) for name in ("truth.csv", "found.csv", "labels.pbtxt")]
    assert evaluate_ava(*files)["mAP"] == 1.0
