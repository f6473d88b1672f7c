"""Action R-CNN: losses and scores on given boxes, odd inputs, precision, joint mode, the AVA recipes."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from deterministic import compare, golden_state_dict, make_input, read_keys
from fvcore.nn.precise_bn import update_bn_stats
from torch import nn
from torch.nn import functional as F

import nlnet_d2
from nlnet_d2.backbones.video.resnet3d import ClipShapeSpec, ResNet3D
from nlnet_d2.backbones.video.slowfast import SlowFast, slow_frames
from nlnet_d2.modeling.action_head import ActionHead
from nlnet_d2.modeling.action_rcnn import ActionRCNN
from nlnet_d2.modeling.people import FrozenDetector

RECIPES = Path(__file__).parents[2] / "configs" / "ava"
CLASSES = 5
SHAPES = {"slow": ClipShapeSpec(6, 16, 4), "fast": ClipShapeSpec(2, 16, 1)}
NORMALISATION = {"pixel_mean": [114.75] * 3, "pixel_std": [57.375] * 3}


def read_config(*overrides, recipe="slowfast_8x8_R50.yaml"):
    cfg = get_cfg()
    nlnet_d2.add_nlnet_config(cfg)
    cfg.merge_from_file(str(RECIPES / recipe))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *overrides])
    return cfg


TINY = [
    *("MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 16),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.VIDEO.BETA_INV", 2),
    *("MODEL.ACTION_HEAD.NUM_CLASSES", CLASSES, "MODEL.ACTION_HEAD.DROPOUT", 0.0),
]


def tiny_model(*overrides, **kwargs) -> ActionRCNN:
    torch.manual_seed(0)
    model = build_model(read_config(*TINY, *overrides, **kwargs))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.weight, 1, 0.1)
    return model


def make_clip(boxes, height=48, width=64, frames=8, **extra) -> dict:
    """An input with ``boxes`` both to classify and, with one action each, to learn from."""
    boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    actions = F.one_hot(torch.arange(len(boxes)) % CLASSES, CLASSES)
    instances = Instances((height, width), gt_boxes=boxes, gt_actions=actions)
    clip = torch.randint(0, 256, (3, frames, height, width), dtype=torch.uint8)
    return {"clip": clip, "boxes": boxes, "instances": instances, **extra}


TWO = [[4, 4, 30, 40], [20.5, 10, 60, 44]]


def golden_model(case: str) -> ActionRCNN:
    """The network of a golden case, which has no normalisation of its own."""
    five = [{"NAME": "NonLocal", "AT": {"res3": [1, 3], "res4": [1, 3, 5]}, "SUBSAMPLE": [1, 2, 2]}]
    stages, classes = [f"res{i}" for i in range(2, 6)], 400
    if case == "slow_8x8_r50":
        backbone = ResNet3D(arch="slow", out_features=stages)
    elif case == "i3d_nln_8x8_r50":
        backbone = ResNet3D(arch="i3d", blocks=five, out_features=stages)
    else:
        names, classes = [f"{pathway}_{stage}" for pathway in ("slow", "fast") for stage in stages], 80
        backbone = SlowFast(res5_stride=1, res5_dilation=2, out_features=names)
    features = [name for name in backbone.output_shape() if name.endswith("res5")]
    head = ActionHead(backbone.output_shape(), num_classes=classes, in_features=features)
    model = ActionRCNN(backbone=backbone, action_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    report = nlnet_d2.load_weights(model.eval(), golden_state_dict(read_keys(case)))
    assert not (report.missing or report.unexpected or report.mismatched)
    return model


def compare_stages(case: str, features: dict[str, torch.Tensor]) -> None:
    for name, x in features.items():
        compare(case, f"s{name[-1]}.{int(name.startswith('fast'))}", x)


@torch.no_grad()
def test_pyslowfast_with_its_head():
    case = "ava_slowfast_32x2_r50_short"
    golden, model = read_keys(case), golden_model(case)
    clips, rois = make_input(golden["input"]["clip_shape"]), torch.tensor(golden["boxes"])
    compare_stages(case, model.backbone(clips))
    inputs = [{"clip": clip, "boxes": Boxes(rois[rois[:, 0] == i, 1:])} for i, clip in enumerate(clips)]
    results = [iter(result["instances"].scores) for result in model(inputs)]
    scores = torch.stack([next(results[int(i)]) for i in rois[:, 0]])  # in the order of the file
    compare(case, "out", scores)


@torch.no_grad()
@pytest.mark.parametrize("case", ["slow_8x8_r50", "i3d_nln_8x8_r50"])
def test_pyslowfast_without_boxes(case):
    model = golden_model(case)
    features = model.backbone(make_input(read_keys(case)["input"]["clip_shape"]))
    compare_stages(case, features)
    logits = model.action_head.classifier(features["res5"].mean((2, 3, 4)))
    compare(case, "head.projection", logits[:, None, None, None])


@pytest.mark.parametrize(
    ("case", "recipe"),
    [
        ("slowfast_r50_detection_keys", "slowfast_8x8_R50.yaml"),
        ("slow_r50_detection_keys", "slow_4x16_R50.yaml"),
    ],
)
def test_pytorchvideo_fits(case, recipe):
    model = build_model(read_config(recipe=recipe))
    report = nlnet_d2.load_weights(model, golden_state_dict(read_keys(case)))
    assert not (report.missing or report.unexpected or report.mismatched)


def test_losses():
    model = tiny_model()
    losses = model([make_clip(TWO), make_clip(TWO[:1])])
    assert set(losses) == {"loss_action"}
    losses["loss_action"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_loss_is_the_mean_cross_entropy():
    logits, actions = torch.randn(3, CLASSES), torch.randint(0, 2, (3, CLASSES))
    bce = F.binary_cross_entropy(logits.sigmoid(), actions.float(), reduction="none")

    def loss(**options):
        head = ActionHead(SHAPES, num_classes=CLASSES, in_features=["slow"], **options)
        return head.losses(logits, actions)["loss_action"]

    torch.testing.assert_close(loss(), bce.mean())
    torch.testing.assert_close(loss(loss_weight=2.0), 2 * bce.mean())
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0])
    torch.testing.assert_close(loss(class_weights=weights.tolist()), (bce * weights).mean())
    p = torch.where(actions == 1, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(loss(focal_gamma=2.0), ((1 - p) ** 2 * bce).mean())


def test_loss_survives_extreme_logits_in_mixed_precision():
    head = ActionHead(SHAPES, num_classes=CLASSES, in_features=["slow"])
    logits = torch.full((2, CLASSES), -200.0, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head.losses(logits, torch.ones(2, CLASSES))["loss_action"]
    loss.backward()
    assert loss.item() == pytest.approx(200) and logits.grad.isfinite().all() and logits.grad.abs().min() > 0


def test_mixed_precision():
    model, inputs = tiny_model().eval(), [make_clip(TWO)]
    with torch.no_grad():
        exact = model(inputs)[0]["instances"].scores
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(inputs)[0]["instances"].scores
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, atol=0.02, rtol=0)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(inputs)["loss_action"]
    loss.backward()
    assert loss.isfinite()


def test_precise_statistics():
    """fvcore's precise BN, Detectron2's ``TEST.PRECISE_BN``, runs on the model with its boxes."""
    model, inputs = tiny_model(), make_clip(TWO)
    update_bn_stats(model, [[inputs], [inputs]], num_iters=2)
    norm = model.backbone.slow.stem.conv1.norm
    with torch.no_grad():
        clip = model.preprocess([inputs]).tensor[:, :, slow_frames(8, 4)]
        x = F.conv3d(clip, model.backbone.slow.stem.conv1.weight, stride=(1, 2, 2), padding=(0, 3, 3))
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3, 4)), atol=1e-5, rtol=1e-4)


def test_no_boxes_in_training():
    model = tiny_model()
    loss = model([make_clip([]), make_clip([])])["loss_action"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_no_boxes_in_inference():
    model = tiny_model().eval()
    with torch.no_grad():
        none, two = (x["instances"] for x in model([make_clip([]), make_clip(TWO)]))
    assert none.scores.shape == (0, CLASSES) and len(none.pred_boxes) == 0
    assert two.scores.shape == (2, CLASSES)


def test_results_are_in_pixels_of_the_output():
    boxes = [[8, 8, 8, 20], *TWO, [-10, -10, 90, 90]]  # also one without area and one larger than the frame
    model = tiny_model().eval()
    with torch.no_grad():
        result = model([make_clip(boxes, height=48, width=64) | {"height": 96, "width": 192}])[0]["instances"]
    assert result.image_size == (96, 192)
    expected = torch.tensor(boxes, dtype=torch.float32) * torch.tensor([3, 2, 3, 2])
    torch.testing.assert_close(result.pred_boxes.tensor, expected)
    assert ((result.scores > 0) & (result.scores < 1)).all()


def test_clips_of_different_size():
    """A clip is scored as it is alone, but for what its border sees of the padding."""
    model = tiny_model().eval()
    small, large = make_clip(TWO, height=48, width=64), make_clip(TWO[:1], height=80, width=112)
    with torch.no_grad():
        both = model([small, large])
        alone = model([small])[0]["instances"].scores, model([large])[0]["instances"].scores
    torch.testing.assert_close(both[1]["instances"].scores, alone[1])
    torch.testing.assert_close(both[0]["instances"].scores, alone[0], atol=0.05, rtol=0)
    assert both[0]["instances"].image_size == (48, 64)


def test_bytes_and_floats_are_the_same():
    model, inputs = tiny_model().eval(), make_clip(TWO)
    with torch.no_grad():
        scores = [
            model([inputs | {"clip": clip}])[0]["instances"].scores
            for clip in (inputs["clip"], inputs["clip"].float())
        ]
    assert torch.equal(*scores)


def test_normalisation_and_padding():
    model = ActionRCNN(backbone=SlowFast(depth=14), action_head=nn.Identity(), **NORMALISATION)
    grey = torch.full((3, 4, 10, 12), 114.75)
    clips = model.preprocess([{"clip": grey}, {"clip": torch.full((3, 4, 6, 20), 255.0)}])
    assert clips.tensor.shape == (2, 3, 4, 10, 20) and clips.image_sizes == [(10, 12), (6, 20)]
    assert not clips.tensor[0].any() and not clips.tensor[1, :, :, 6:].any()
    torch.testing.assert_close(clips.tensor[1, :, :, :6], torch.full((3, 4, 6, 20), 140.25 / 57.375))


def run_head(maps, boxes, sizes=((32, 48),), **options) -> torch.Tensor:
    """Logits with a classifier that returns the features it gets."""
    names = list(maps)
    channels = sum(SHAPES[n].channels for n in names) * (2 if options.get("frame_context") else 1)
    head = ActionHead(SHAPES, num_classes=channels, in_features=names, **options).eval()
    head.classifier.weight.data = torch.eye(channels)
    return head(maps, [Boxes(torch.tensor(b)) for b in boxes], sizes)


def test_head_pools_over_time_then_space():
    maps = {"slow": torch.randn(1, 6, 4, 2, 3), "fast": torch.randn(1, 2, 16, 2, 3)}
    box = [[[0.0, 0.0, 48.0, 32.0]]]
    flat = {"slow": maps["slow"].mean(2, keepdim=True), "fast": maps["fast"].mean(2, keepdim=True)}
    torch.testing.assert_close(run_head(maps, box), run_head(flat, box))
    still = {"slow": torch.arange(6.0).view(1, 6, 1, 1, 1).expand(1, 6, 4, 2, 3)}
    torch.testing.assert_close(run_head(still, box), torch.arange(6.0)[None])
    peak = torch.zeros(1, 6, 4, 2, 3)
    peak[:, :, 1] = 4.0
    torch.testing.assert_close(run_head({"slow": peak}, box), torch.full((1, 6), 1.0))
    torch.testing.assert_close(run_head({"slow": peak}, box, temporal_pool="max"), torch.full((1, 6), 4.0))


def test_roi_align_is_aligned_or_not():
    """On a ramp, the half-pixel shift of the old RoIAlign moves every value by half a step."""
    ramp = {"slow": torch.arange(8.0).view(1, 1, 1, 1, 8).expand(1, 6, 1, 8, 8)}
    box = [[[32.0, 32.0, 96.0, 96.0]]]
    aligned = run_head(ramp, box, sizes=[(128, 128)])
    shifted = run_head(ramp, box, sizes=[(128, 128)], pooler_type="ROIAlign")
    torch.testing.assert_close(shifted, aligned + 0.5)


def test_frame_context_is_the_largest_average_of_a_grid():
    """As mmaction2 pools its global context, which its published classifiers were trained on."""
    x = torch.arange(24.0).view(1, 1, 1, 4, 6).expand(1, 6, 1, 4, 6)
    box = [[[0.0, 0.0, 96.0, 64.0]]]
    logits = run_head({"slow": x}, box, sizes=[(64, 96)], frame_context=True, pooler_resolution=2)
    corner = x[0, :, 0, 2:, 3:].mean((1, 2))
    torch.testing.assert_close(logits[0, 6:], corner)


def test_frame_context_leaves_the_padding_out():
    maps = {"slow": torch.full((2, 6, 1, 4, 6), 100.0)}
    maps["slow"][0, :, :, :2, :3] = 1.0
    boxes = [[[0.0, 0.0, 48.0, 32.0]], [[0.0, 0.0, 9.0, 9.0], [5.0, 5.0, 9.0, 9.0]]]
    logits = run_head(maps, boxes, sizes=[(30, 40), (64, 96)], frame_context=True)
    assert logits.shape == (3, 12)
    torch.testing.assert_close(logits[:, 6:].mean(1), torch.tensor([1.0, 100.0, 100.0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"clip": torch.zeros(8, 3, 48, 64)},
            r"input 1: 'clip' must be a tensor \(3, T, H, W\).*8, 3, 48, 64",
        ),
        ({"clip": None}, "input 1: 'clip' .* NoneType"),
        ({"clip": torch.zeros(3, 4, 48, 64)}, r"number of frames: \[4, 8\]"),
        ({"boxes": torch.zeros(2, 4)}, "input 1: 'boxes' must be .* Tensor.*MODEL.PEOPLE.NAME"),
    ],
)
def test_wrong_inputs(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().eval()([make_clip(TWO), make_clip(TWO) | change])


def test_wrong_targets():
    model, inputs = tiny_model(), make_clip(TWO)
    with pytest.raises(ValueError, match="input 0: training needs 'instances'"):
        model([{"clip": inputs["clip"]}])
    inputs["instances"].gt_actions = torch.zeros(2, 80)
    with pytest.raises(ValueError, match=r"gt_actions is \(2, 80\), .*NUM_CLASSES 5 need \(2, 5\)"):
        model([inputs])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": ["res5"]}, "MODEL.ACTION_HEAD.IN_FEATURES 'res5' .* known: slow, fast"),
        ({"temporal_pool": "mean"}, "MODEL.ACTION_HEAD.TEMPORAL_POOL 'mean' .* known: avg, max"),
        ({"class_weights": [1.0, 2.0]}, "CLASS_WEIGHTS has 2 factors for 80 classes"),
    ],
)
def test_wrong_head(options, message):
    with pytest.raises(ValueError, match=message):
        ActionHead(SHAPES, **{"in_features": ["slow"]} | options)


def test_it_learns():
    """Right or left: a bright square that moves, on the same frames in the opposite order."""
    clip = torch.zeros(3, 8, 48, 64)
    for t in range(8):
        clip[:, t, 16:32, 6 * t : 6 * t + 16] = 255.0
    inputs = [make_clip([[0, 8, 64, 40]]) | {"clip": c} for c in (clip, clip.flip(1))]
    for i, x in enumerate(inputs):
        x["instances"].gt_actions = F.one_hot(torch.tensor([i]), CLASSES)
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        loss = model(inputs)["loss_action"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def joint_model() -> ActionRCNN:
    narrow = ["MODEL.RPN.CONV_DIMS", [32], "MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 32]
    any_score = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    return tiny_model(*narrow, *any_score, recipe="slowfast_8x8_R50_joint.yaml")


def test_joint_mode_trains_everything():
    model = joint_model()
    with EventStorage():  # the RPN reports to it
        losses = model([make_clip(TWO), make_clip(TWO[:1], height=64)])
    assert {"loss_action", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"} == set(losses)
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_joint_mode_finds_people():
    model, inputs = joint_model().eval(), make_clip(TWO)
    with torch.no_grad():
        given = model([inputs])[0]["instances"]
        found = model([{"clip": inputs["clip"], "height": 96, "width": 128}])[0]["instances"]
    assert len(given) == 2 and not given.has("person_scores")
    assert len(found) > 0 and found.scores.shape == (len(found), CLASSES)
    assert found.person_scores.shape == (len(found),) and found.image_size == (96, 128)
    assert found.pred_boxes.tensor.max() > 64


def test_boxes_that_are_given_stand_beside_a_clip_without_any():
    model, inputs = joint_model().eval(), make_clip(TWO)
    with torch.no_grad():
        alone = model([inputs])[0]["instances"]
        given, found = (
            output["instances"]
            for output in model([inputs, {"clip": inputs["clip"], "height": 48, "width": 64}])
        )
    torch.testing.assert_close(given.pred_boxes.tensor, alone.pred_boxes.tensor)
    torch.testing.assert_close(given.scores, alone.scores, atol=1e-5, rtol=1e-4)
    assert not given.has("person_scores") and found.person_scores.shape == (len(found),)


class OneBox(nn.Module):
    """A detector that remembers what it saw, and finds a person, an unlikely person and a dog."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs):
        self.seen, self.was_training = inputs, self.training
        found = Instances((inputs[0]["height"], inputs[0]["width"]))
        found.pred_boxes = Boxes(torch.tensor([[4.0, 4.0, 30.0, 40.0], [0, 0, 9, 9], [5, 5, 20, 20]]))
        found.scores, found.pred_classes = torch.tensor([0.9, 0.5, 0.99]), torch.tensor([0, 0, 16])
        return [{"instances": found} for _ in inputs]


