"""The attached person detector: its config, its weights, the picture that it sees."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

import nlnet_d2
from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.engine.weights import load_attached, load_complete
from nlnet_d2.modeling.people import FrozenDetector, KeyFrameDetector

ROOT = Path(__file__).parents[2]
TINY_DETECTOR = ROOT / "tests" / "data" / "engine" / "tiny.yaml"  # with keys of this package


def config(*options):
    cfg = get_cfg()
    nlnet_d2.add_nlnet_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / "ava" / "slow_4x16_R50.yaml"))
    tiny = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8]
    tiny += ["MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
    attached = ["MODEL.PEOPLE.NAME", "FrozenDetector", "MODEL.PEOPLE.CONFIG_FILE", str(TINY_DETECTOR)]
    cfg.merge_from_list([*tiny, *attached, *options])
    return cfg


@pytest.fixture
def files(tmp_path):
    """Weights of an action model without its detector, and those of a detector."""
    torch.manual_seed(1)
    state = build_model(config()).state_dict()
    actions, people = tmp_path / "actions.pth", tmp_path / "people.pth"
    prefix = "people.detector."
    own = {name: x for name, x in state.items() if not name.startswith(prefix)}
    torch.save({"model": own}, actions)
    torch.save({"model": {name.removeprefix(prefix): state[name] for name in set(state) - set(own)}}, people)
    return str(actions), str(people), state


def test_its_config_has_our_keys_and_its_weights_are_their_own(files):
    actions, people, state = files
    cfg = config("MODEL.WEIGHTS", actions, "MODEL.PEOPLE.WEIGHTS", people)
    torch.manual_seed(2)
    model = build_model(cfg)
    assert any(".after_add." in name for name, _ in model.people.detector.named_parameters())
    load_complete(model, cfg)
    for name, x in model.state_dict().items():
        torch.testing.assert_close(x, state[name])


def test_weights_of_the_whole_model_hold_the_detector_or_are_refused(files, tmp_path):
    actions, people, state = files
    torch.save({"model": state}, tmp_path / "both.pth")
    cfg = config("MODEL.WEIGHTS", str(tmp_path / "both.pth"))
    load_complete(build_model(cfg), cfg)
    assert not load_attached(build_model(cfg), cfg)
    cfg = config("MODEL.WEIGHTS", actions)
    with pytest.raises(CheckpointError, match="people.detector"):
        load_complete(build_model(cfg), cfg)


def test_weights_of_another_detector(files):
    actions, people, _ = files
    two = {"model": torch.load(people)["model"]}
    two["model"]["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(3, 32)
    torch.save(two, people)
    cfg = config("MODEL.WEIGHTS", actions, "MODEL.PEOPLE.WEIGHTS", people)
    with pytest.raises(CheckpointError, match="people.pth is not of MODEL.PEOPLE.CONFIG_FILE.*cls_score"):
        load_complete(build_model(cfg), cfg)


def test_its_config_by_the_name_of_a_recipe():
    model = build_model(config("MODEL.PEOPLE.CONFIG_FILE", "mask_rcnn_nl_shapes"))
    assert model.people.min_size == 160 and model.people.detector.roi_heads.mask_on


def test_a_config_that_is_nowhere():
    with pytest.raises(ValueError, match="MODEL.PEOPLE.CONFIG_FILE: 'nowhere.yaml' is neither a file nor"):
        build_model(config("MODEL.PEOPLE.CONFIG_FILE", "nowhere.yaml"))


class Watcher(nn.Module):
    def forward(self, inputs):
        self.seen = inputs
        x = inputs[0]
        found = Instances((x["height"], x["width"]), pred_boxes=Boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0]])))
        found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.long)
        return [{"instances": found}]


def test_it_sees_the_key_frame_at_full_size():
    """... and answers in pixels of the clip."""
    detector = FrozenDetector(detector=Watcher(), min_size=96, max_size=200, input_format="RGB")
    clip, frame = torch.zeros(3, 4, 24, 32), torch.full((3, 48, 64), 7, dtype=torch.uint8)

    class Clips:
        tensor = clip[None]

    (people,) = detector([{"clip": clip, "key_frame": frame}], Clips, {})
    (seen,) = detector.detector.seen
    assert seen["image"].shape == (3, 96, 128) and seen["image"].unique().tolist() == [7]
    assert people.image_size == (24, 32)

    stripes = torch.zeros(3, 48, 64)
    stripes[:, :, ::4] = 200.0
    detector.min_size = 12
    detector([{"clip": clip, "key_frame": stripes}], Clips, {})
    torch.testing.assert_close(detector.detector.seen[0]["image"].mean(), torch.tensor(50.0), atol=5, rtol=0)


class Part(nn.Module):
    def forward(self, clips, maps, *rest):
        self.map, self.people = maps["res5"].item(), rest[-1]
        return [], {}


def test_joint_mode_looks_at_the_key_frame():
    """... and learns that people are class 0; the next is the background."""
    finder = KeyFrameDetector(proposal_generator=Part(), roi_heads=Part())
    features = {"res5": torch.arange(4.0).view(1, 1, 4, 1, 1)}
    target = Instances((32, 32), gt_boxes=Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]])))
    finder.losses(None, features, [target])
    for part in finder.children():
        assert part.map == 2 and part.people[0].gt_classes.tolist() == [0]
    finder([], None, features)
    assert finder.roi_heads.map == 2


def test_joint_mode_has_one_class():
    with pytest.raises(ValueError, match="finds people only: set MODEL.ROI_HEADS.NUM_CLASSES to 1"):
        build_model(config("MODEL.PEOPLE.NAME", "KeyFrameDetector", "MODEL.ROI_HEADS.NUM_CLASSES", 2))
