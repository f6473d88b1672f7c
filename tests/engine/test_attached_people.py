"""A training of an action model evaluates with the weights of the person detector that is attached to it."""

import pytest
import tiny_clips as clips
import torch
from detectron2.modeling import build_model
from tiny_run import CONFIG as DETECTOR

from nlnet_d2.analysis.zoo import read_config
from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.engine.config import argument_parser, load_config
from nlnet_d2.engine.trainer import Trainer


@pytest.mark.parametrize("start", ["random", "actions alone"])
def test_a_detector_without_weights_is_refused(tiny_clips, tmp_path, start):
    """A training does not change it, and its evaluation would take what it finds for people."""
    options = []
    if start == "actions alone":
        command = clips.arguments(tiny_clips, tmp_path / "actions")
        trainer = Trainer(load_config(argument_parser().parse_args(command)))
        torch.save({"model": trainer.model.state_dict()}, tmp_path / "actions.pth")
        options = ["MODEL.WEIGHTS", str(tmp_path / "actions.pth")]
    options += ["MODEL.PEOPLE.NAME", "FrozenDetector", "MODEL.PEOPLE.CONFIG_FILE", str(DETECTOR)]
    command = clips.arguments(tiny_clips, tmp_path / "run", *options)
    trainer = Trainer(load_config(argument_parser().parse_args(command)))
    with pytest.raises(CheckpointError, match="PEOPLE.WEIGHTS is empty, and MODEL.WEIGHTS has no people"):
        trainer.resume_or_load(resume=False)


def test_its_weights_are_loaded_when_a_training_begins(tiny_clips, tmp_path):
    torch.manual_seed(5)
    cfg = read_config(DETECTOR)
    cfg.MODEL.DEVICE = "cpu"
    state = build_model(cfg).state_dict()
    torch.save({"model": state}, tmp_path / "people.pth")
    options = ["MODEL.PEOPLE.NAME", "FrozenDetector", "MODEL.PEOPLE.CONFIG_FILE", str(DETECTOR)]
    options += ["MODEL.PEOPLE.WEIGHTS", str(tmp_path / "people.pth")]
    command = clips.arguments(tiny_clips, tmp_path / "run", *options)
    trainer = Trainer(load_config(argument_parser().parse_args(command)))
    trainer.resume_or_load(resume=False)
    for name, x in trainer.model.people.detector.state_dict().items():
        torch.testing.assert_close(x, state[name])
