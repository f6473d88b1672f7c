"""Every recipe loads, builds, keeps its promises and trains for a step. New ones are covered by existing."""

import inspect
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm, ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from nlnet_d2 import add_nlnet_config
from nlnet_d2.analysis import zoo
from nlnet_d2.analysis.complexity import build_on_meta
from nlnet_d2.backbones.mvit import MViT
from nlnet_d2.backbones.video.resnet3d import ResNet3D
from nlnet_d2.backbones.video.slowfast import SlowFast
from nlnet_d2.backbones.vit import ViT
from nlnet_d2.blocks import parse_spec
from nlnet_d2.engine.config import config_of
from nlnet_d2.modeling.action_head import ActionHead

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = {str(path.relative_to(CONFIGS).with_suffix("")): path for path in zoo.config_files(CONFIGS)}
PROJECTS = sorted((CONFIGS.parent / "projects").rglob("*.yaml"))
YAML_FILES = {str(path.relative_to(CONFIGS)): path for path in sorted(CONFIGS.rglob("*.yaml"))}
YAML_FILES |= {str(path.relative_to(CONFIGS.parent)): path for path in PROJECTS}
RECIPES = [name for name in FILES if name.startswith(("coco/", "ava/"))]


@cache
def read(name: str) -> CfgNode:
    return zoo.read_config(FILES[name])


def _distinct_models() -> list[str]:
    """One config of each set that differs in its schedule and weights alone."""
    models = {}
    for name in FILES:
        model = read(name).MODEL.clone()
        model.WEIGHTS = ""
        models.setdefault(model.dump(), name)
    return list(models.values())


DISTINCT = _distinct_models()


@pytest.mark.parametrize("name", YAML_FILES)
def test_is_plain_yaml(name):
    content = yaml.safe_load(YAML_FILES[name].read_text())
    assert isinstance(content, dict)


@pytest.mark.parametrize("build", [ViT, MViT, ResNet3D, SlowFast, ActionHead])
def test_a_constructor_has_the_defaults_of_the_keys(build):
    """Where no key of Detectron2's own says something else: a detector of images, on frozen statistics."""
    cfg = get_cfg()
    add_nlnet_config(cfg)
    defaults = {name: p.default for name, p in inspect.signature(build).parameters.items()}
    values = build.from_config(cfg, ShapeSpec(channels=3))
    names = defaults.keys() & values.keys() - {"norm", "out_features", "freeze_at", "input_shape"}
    assert names
    for name in names:
        default, value = (list(v) if isinstance(v, tuple) else v for v in (defaults[name], values[name]))
        assert default == value, name


@pytest.mark.parametrize("name", RECIPES)
def test_a_variant_says_in_few_lines_what_it_changes(name):
    lines = [line for line in FILES[name].read_text().splitlines() if line.strip() and line[0] != "#"]
    assert lines[0].startswith("_BASE_: ")
    assert len(lines) <= 26 or lines[0] == "_BASE_: ../Base-RCNN-FPN.yaml"  # the first of a family


@pytest.mark.parametrize("name", RECIPES)
def test_header_gives_a_number_and_its_source_or_says_that_there_is_none(name):
    header = zoo.header(FILES[name])
    number = re.search(r"\d\d\.\d", zoo.quoted("Published", header))
    source = re.search(r"arXiv|[Dd]etectron|xvjiarui|PySlowFast|pytorchvideo|mmaction2|mmdetection", header)
    assert number and source or re.search(r"(no|No|nobody) .*published|not verified", header)


@pytest.mark.parametrize("name", FILES)
def test_blocks_are_registered_and_their_options_known(name):
    model = read(name).MODEL
    for entry in [*model.CONTEXT.BLOCKS, *model.ROI_KEYPOINT_HEAD.BLOCKS]:
        assert parse_spec(entry).at


@pytest.mark.parametrize("name", DISTINCT)
def test_builds_on_the_meta_device(name):
    model = build_on_meta(read(name))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_configs_of_projects_build_on_the_meta_device(path):
    model = build_on_meta(zoo.read_config(path))
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", RECIPES)
def test_schedule_is_consistent(name):
    solver = read(name).SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        assert list(solver.STEPS) == sorted(set(solver.STEPS))
        assert solver.STEPS[0] > solver.WARMUP_ITERS and solver.STEPS[-1] < solver.MAX_ITER


@pytest.mark.parametrize("name", [name for name in DISTINCT if "scratch" in name and "vit" not in name])
def test_from_scratch_nothing_is_frozen_and_every_norm_is_gn_or_syncbn(name):
    """What arXiv 1811.08883 asks for."""
    cfg = read(name)
    model = build_on_meta(cfg)
    assert cfg.MODEL.WEIGHTS == ""
    assert all(p.requires_grad for p in model.parameters())
    kinds = (nn.GroupNorm, nn.modules.batchnorm._NormBase, FrozenBatchNorm2d)
    norms = {type(m) for m in model.modules() if isinstance(m, kinds)}
    assert norms == {nn.GroupNorm} or norms <= {nn.SyncBatchNorm, NaiveSyncBatchNorm}


