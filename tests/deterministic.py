"""Deterministic weights, inputs and comparisons for the golden files in ``tests/data/golden``.

A golden file records the outputs of a public reference implementation whose weights followed one rule: each
tensor is random numbers seeded by its own name, scaled by what the last part of the name says it is. Loading
the same tensors through our converter must therefore reproduce the recorded outputs.
"""

import json
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "data" / "golden"


def read_keys(name: str) -> dict:
    """The JSON of a golden case, for example ``read_keys("resnet50_keys")["keys"]``."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def make_tensor(name: str, shape: Sequence[int]) -> torch.Tensor:
    """The float32 tensor that the rule gives to the parameter or buffer ``name``."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    noise = torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        return 1 + 0.1 * noise.abs()
    if last.endswith("weight") and noise.ndim == 1:
        return 1 + 0.1 * noise
    if last.endswith("weight") and noise.ndim > 1:
        return noise * (noise.numel() / noise.shape[0]) ** -0.5
    return noise * (0.1 if last == "running_mean" or last.endswith("bias") else 0.02)


def make_state_dict(
    keys: Mapping[str, Sequence[int]], skip: Collection[str] = (), scales: Sequence[Sequence] = ()
) -> dict[str, torch.Tensor]:
    """Tensors for ``keys`` (name -> shape) but ``skip``; ``scales``: (pattern, factor), first match wins."""
    state = {}
    for name, shape in keys.items():
        if name not in skip:
            factor = next((f for pattern, f in scales if re.search(pattern, name)), 1)
            state[name] = make_tensor(name, shape) * factor
    return state


def golden_state_dict(case: Mapping) -> dict[str, torch.Tensor]:
    """The weights of a golden case, that is of the dict that ``read_keys`` returns."""
    scales = case.get("weight_scale_overrides", ())
    return make_state_dict(case["keys"], case.get("non_float_keys", ()), scales)


def make_input(shape: Sequence[int]) -> torch.Tensor:
    """The input of every golden case: normal noise under seed 0."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))


def compare(npz: str | Path, name: str, tensor: torch.Tensor, tol: float = 1e-3) -> None:
    """Assert that ``tensor`` is output ``name`` of the golden case ``npz`` (a path, or a name in GOLDEN).

    The largest error must stay below ``tol`` standard deviations of the reference, and the sum of absolute
    values over the whole tensor (of which the file keeps only a slice) within 1e-4.
    """
    path = Path(npz) if Path(npz).is_absolute() else (GOLDEN / npz).with_suffix(".npz")
    with np.load(path) as golden:
        expected, step = golden[f"{name}__slice"], int(golden[f"{name}__step"])
        shape, (_, std, abs_sum) = golden[f"{name}__shape"].tolist(), golden[f"{name}__stats"]
    assert list(tensor.shape) == shape, f"{name}: shape {list(tensor.shape)}, reference {shape}"
    flat = tensor.detach().cpu().double().flatten()
    error = np.abs(flat[::step].numpy() - expected).max() / std
    assert error < tol, f"{name}: largest error is {error:.2e} standard deviations, allowed {tol:.0e}"
    ratio = flat.abs().sum().item() / abs_sum
    assert abs(ratio - 1) < 1e-4, f"{name}: sum of absolute values is {ratio:.6f} of the reference"
