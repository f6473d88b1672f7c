"""Runs on clips: the command line, data of one's own, evaluation, exact resume."""

import json
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_clips import arguments
from tiny_run import TORCHRUN, train_net

from nlnet_d2.engine.run import main
from nlnet_d2.engine.step import TrainStep
from nlnet_d2.evaluation.ava import DETECTIONS_FILE, evaluate_ava

NAMES = ("tiny_clips_train", "tiny_clips_val")


@pytest.fixture(scope="module")
def trained(tiny_clips, tmp_path_factory):
    """OUTPUT_DIR of a run of four iterations with an evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    ended = train_net(*arguments(tiny_clips, folder))
    assert ended.returncode == 0, ended.stderr
    return folder


def metrics(folder) -> dict:
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {key: value for row in rows for key, value in row.items()}


def test_training_ends_with_the_number_of_the_detections_file(trained, tiny_clips):
    found = metrics(trained)
    assert {"loss_action", "action/mAP", "action/PERSON_MOVEMENT", "action/AP-carry"} <= set(found)
    main(arguments(tiny_clips, trained, flags=("--eval-only", "--resume")))  # registers the data here
    source = MetadataCatalog.get("tiny_clips_val").source
    detections = trained / "inference" / DETECTIONS_FILE
    again = evaluate_ava(source.annotations, detections, source.label_map, protocol="pyslowfast")
    assert found["action/mAP"] == pytest.approx(100 * again["mAP"], abs=1e-9)


def test_evaluation_by_one_and_two_processes(trained, tiny_clips, tmp_path):
    """The same detections, however the frames were dealt out."""
    weights = ("MODEL.WEIGHTS", str(trained / "model_final.pth"))
    rows = []
    for name, launcher in (("one", ()), ("two", TORCHRUN)):
        command = arguments(tiny_clips, tmp_path / name, *weights, flags=("--eval-only",))
        ended = train_net(*command, launcher=launcher)
        assert ended.returncode == 0, ended.stderr
        rows.append((tmp_path / name / "inference" / DETECTIONS_FILE).read_text())
    assert rows[0] == rows[1] == (trained / "inference" / DETECTIONS_FILE).read_text()


def test_classes_follow_from_the_label_map(trained):
    weights = torch.load(trained / "model_final.pth", weights_only=True)["model"]
    assert len(weights["action_head.classifier.bias"]) == 9


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


def killed_and_resumed(data, folder, monkeypatch, options=(), resumed=()) -> None:
    """A run that ends before its last iteration, one after the checkpoint, and its continuation."""
    stock = TrainStep.run_step

    def run_step(self):
        if self.iter == 3:
            raise Killed
        stock(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "run_step", run_step)
        with pytest.raises(Killed):
            main(arguments(data, folder, *options))
    assert main(arguments(data, folder, *options, *resumed, flags=("--resume",))) == 0


def assert_same_model(folder, reference) -> None:
    ours, expected = (
        torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (folder, reference)
    )
    assert ours.keys() == expected.keys()
    assert not [name for name in ours if not torch.equal(ours[name], expected[name])]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_resume_is_exact(trained, tiny_clips, tmp_path, monkeypatch, workers):
    options = ("DATALOADER.NUM_WORKERS", workers, "DATASETS.TEST", "[]")
    killed_and_resumed(tiny_clips, tmp_path, monkeypatch, resumed=options)
    assert_same_model(tmp_path, trained)


def test_resume_is_exact_with_precise_statistics(trained, tiny_clips, tmp_path, monkeypatch):
    options = ("TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2", "TEST.EVAL_PERIOD", "2")
    options = (*options, "DATASETS.TEST", "[]")
    assert main(arguments(tiny_clips, tmp_path / "whole", *options)) == 0
    killed_and_resumed(tiny_clips, tmp_path / "resumed", monkeypatch, options)
    assert_same_model(tmp_path / "resumed", tmp_path / "whole")
    weights = [
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (tmp_path / "whole", trained)
    ]
    name = "backbone.slow.stem.conv1.norm.running_mean"
    assert not torch.equal(*(w[name] for w in weights)), "precise statistics differ from running ones"
    name = "action_head.classifier.weight"
    assert torch.equal(*(w[name] for w in weights)), "and do not touch the training"


# --- what is refused, and how ---


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["DATASETS.TEST", "['coco_2017_val']"], 2, "are clips, coco_2017_val images"),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], 2, "GeneralizedRCNN takes images"),
        (["MODEL.ACTION_HEAD.NUM_CLASSES", "80"], 2, "is 80, but there are 9 classes in tiny_clips_train"),
        (["TEST.AVA_PROTOCOL", "official"], 2, "TEST.AVA_PROTOCOL is activitynet, pyslowfast or mmaction2"),
        (["INPUT.CLIP.WITHOUT_PEOPLE", "skip"], 2, "INPUT.CLIP.WITHOUT_PEOPLE is drop, best or frame"),
        (["INPUT.CLIP.SCALES_TRAIN", "[320, 256]"], 2, "SCALES_TRAIN is [smallest, largest], in pixels, got"),
        (["INPUT.CLIP.STRIDE", "0"], 2, "INPUT.CLIP.STRIDE is 1 or more, got 0"),
        (["INPUT.CLIP.NUM_FRAMES", "5"], 2, "NUM_FRAMES 5 is no multiple of MODEL.VIDEO.ALPHA 4"),
        (["MODEL.PEOPLE.NAME", "FrozenDetectr"], 2, "MODEL.PEOPLE.NAME: nothing is registered"),
        (["MODEL.RESNETS.NORM", "SubBN"], 2, "SubBN takes 8 clips at once: SOLVER.IMS_PER_BATCH = 2 is no "),
        (["INPUT.CLIP.PERSON_SCORE_TEST", "1.1"], 3, "none of 6 key frames has a person"),
        (
            ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
            2,
            "unknown 'RepeatFactorTrainingSampler'",
        ),
    ],
)
def test_wrong_option(tiny_clips, tmp_path, capsys, options, code, message):
    assert main(arguments(tiny_clips, tmp_path, *options)) == code
    assert message in capsys.readouterr().err


def test_clips_that_are_not_there(tmp_path, capsys):
    config = ["--config-file", "configs/ava/slowfast_8x8_R50.yaml", "OUTPUT_DIR", str(tmp_path)]
    assert main(config) == 3
    error = capsys.readouterr().err
    assert "ava_train_v2.2.csv" in error and "DETECTRON2_DATASETS" in error and "REGISTER_AVA" in error


@pytest.fixture
def data(tiny_clips, tmp_path):
    """A copy to spoil; under the names of the other tests, which are forgotten for that."""
    for name in NAMES:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    yield shutil.copytree(tiny_clips, tmp_path / "data")
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_data_are_checked_before_the_training(data, tmp_path, capsys):
    """Bad rows stop the run at once, and all problems are named together."""
    command = arguments(data, tmp_path / "out")
    rows = next(word for word in command if word.endswith("annotations.csv"))
    with open(rows, "a") as file:
        file.write("train_0000,0001,0.1,0.1,0.5,0.5,77,0\ntrain_0000,0001,0.5,0.1,0.1,0.5,1,0\n")
    assert main(command) == 3
    error = capsys.readouterr().err
    assert "2 problem(s)" in error and "action 77" in error and "x1 <= x2" in error
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_video_that_is_damaged_later_ends_the_run(data, tmp_path, capsys):
    """In a loader's process, too; no other clip takes its place."""
    stock = TrainStep.run_step

    def run_step(self):
        for path in data.glob("train*/videos/*.mp4"):
            path.write_bytes(b"nothing")
        stock(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "run_step", run_step)
        assert main(arguments(data, tmp_path / "out", "DATALOADER.NUM_WORKERS", "1")) == 3
    assert "train_000" in capsys.readouterr().err
