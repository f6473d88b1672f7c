"""Which parameter gets which learning rate and weight decay: exact lists."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from torch import nn

from nlnet_d2 import add_nlnet_config
from nlnet_d2.solver import build_optimizer
from nlnet_d2.solver.param_groups import layer_numbers, parameter_groups


def config(*options):
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.merge_from_file("configs/coco/mask_rcnn_vitdet_b_100ep.yaml", allow_unsafe=False)
    tiny = [
        "IMG_SIZE",
        128,
        "EMBED_DIM",
        48,
        "DEPTH",
        2,
        "NUM_HEADS",
        3,
        "WINDOW_SIZE",
        4,
        "GLOBAL_BLOCKS",
        [1],
    ]
    keys = [f"MODEL.VIT.{key}" if isinstance(key, str) else key for key in tiny]
    cfg.merge_from_list([*keys, "MODEL.DEVICE", "cpu", "MODEL.VIT.RESIDUAL_BLOCKS", [1], *options])
    return cfg


@pytest.fixture(scope="module")
def model():
    return build_model(config())


def hyperparameters(optimizer, model) -> dict[str, tuple[float, float]]:
    """Name of every trained parameter -> (learning rate, weight decay)."""
    names = {p: n for n, p in model.named_parameters()}
    return {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_what_is_not_decayed(model):
    """Positions, biases and norms: of tokens, of the pyramid, of the convolutions, of the heads."""
    optimizer = build_optimizer(config(), model)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["betas"] == (0.9, 0.999)
    found = hyperparameters(optimizer, model)
    assert found.keys() == {n for n, _ in model.named_parameters()}
    free = {name for name, (_, decay) in found.items() if decay == 0}
    assert {decay for _, decay in found.values()} == {0.0, 0.1}

    biases = {name for name in found if name.endswith(".bias")}
    norms = {f"backbone.net.blocks.{i}.norm{j}.weight" for i in (0, 1) for j in (1, 2)}
    norms |= {f"backbone.net.blocks.1.residual.norm{i}.weight" for i in (1, 2, 3)}
    levels = {"2": ("1", "4.norm", "5.norm"), "3": ("1.norm", "2.norm"), "4": ("0.norm", "1.norm")}
    levels["5"] = ("1.norm", "2.norm")
    norms |= {f"backbone.simfp_{level}.{norm}.weight" for level, all_ in levels.items() for norm in all_}
    norms |= {f"roi_heads.box_head.conv{i}.norm.weight" for i in (1, 2, 3, 4)}
    norms |= {f"roi_heads.mask_head.mask_fcn{i}.norm.weight" for i in (1, 2, 3, 4)}
    positions = {f"backbone.net.blocks.{i}.attn.rel_pos_{axis}" for i in (0, 1) for axis in "hw"}
    assert free == biases | norms | positions | {"backbone.net.pos_embed"}


def test_each_kind_has_its_key(model):
    """WEIGHT_DECAY_NORM, WEIGHT_DECAY_BIAS, NO_DECAY and BIAS_LR_FACTOR, for recipes that need them."""
    options = [
        "SOLVER.WEIGHT_DECAY_NORM",
        0.3,
        "SOLVER.WEIGHT_DECAY_BIAS",
        0.2,
        "SOLVER.NO_DECAY",
        ["pos_embed"],
        "SOLVER.BIAS_LR_FACTOR",
        2.0,
    ]
    found = hyperparameters(build_optimizer(config(*options), model), model)
    assert found["roi_heads.box_predictor.cls_score.bias"] == pytest.approx((0.0002, 0.2))
    decays = {name: decay for name, (_, decay) in found.items()}
    assert decays["backbone.simfp_2.1.weight"] == decays["backbone.net.blocks.0.norm1.weight"] == 0.3
    assert decays["backbone.net.blocks.0.attn.proj.bias"] == 0.2
    assert decays["backbone.net.blocks.0.attn.rel_pos_h"] == 0.1 and decays["backbone.net.pos_embed"] == 0


def test_layer_decay(model):
    """The last layer at BASE_LR, each below it 0.7 times the one above: embeddings at 0.7 ** 3."""
    rates = {n: lr / 1e-4 for n, (lr, _) in hyperparameters(build_optimizer(config(), model), model).items()}
    last, blocks, embeddings = 1, {0: 0.7**2, 1: 0.7}, 0.7**3
    for name, rate in rates.items():
        if "pos_embed" in name or "patch_embed" in name:
            expected = embeddings
        elif ".blocks." in name and ".residual." not in name:
            expected = blocks[int(name.split(".blocks.")[1][0])]
        else:
            expected = last
        assert rate == pytest.approx(expected), name
    assert sorted({round(r, 4) for r in rates.values()}) == [0.343, 0.49, 0.7, 1.0]


def test_numbers_follow_the_backbone_only():
    names = ["backbone.bottom_up.net.blocks.3.norm1.weight", "backbone.bottom_up.net.blocks.10.mlp.fc1.bias"]
    names += ["backbone.bottom_up.net.pos_embed", "backbone.fpn_output2.weight", "roi_heads.blocks.7.weight"]
    assert list(layer_numbers(names).values()) == [4, 11, 0, 12, 12]


def test_layer_decay_of_mvit():
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.merge_from_file("configs/coco/mask_rcnn_mvitv2_t_3x.yaml", allow_unsafe=False)
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "SOLVER.LAYER_DECAY", 0.5])
    with torch.device("meta"):
        model = build_model(cfg)
    found = hyperparameters(build_optimizer(cfg, model), model)
    assert found["backbone.bottom_up.blocks.9.attn.qkv.weight"] == pytest.approx((0.00008, 0.1))
    assert found["backbone.bottom_up.blocks.0.attn.rel_pos_w"] == pytest.approx((0.00016 * 0.5**10, 0))
    assert found["backbone.bottom_up.scale5_norm.weight"] == pytest.approx((0.00016, 0))


def test_without_options_all_are_alike():
    groups = parameter_groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), lr=0.1, weight_decay=0.01)
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(0.1, 0.01)}


def test_frozen_parameters_are_left_out(model):
    optimizer_names = hyperparameters(build_optimizer(config(), model), model)
    try:
        model.backbone.net.pos_embed.requires_grad_(False)
        left = hyperparameters(build_optimizer(config(), model), model)
    finally:
        model.backbone.net.pos_embed.requires_grad_(True)
    assert optimizer_names.keys() - left.keys() == {"backbone.net.pos_embed"}


def test_sgd_is_that_of_detectron2():
    """Without our keys the optimizer is the stock one."""
    from detectron2.solver import build_optimizer as stock

    cfg = get_cfg()
    add_nlnet_config(cfg)
    small = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    ours, theirs = build_optimizer(cfg, small), stock(cfg, small)
    assert ours.defaults.keys() == theirs.defaults.keys()
    assert hyperparameters(ours, small) == hyperparameters(theirs, small)
    assert [g["momentum"] for g in ours.param_groups] == [g["momentum"] for g in theirs.param_groups]


def test_gradient_clipping():
    cfg = config("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm")
    cfg.merge_from_list(["SOLVER.LAYER_DECAY", 1.0, "SOLVER.OPTIMIZER", "SGD", "SOLVER.WEIGHT_DECAY", 0.0])
    layer = nn.Linear(2, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = build_optimizer(cfg, layer)
    (layer(torch.full((1, 2), 300.0))).sum().backward()
    optimizer.step()
    step = cfg.SOLVER.BASE_LR * cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE
    assert layer.weight.norm().item() == pytest.approx(step)
    assert layer.bias.item() == pytest.approx(-step), "each by its own norm"


@pytest.mark.parametrize("enabled, expected", [(True, [3.0, 4.0]), (False, [30.0, 40.0])])
def test_gradient_clipping_of_the_full_model(enabled, expected):
    """By one norm: the proportions between the gradients of different layers stay."""
    cfg = config("SOLVER.OPTIMIZER", "SGD", "SOLVER.LAYER_DECAY", 1.0, "SOLVER.MOMENTUM", 0.0)
    cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.ENABLED", enabled, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 5.0])
    cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "SOLVER.WEIGHT_DECAY", 0.0])
    model = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer = build_optimizer(cfg, model)
    (model[0].weight * 30 + model[1].weight * 40).sum().backward()
    optimizer.step()
    change = before - torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(change / cfg.SOLVER.BASE_LR, torch.tensor(expected), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
def test_schedules_keep_the_ratios(model, name):
    """Stock schedules scale all groups alike, warm-up included."""
    cfg = config("SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.MAX_ITER", 100, "SOLVER.STEPS", [80, 90])
    cfg.merge_from_list(["SOLVER.WARMUP_ITERS", 10, "SOLVER.WARMUP_FACTOR", 0.001])
    optimizer = build_optimizer(cfg, model)
    before = [g["lr"] for g in optimizer.param_groups]
    schedule = build_lr_scheduler(cfg, optimizer)
    factors = []
    for _ in range(100):
        now = {round(g["lr"] / start, 6) for g, start in zip(optimizer.param_groups, before, strict=True)}
        assert len(now) == 1
        factors.append(now.pop())
        optimizer.step()
        schedule.step()
    assert factors[0] == pytest.approx(0.001) and factors[99] <= 0.01 and max(factors) > 0.95


def test_errors():
    with pytest.raises(ValueError, match="SOLVER.LAYER_DECAY needs a backbone of transformer blocks"):
        build_optimizer(config(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER is SGD or AdamW, got 'Adam'"):
        build_optimizer(config("SOLVER.OPTIMIZER", "Adam", "SOLVER.LAYER_DECAY", 1.0), nn.Linear(2, 2))