@pytest.mark.parametrize("name", [name for name in FILES if re.search("gn.*x|scratch_9x", name)])
def test_learning_rate_falls_near_the_end(name):
    """60k and 20k iterations of 16 images before it, however long the schedule (arXiv 1811.08883)."""
    solver = read(name).SOLVER
    left = [(solver.MAX_ITER - step) * solver.IMS_PER_BATCH / 16 for step in solver.STEPS]
    assert left == [60_000, 20_000]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("mask_rcnn_R50_FPN_msra_1x", 44_343_216),
        ("mask_rcnn_nl_R50_FPN", 44_343_216 + 2_101_760),
        ("mask_rcnn_gc_r16_R50_FPN_1x", 44_343_216 + 2_521_741),
        ("mask_rcnn_gc_r4_R50_FPN_1x", 44_343_216 + 10_000_909),
        ("mask_rcnn_gc_r16_R101_FPN_1x", 63_283_120 + 4_788_062),
        ("mask_rcnn_R50_FPN_gn_scratch_3x", 45_711_152),
    ],
)
def test_parameter_counts(name, params):
    model = build_on_meta(read(f"coco/{name}"))
    assert sum(p.numel() for p in model.parameters()) == params


def test_gcnet_backbones_have_the_parameters_of_the_original():
    """With every batch normalisation trained."""
    for name, params in (("gc_r16", 26_029_773), ("gc_r4", 33_508_941)):
        cfg = read(f"coco/mask_rcnn_{name}_R50_FPN_syncbn_1x").clone()
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        model = build_on_meta(cfg)
        assert sum(p.numel() for p in model.backbone.bottom_up.parameters()) == params


def test_data_of_ones_own_decide_on_the_number_of_actions(tmp_path):
    """docs/own_ava_data.md trains this recipe on them."""
    (tmp_path / "two.pbtxt").write_text('item { name: "run" id: 1 } item { name: "sit" id: 2 }')
    entry = {"NAME": "two", "ANNOTATIONS": "a.csv", "LABEL_MAP": str(tmp_path / "two.pbtxt"), "VIDEOS": "v"}
    data = ("DATASETS.REGISTER_AVA", str([entry]), "DATASETS.TRAIN", "['two']", "DATASETS.TEST", "['two']")
    try:
        assert config_of("slowfast_motions", data).MODEL.ACTION_HEAD.NUM_CLASSES == 2
    finally:
        DatasetCatalog.remove("two")
        MetadataCatalog.remove("two")


def test_table_lists_every_config_with_what_its_file_says():
    table = (CONFIGS / "README.md").read_text()
    rows = {line.split("(")[1].split(")")[0]: line for line in table.splitlines() if line.startswith("| [")}
    assert sorted(rows) == sorted(f"{name}.yaml" for name in FILES), "run `make zoo-table`"
    for name, path in FILES.items():
        published = zoo.quoted("Published", zoo.header(path))
        assert f" {published} |" in rows[f"{name}.yaml"], "run `make zoo-table`"


@pytest.mark.parametrize(
    "name", ["mask_rcnn_nl_R50_FPN", "keypoint_rcnn_nl_head_R101_FPN_1x", "mask_rcnn_R50_FPN_gn_scratch_3x"]
)
def test_table_rows_are_fresh(name):
    cells = zoo.row(CONFIGS / "coco" / f"{name}.yaml", CONFIGS)
    assert f"| {' | '.join(cells)} |" in (CONFIGS / "README.md").read_text(), "run `make zoo-table`"


@pytest.mark.slow
def test_table_is_fresh():
    assert zoo.table(CONFIGS) == (CONFIGS / "README.md").read_text(), "run `make zoo-table`"


def shrink(cfg: CfgNode) -> CfgNode:
    """The same architecture on small inputs, with few boxes."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    if cfg.MODEL.FPN.SQUARE_PAD > 256:
        cfg.MODEL.FPN.SQUARE_PAD = cfg.MODEL.VIT.IMG_SIZE = 256
    return cfg


def example(cfg: CfgNode) -> dict:
    """One input with one object, as the mapper of the config would give it."""
    size = (96, 128)
    target = Instances(size)
    target.gt_boxes = Boxes(torch.tensor([[20.0, 16.0, 90.0, 80.0]]))
    if cfg.MODEL.META_ARCHITECTURE == "ActionRCNN":
        target.gt_actions = nn.functional.one_hot(torch.tensor([1]), cfg.MODEL.ACTION_HEAD.NUM_CLASSES)
        return {"clip": torch.randint(0, 256, (3, 16, *size)).float(), "instances": target}
    target.gt_classes = torch.tensor([0])
    if cfg.MODEL.KEYPOINT_ON:
        target.gt_keypoints = Keypoints(torch.full((1, 17, 3), 40.0))
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
        target.gt_masks = PolygonMasks([[[20.0, 16.0, 90.0, 16.0, 90.0, 80.0]]])
    elif cfg.MODEL.MASK_ON:
        target.gt_masks = BitMasks(torch.ones(1, *size, dtype=torch.bool))
    return {"image": torch.randint(0, 256, (3, *size)).float(), "instances": target}


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT)
def test_one_step_of_training(name):
    """Two images, for the norms that need a batch; every trainable parameter gets a gradient."""
    cfg = shrink(read(name))
    torch.manual_seed(0)
    model = build_model(cfg).train()
    with EventStorage():
        losses = model([example(cfg), example(cfg)])
    assert all(loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
