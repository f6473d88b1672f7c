"""The rule for deterministic weights, against the check values published with the golden files."""

import re

import pytest
import torch
from deterministic import compare, golden_state_dict, make_input, make_tensor, read_keys


def test_check_value():
    tensor = make_tensor("s1.pathway0_stem.conv.weight", (64, 3, 1, 7, 7))
    assert tensor.double().abs().sum().item() == pytest.approx(620.41691597, abs=1e-7)


def test_state_dict_skips_integers_and_applies_scales():
    case = read_keys("gcnet_nonlocal2d_dot_product")
    state = golden_state_dict(case)
    assert sorted(state) == sorted(case["keys"])
    pattern, factor = case["weight_scale_overrides"][0]
    name = "theta.conv.weight"
    assert re.search(pattern, name)
    assert torch.equal(state[name], make_tensor(name, case["keys"][name]) * factor)
    assert "bn1.num_batches_tracked" not in golden_state_dict(read_keys("resnet50_keys"))


def test_input_has_the_recorded_fingerprint():
    fingerprint = read_keys("gcnet_r50_r16_c3-c5")["input"]["fingerprint"]
    x = make_input(fingerprint["shape"])
    assert x.flatten()[:4].tolist() == fingerprint["first4"]
    assert x.double().abs().sum().item() == pytest.approx(fingerprint["abs_sum"], rel=1e-9)


def test_compare_refuses_a_wrong_output():
    with pytest.raises(AssertionError, match="standard deviations|shape"):
        compare(
            "context_block_att_add", "out", make_input(read_keys("context_block_att_add")["outputs"]["out"])
        )
