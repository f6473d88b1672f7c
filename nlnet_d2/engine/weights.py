"""The weights of a whole model: MODEL.WEIGHTS, and those of an attached person detector."""

from detectron2.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nlnet_d2.checkpoint import load_weights
from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.report import LoadReport, allowed

ATTACHED = "people.detector.*"


def load_complete(model: nn.Module, cfg: CfgNode) -> None:
    """Load all of a model; the file may hold more, such as a mask head that the model lacks.

    Raises:
        CheckpointError: MODEL.WEIGHTS is empty, cannot be read, or does not hold the whole model.
    """
    if not cfg.MODEL.WEIGHTS:
        raise CheckpointError("MODEL.WEIGHTS is empty: name the weights, such as output/model_final.pth")
    report = load_weights(model, cfg.MODEL.WEIGHTS)
    elsewhere = [ATTACHED] if load_attached(model, cfg) else []
    try:
        report.require_complete(allow_missing=[*report.unexpected, *elsewhere])
    except CheckpointError as error:
        raise CheckpointError(
            f"{cfg.MODEL.WEIGHTS}: {error}. Take the config of its training, OUTPUT_DIR/config.yaml"
        ) from error


def require_attached(cfg: CfgNode, report: LoadReport | None) -> None:
    """See that a person detector without weights of its own got those of MODEL.WEIGHTS.

    Args:
        report: of loading MODEL.WEIGHTS; None where they are empty.

    Raises:
        CheckpointError: it would stay as random as it was built, since a training does not change it.
    """
    people = cfg.MODEL.PEOPLE
    if people.NAME != "FrozenDetector" or people.WEIGHTS:
        return
    if report is None or any(allowed(name, [ATTACHED]) for name in report.missing):
        raise CheckpointError(
            f"MODEL.PEOPLE.WEIGHTS is empty, and MODEL.WEIGHTS has no {ATTACHED}: name the weights of the "
            "person detector, or set MODEL.PEOPLE.NAME to ''"
        )


def load_attached(model: nn.Module, cfg: CfgNode) -> bool:
    """Load MODEL.PEOPLE.WEIGHTS into the person detector that is attached to an action model, if any.

    Returns:
        whether it did.

    Raises:
        CheckpointError: the file cannot be read, or does not hold the whole detector.
    """
    people = cfg.MODEL.PEOPLE
    if people.NAME != "FrozenDetector" or not people.WEIGHTS:
        return False
    model = model.module if isinstance(model, DistributedDataParallel) else model
    report = load_weights(model.people.detector, people.WEIGHTS)
    try:
        report.require_complete(allow_missing=report.unexpected)
    except CheckpointError as error:
        raise CheckpointError(
            f"MODEL.PEOPLE.WEIGHTS: {people.WEIGHTS} is not of MODEL.PEOPLE.CONFIG_FILE: {error}. Take the "
            "config of its training, OUTPUT_DIR/config.yaml"
        ) from error
    return True
