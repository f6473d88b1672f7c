"""Exported detectors give what the original gives, or are refused."""

import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from nlnet_d2.analysis.zoo import read_config
from nlnet_d2.cli.export import main, prepared
from nlnet_d2.config.zoo import find_config
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.inference import export as exporting
from nlnet_d2.inference.export import TOLERANCE, export

MODELS = {
    "context": ("mask_rcnn_nl_shapes", {"MODEL.ROI_MASK_HEAD.NORM": ""}),
    "vitdet": (
        "mask_rcnn_vitdet_shapes",
        {
            "MODEL.ROI_MASK_HEAD.NAME": "LayerNormMaskHead",
            "MODEL.ROI_MASK_HEAD.NORM": "LN",
            "MODEL.VIT.WINDOW_SIZE": 7,  # which does not divide the map of 20 x 20
        },
    ),
}
SIZES = ((96, 128), (128, 96), (64, 64))


def config(name, **more):
    recipe, options = MODELS[name]
    cfg = read_config(find_config(recipe))
    options = options | {"MODEL.DEVICE": "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0} | more
    options["TEST.DETECTIONS_PER_IMAGE"] = 20
    cfg.merge_from_list([word for pair in options.items() for word in pair])
    return cfg


def model_of(cfg):
    """Random weights, none of which are zero, so that blocks that start as the identity do something; and
    decided ones in the last layers, so that no two objects score alike."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for parameter in model.parameters():
        if parameter.numel() and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    for name, layer in model.named_modules():
        if name.endswith(("cls_score", "objectness_logits", "anchor_deltas", "bbox_pred")):
            nn.init.normal_(layer.weight, std=0.1)
    return model


def pictures(*sizes):
    return [torch.randint(0, 256, (3, *size)).float() for size in sizes]


@pytest.mark.parametrize("suffix", ["ts", "onnx"])
@pytest.mark.parametrize("name", MODELS)
def test_exported_models_agree_at_several_sizes(name, suffix, tmp_path):
    if suffix == "onnx":
        pytest.importorskip("onnxruntime", reason="needs pip install onnx onnxruntime")
    path = tmp_path / f"model.{suffix}"
    model = model_of(config(name))
    differences = export(model, path, pictures(*SIZES))
    assert list(differences) == ["pred_boxes", "pred_classes", "pred_masks", "scores", "image_size"]
    assert max(differences.values()) <= TOLERANCE and path.exists()
    if suffix == "ts":
        image = pictures((80, 112))[0]
        boxes, _, masks, scores, size = torch.jit.load(path)(image)
        expected = model.inference([{"image": image}], do_postprocess=False)[0]
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(scores, expected.scores, rtol=1e-3, atol=1e-5)
        assert len(masks) == len(expected) and size.tolist() == [80, 112]


@pytest.mark.parametrize("name", MODELS)
def test_a_picture_without_objects(name, tmp_path, caplog):
    pytest.importorskip("onnxruntime", reason="needs pip install onnx onnxruntime")
    model = model_of(config(name, **{"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0}))
    export(model, tmp_path / "model.onnx", pictures(*SIZES[:2]))
    assert "Nothing is found in a picture of 96 x 128" in caplog.text


def test_a_file_that_gives_other_results_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_read_torchscript", lambda path: model_of_noise)

    def model_of_noise(image):
        return [
            torch.zeros(20, 4),
            torch.zeros(20),
            torch.zeros(20, 1, 28, 28),
            torch.zeros(20),
            torch.zeros(2),
        ]

    path = tmp_path / "model.ts"
    with pytest.raises(ConfigError, match="cannot be exported so: pred_boxes at 96 x 128 differs by"):
        export(model_of(config("context")), path, pictures(*SIZES[:2]))
    assert not path.exists()


def test_what_cannot_be_exported_says_so_at_once(tmp_path):
    images = pictures(*SIZES[:2])
    with pytest.raises(ConfigError, match="Linear cannot be exported: only GeneralizedRCNN can"):
        export(nn.Linear(1, 1), tmp_path / "model.ts", images)
    model = model_of(config("context", **{"MODEL.ROI_MASK_HEAD.NORM": "GN"}))
    with pytest.raises(ConfigError, match="the mask_head has GN, which onnxruntime does not run"):
        export(model, tmp_path / "model.onnx", images)
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.ts or \.onnx"):
        export(model, tmp_path / "model.engine", images)


def test_absent_onnx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="get it with: pip install onnx onnxruntime"):
        export(model_of(config("context")), tmp_path / "model.onnx", pictures(*SIZES[:2]))


def test_command(tmp_path, capsys):
    picture, weights = tmp_path / "a.png", tmp_path / "w.pth"
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8))
    cfg = config("context")
    torch.save({"model": model_of(cfg).state_dict()}, weights)
    shared = ["--config-file", "mask_rcnn_nl_shapes", "--image", str(picture)]
    options = ["MODEL.ROI_MASK_HEAD.NORM", "", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.WEIGHTS"]
    options += [str(weights), "INPUT.MIN_SIZE_TEST", "64", "DATASETS.TRAIN", "[]", "DATASETS.TEST", "[]"]
    assert main([*shared, "--output", str(tmp_path / "m.ts"), *options]) == 0
    printed = capsys.readouterr().out
    assert "compared at 64 x 80 and 48 x 60 pixels" in printed and "pred_masks" in printed
    assert main([*shared, "--output", str(tmp_path / "m.trt"), *options]) == 2
    missing = ["--config-file", "mask_rcnn_nl_shapes", "--image", str(tmp_path / "no.png")]
    assert main([*missing, "--output", str(tmp_path / "m.ts"), *options]) == 3


def test_the_pictures_differ_where_the_longer_side_decides(tmp_path):
    picture = str(tmp_path / "a.png")
    cv2.imwrite(picture, np.zeros((80, 100, 3), np.uint8))
    images = prepared(picture, config("context", **{"INPUT.MIN_SIZE_TEST": 64, "INPUT.MAX_SIZE_TEST": 64}))
    assert [tuple(image.shape) for image in images] == [(3, 51, 64), (3, 38, 48)]
