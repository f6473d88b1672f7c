"""A network with the weights of a golden case, which come through our converter."""

import torch
from deterministic import golden_state_dict, make_input, read_keys
from torch import nn

from nlnet_d2 import load_weights


def golden_network(name: str, model: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    """The model, to which the weights of the case belong without any left over, and the input of the case."""
    case = read_keys(name)
    report = load_weights(model.eval(), golden_state_dict(case))
    assert set(report.used) == set(case["keys"]) and not report.missing and not report.unexpected
    return model, make_input(case["input"]["shape"])