def test_an_attached_detector_stays_as_it_is():
    model = tiny_model()
    model.people = FrozenDetector(detector=OneBox(), min_size=96, max_size=200)
    inputs = make_clip(TWO)
    assert set(model.train()([inputs])) == {"loss_action"}
    assert not model.people.detector.training and not model.people.detector.scale.requires_grad
    model.eval()
    with torch.no_grad():
        found = model([{"clip": inputs["clip"]}])[0]["instances"]
        expected = model([make_clip(TWO[:1]) | {"clip": inputs["clip"]}])[0]["instances"]
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.person_scores.tolist() == pytest.approx([0.9])
    seen = model.people.detector.seen[0]
    assert seen["image"].shape == (3, 96, 128) and (seen["height"], seen["width"]) == (48, 64)
    blue = inputs["clip"][2, 4].float()
    torch.testing.assert_close(seen["image"][0].mean(), blue.mean(), atol=2.0, rtol=0)


RECIPE_PARAMETERS = {
    "Base-Slow": 31_798_416,
    "Base-SlowFast": 33_828_888,
    "i3d_nl_R50": None,
    "slow_4x16_R50": 31_798_416,
    "slow_8x8_R50": 31_798_416,
    "slowfast_16x8_R101_NL": 59_342_488,
    "slowfast_4x16_R50": 33_742_616,
    "slowfast_8x8_R101_NL": 59_342_488,
    "slowfast_8x8_R50": 33_828_888,
    "slowfast_8x8_R50_GN": 33_828_888,
    "slowfast_8x8_R50_detector": None,
    "slowfast_8x8_R50_joint": None,
    "slowfast_8x8_R50_max_focal": 33_828_888,
}


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_recipes(recipe):
    """They build without memory, and have the published number of parameters where there is one."""
    cfg = read_config("MODEL.DEVICE", "meta", recipe=f"{recipe}.yaml")
    with torch.device("meta"):
        model = build_model(cfg)
    expected = RECIPE_PARAMETERS[recipe]
    assert expected in (None, sum(p.numel() for p in model.parameters()))
    assert all(shape.stride == 16 for shape in model.backbone.output_shape().values())


@pytest.mark.parametrize(
    ("recipe", "frames", "stride", "slow_frames"),
    [
        ("slow_4x16_R50", 4, 16, 4),
        ("slow_8x8_R50", 8, 8, 8),
        ("slowfast_4x16_R50", 32, 2, 4),
        ("slowfast_8x8_R50", 32, 2, 8),
        ("slowfast_16x8_R101_NL", 64, 2, 16),
        ("i3d_nl_R50", 32, 2, 16),
    ],
)
def test_clips_of_recipes(recipe, frames, stride, slow_frames):
    """T x tau of the name: frames that the slow, or only, pathway has after res5, and those of the clip."""
    cfg = read_config("MODEL.DEVICE", "meta", recipe=f"{recipe}.yaml")
    assert (frames, stride) == (cfg.INPUT.CLIP.NUM_FRAMES, cfg.INPUT.CLIP.STRIDE)
    with torch.device("meta"):
        features = build_model(cfg).backbone(torch.empty(1, 3, frames, 32, 32))
    assert next(iter(features.values())).shape[2] == slow_frames
