"""One door for weights of every origin, and what a training refuses to start from."""

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.convert import Conversion, convert
from nlnet_d2.checkpoint.download import local_path
from nlnet_d2.checkpoint.read import read_tensors, select_tensors
from nlnet_d2.checkpoint.report import LoadReport, allowed, grouped

logger = logging.getLogger(__name__)

# Parts of a backbone that a network trained for something else does not have.
NEW_PARTS = (
    r"\.after_\w+\.",  # context blocks
    r"\.conv2_offset\.",  # of deformable convolutions
    r"(^|\.)(fpn_|simfp_|top_block\.)",  # feature pyramids
    r"(^|\.)scale\d_norm\.",  # in front of them
    r"\.rel_pos_[hw]$",
    r"\.residual\.",  # convolutions across windows
)
REMEDY = "If that is wanted, allow it by these patterns (in a training: MODEL.WEIGHTS_ALLOW_MISSING)."


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, torch.Tensor | np.ndarray],
    origin: str | None = None,
    allow_missing: Collection[str] = (),
) -> LoadReport:
    """Load published or own weights into a detector, a backbone or a single block.

    Args:
        source: a file of any container that ``read_tensors`` knows, its https:// or detectron2:// address, or
            a mapping of names to tensors, in any naming that ``checkpoint/sources`` knows.
        origin: name of the naming; None to recognise it.
        allow_missing: globs over names of the model that may stay as they are.

    Returns:
        What was used, is missing, was left over; its ``require_complete`` makes an error of leftovers.

    Raises:
        CheckpointError: the file cannot be read or was refused; its origin is unknown or ambiguous; nothing
            fits; or the backbone of the file is not that of the model. The model is then unchanged.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    named = isinstance(source, Mapping)
    where = "weights" if named else str(source)
    tensors = select_tensors(source) if named else read_tensors(local_path(str(source)))
    try:
        conversion = convert(tensors, model, origin)
        require_backbone(conversion, model, allow_missing)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    model.load_state_dict(conversion.state, strict=False)
    report = conversion.report
    level = logging.WARNING if report.unexpected or report.mismatched else logging.INFO
    logger.log(level, "Loaded %s: %s", where, report)
    return report


def require_backbone(conversion: Conversion, model: nn.Module, allow_missing: Collection[str]) -> None:
    """See that the model's backbone is the file's.

    Heads may differ (other classes). A part of ``NEW_PARTS`` may be missing as a whole, and is then new,
    unless the file is of a trained detector: without a part that it was not trained with, or that got lost.

    Raises:
        CheckpointError: the model would get some of the file's backbone, or some of its own would stay.
    """
    report, placement, own = conversion.report, conversion.placement, list(model.state_dict())
    scope = "backbone." if any(name.startswith("backbone.") for name in own) else ""
    found = [*report.used, *(m.name for m in report.mismatched)]
    may_be_new = () if _is_detector(conversion, scope) else NEW_PARTS
    new = [part for part in may_be_new if not any(re.search(part, name) for name in found)]

    def concerns(name: str) -> bool:
        return name.startswith(scope) and not allowed(name, allow_missing)

    lacking = [
        name
        for name in [*report.missing, *(m.name for m in report.mismatched)]
        if concerns(name) and placement.to_file(name) is not None and not any(re.search(p, name) for p in new)
    ]
    if lacking:
        raise CheckpointError(
            f"{len(lacking)} tensors of the backbone are missing in the file, or have another shape there: "
            f"{grouped(lacking, ', ')}. {REMEDY}\n{report}"
        )
    left = [placement.to_model(conversion.source.rename(name)) for name in report.unexpected]
    stages = {placement.stage(name) for name in own}
    if homeless := [name for name in left if concerns(name) and placement.stage(name) in stages]:
        raise CheckpointError(
            f"the file's backbone has {len(homeless)} tensors that the model's has not: "
            f"{grouped(homeless, ', ')}. Its depth, norm or blocks differ. {REMEDY}\n{report}"
        )


def _is_detector(conversion: Conversion, scope: str) -> bool:
    """Whether the file holds more than a backbone: heads that fit the model, or what is around it."""
    report, placement, source = conversion.report, conversion.placement, conversion.source
    has_heads = any(not name.startswith(scope) for name in report.used)
    return has_heads or any(placement.to_model(source.rename(name)) is None for name in report.dropped)
