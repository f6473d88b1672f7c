"""Weights of Google's ViTs: JAX's names and layouts, against its formulas written out in NumPy."""

import math

import numpy as np
import pytest
import torch
from deterministic import make_tensor
from published_weights import detector, report_of_start, shapes

from nlnet_d2.backbones.vit import ViT
from nlnet_d2.checkpoint import load_weights
from nlnet_d2.checkpoint.checkpointer import CheckpointError

DIM, HEADS, DEPTH, PATCH = 32, 2, 2, 16
ATTENTION, MLP = "MultiHeadDotProductAttention_1", "MlpBlock_3"
erf = np.vectorize(math.erf)


def jax_shapes(dim=DIM, heads=HEADS, depth=DEPTH, patch=PATCH, positions=17):
    """Names and shapes of ``ViT-*.npz``."""
    head, hidden = (heads, dim // heads), 4 * dim
    keys = {"cls": (1, 1, dim), "Transformer/posembed_input/pos_embedding": (1, positions, dim)}
    layers = {"embedding": (patch, patch, 3, dim), "pre_logits": (dim, dim), "head": (dim, 10)}
    norms = ["Transformer/encoder_norm"]
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        norms += [f"{block}/LayerNorm_0", f"{block}/LayerNorm_2"]
        layers |= {f"{block}/{ATTENTION}/{name}": (dim, *head) for name in ("query", "key", "value")}
        layers |= {f"{block}/{ATTENTION}/out": (*head, dim)}
        layers |= {f"{block}/{MLP}/Dense_0": (dim, hidden), f"{block}/{MLP}/Dense_1": (hidden, dim)}
    for name, shape in layers.items():
        heads_of_bias = shape[1:] if name.endswith(("query", "key", "value")) else shape[-1:]
        keys |= {f"{name}/kernel": shape, f"{name}/bias": heads_of_bias}
    return keys | {f"{name}/{part}": (dim,) for name in norms for part in ("scale", "bias")}


def jax_weights(**sizes):
    weights = {
        name: make_tensor(name.replace("kernel", "weight"), shape).numpy()
        for name, shape in jax_shapes(**sizes).items()
    }
    return {name: array + name.endswith("scale") for name, array in weights.items()}


def tiny_vit(**changes):
    sizes = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "img_size": 64, "pretrain_img_size": 64}
    windows = {"window_size": 0, "global_block_indexes": [], "use_rel_pos": False}
    return ViT(**(sizes | windows | changes)).eval()


def jax_forward(weights, image):
    """Google's encoder up to its last norm, for an image (H, W, 3), without the class token: (T, C)."""

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6)
        return scaled * weights[f"{name}/scale"] + weights[f"{name}/bias"]

    def layer(equation, x, name):
        return np.einsum(equation, x, weights[f"{name}/kernel"]) + weights[f"{name}/bias"]

    rows, columns = (size // PATCH for size in image.shape[:2])
    patches = image.reshape(rows, PATCH, columns, PATCH, 3)
    x = layer("hpwqc,pqcd->hwd", patches, "embedding").reshape(rows * columns, DIM)
    x = x + weights["Transformer/posembed_input/pos_embedding"][0, 1:]
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}"
        y = norm(x, f"{block}/LayerNorm_0")
        q, k, v = (layer("tc,chd->thd", y, f"{block}/{ATTENTION}/{n}") for n in ("query", "key", "value"))
        logits = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(DIM // HEADS)
        attention = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        y = np.einsum("hqk,khd->qhd", attention, v)
        x = x + layer("qhd,hdc->qc", y, f"{block}/{ATTENTION}/out")
        y = layer("tc,cd->td", norm(x, f"{block}/LayerNorm_2"), f"{block}/{MLP}/Dense_0")
        x = x + layer("td,dc->tc", y * (1 + erf(y / np.sqrt(2))) / 2, f"{block}/{MLP}/Dense_1")
    return x


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_outputs_are_those_of_the_formulas(tmp_path, prefix):
    weights, image = jax_weights(), np.random.default_rng(0).normal(size=(64, 64, 3))
    np.savez(tmp_path / "ViT.npz", **{prefix + name: array for name, array in weights.items()})
    model = tiny_vit()
    report = load_weights(model, tmp_path / "ViT.npz")
    assert report.origin == "vit-jax" and not report.missing and not report.leftovers()
    names = ["cls", *(f"{n}/{part}" for n in ("pre_logits", "head") for part in ("kernel", "bias"))]
    norm = [f"Transformer/encoder_norm/{part}" for part in ("scale", "bias")]
    assert set(report.dropped) == {prefix + name for name in names + norm}
    found = model.double()(torch.from_numpy(image).permute(2, 0, 1)[None])["last_feat"]
    expected = jax_forward({name: array.astype(np.float64) for name, array in weights.items()}, image)
    np.testing.assert_allclose(found[0].flatten(1).t().detach().numpy(), expected, atol=1e-10)


@pytest.mark.parametrize(
    "config, sizes",
    [
        ("mask_rcnn_vitdet_b_100ep", {"dim": 768, "heads": 12, "depth": 12, "positions": 577}),
        ("mask_rcnn_vitdet_l_100ep", {"dim": 1024, "heads": 16, "depth": 24, "positions": 197}),
    ],
)
def test_published_sizes_start_a_detector(config, sizes):
    """Of 384 and of 224 px: all of the file fits, and a detector lacks what it always lacks."""
    model = detector(file=f"configs/coco/{config}.yaml")
    report = report_of_start(model, shapes(jax_shapes(**sizes)))
    assert report.origin == "vit-jax" and not report.unexpected and not report.mismatched
    backbone = [name for name in report.missing if name.startswith("backbone.net.")]
    assert len(backbone) == 2 * sizes["depth"] and all("rel_pos" in name for name in backbone)


def test_patches_and_positions_of_another_size():
    """32 px to 16 px, and 5 x 5 positions to 4 x 4, after the layout is ours."""
    weights = jax_weights(patch=32, positions=26)
    weights["embedding/kernel"][:] = weights["embedding/kernel"][:1, :1]  # constant over a patch
    model = tiny_vit()
    load_weights(model, weights)
    kernel = torch.from_numpy(weights["embedding/kernel"][0, 0]).t()  # (C, 3)
    assert torch.allclose(
        model.patch_embed.proj.weight, kernel[:, :, None, None].expand(-1, -1, 16, 16), atol=1e-6
    )
    token = torch.from_numpy(weights["Transformer/posembed_input/pos_embedding"][:, :1])
    assert model.pos_embed.shape == (1, 17, DIM) and torch.equal(model.pos_embed[:, :1], token)


def test_other_heads_do_not_fit():
    """The matrices would have the same size; timm's files cannot be told apart."""
    with pytest.raises(CheckpointError, match=r"attn\.qkv\.weight \(32, 3, 2, 16\) -> \(96, 32\)"):
        load_weights(tiny_vit(num_heads=4), jax_weights())


@pytest.mark.parametrize("part", ["query", "value"])
def test_a_lost_part_of_the_attention_is_an_error(part):
    weights = jax_weights()
    del weights[f"Transformer/encoderblock_1/{ATTENTION}/{part}/kernel"]
    with pytest.raises(CheckpointError, match=r"tensors of the backbone .*: blocks\.\*\.attn\.qkv\.\*"):
        load_weights(tiny_vit(), weights)
