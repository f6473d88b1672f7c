"""Parameters, FLOPs, activations and attention maps of a model, without weights, data or computation.

Everything runs on PyTorch's meta device, which knows shapes only, so that the largest model takes seconds.
fvcore's counters trace the model, which needs values, and know no attention: here PyTorch's own formulas are
applied to the operators that run. As in fvcore, one multiply-add counts as one FLOP.
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from nlnet_d2.modeling.action_rcnn import ActionRCNN

BOXES = 1000  # RPN.POST_NMS_TOPK_TEST of Detectron2's FPN configs
DETECTIONS = 100  # TEST.DETECTIONS_PER_IMAGE
RULE = (
    "1 multiply-add = 1 FLOP. Counted: convolutions, linear layers and matrix products, those of attention "
    "included. Not counted: normalisation, activation functions, softmax, pooling, resizing, RoIAlign, "
    f"post-processing. One image, with {BOXES} boxes in the box heads and {DETECTIONS} in the mask and "
    "keypoint heads; or one clip with one given box. Frozen batch normalisation has no parameters, other "
    "frozen layers have. backbone_params is without the feature pyramid."
)
SOFTMAX = torch.ops.aten._softmax
DEFORM_CONV = torch.ops.torchvision.deform_conv2d
DETECTORS = (GeneralizedRCNN, DenseDetector, ActionRCNN)  # DenseDetector: RetinaNet, FCOS


@dataclass(frozen=True)
class Complexity:
    """What ``measure`` found, for one image or clip.

    Attributes:
        params: parameters of the model.
        backbone_params: those of the backbone, without the feature pyramid.
        flops: multiply-adds; RULE says what is counted.
        activations: elements of the outputs of what is counted.
        attention_bytes: float32 size of the maps of all softmaxes, if they were formed and kept. (Fused
            attention forms none of them.)
        modules: (params, flops) by name of the module.
    """

    params: int
    backbone_params: int
    flops: int
    activations: int
    attention_bytes: int
    modules: dict[str, tuple[int, int]]


def build_on_meta(cfg: CfgNode) -> nn.Module:
    """The model of ``cfg`` on the meta device, in evaluation mode."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg).eval()


def measure(model: nn.Module, size: tuple[int, ...]) -> Complexity:
    """Count on one input; the network computes nothing, for it is on the meta device.

    Args:
        model: one of ``DETECTORS``, or any module that takes one tensor, all on the meta device.
        size: of the input without its batch dimension, for example (3, H, W) or (3, T, H, W).
    """
    tally = _Tally()
    with torch.no_grad(), tally.tracker, tally, _Attention(tally):
        _Network(model)(torch.empty(1, *size, device="meta"))
    return Complexity(
        params=_count_params(model),
        backbone_params=_count_params(_bare_backbone(model)),
        flops=tally.flops["Global"],
        activations=tally.activations,
        attention_bytes=4 * tally.attention,
        modules=_by_module(model, tally.flops),
    )


class _Tally(TorchDispatchMode):
    """Adds up what the operators cost that run while it is active."""

    def __init__(self):
        super().__init__()
        self.tracker = ModuleTracker()
        self.flops = Counter()  # by module, "Global" for all
        self.activations = 0
        self.attention = 0  # elements of attention maps

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operator = func.overloadpacket
        if operator in flop_registry:
            self.add(flop_registry[operator](*args, **kwargs, out_val=out) // 2, out)
        elif operator is DEFORM_CONV:
            weight = args[1]
            self.add(out.numel() * weight[0].numel(), out)
        elif operator is SOFTMAX:
            self.attention += out.numel()
        return out

    def add(self, flops: int, out: torch.Tensor) -> None:
        """Book an operator under the modules that are running."""
        self.activations += out.numel()
        for module in self.tracker.parents:
            self.flops[module] += flops


class _Attention(TorchFunctionMode):
    """Books scaled_dot_product_attention as its two matrix products, however it would be computed."""

    def __init__(self, tally: _Tally):
        super().__init__()
        self.tally = tally

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args  # (..., L, D), (..., S, D), (..., S, V)
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        pairs = math.prod(query.shape[:-1]) * key.shape[-2]
        self.tally.add(pairs * (query.shape[-1] + value.shape[-1]), out)
        self.tally.attention += pairs
        return out


class _Network(nn.Module):
    """The layers of a model on boxes that need no proposals: as many as RULE says."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> None:
        if isinstance(self.model, GeneralizedRCNN):
            self._run_detector(x)
        elif isinstance(self.model, DenseDetector):
            features = self.model.backbone(x)
            self.model.head([features[name] for name in self.model.head_in_features])
        elif isinstance(self.model, ActionRCNN):
            self.model.backbone(x)
            classifier = self.model.action_head.classifier
            classifier(x.new_empty(1, classifier.in_features))
        else:
            self.model(x)

    def _run_detector(self, x: torch.Tensor) -> None:
        features = self.model.backbone(x)
        rpn, heads = self.model.proposal_generator, self.model.roi_heads
        rpn.rpn_head([features[name] for name in rpn.in_features])
        channels = features[heads.box_in_features[0]].shape[1]

        def pooled(boxes: int, pooler: nn.Module) -> torch.Tensor:
            return x.new_empty(boxes, channels, *pooler.output_size)

        cascade = isinstance(heads.box_head, nn.ModuleList)
        box_heads = heads.box_head if cascade else [heads.box_head]
        predictors = heads.box_predictor if cascade else [heads.box_predictor]
        for box_head, predictor in zip(box_heads, predictors, strict=True):
            predictor(box_head(pooled(BOXES, heads.box_pooler)))
        if heads.mask_on:
            heads.mask_head.layers(pooled(DETECTIONS, heads.mask_pooler))
        if heads.keypoint_on:
            heads.keypoint_head.layers(pooled(DETECTIONS, heads.keypoint_pooler))


def _by_module(model: nn.Module, flops: Counter) -> dict[str, tuple[int, int]]:
    """(params, flops) by name; a module that is not called itself has the FLOPs of its children."""
    modules, of_children = dict(model.named_modules()), Counter()
    totals = {}
    for name in reversed(list(modules)):  # children before parents
        totals[name] = flops.get(f"_Network.model.{name}", of_children[name])
        of_children[name.rpartition(".")[0]] += totals[name]
    return {name: (_count_params(module), totals[name]) for name, module in modules.items() if name}


def _count_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _bare_backbone(model: nn.Module) -> nn.Module:
    """The backbone under its pyramid: the child ``bottom_up`` of an FPN, ``net`` of the pyramids of a ViT."""
    backbone = getattr(model, "backbone", model)
    for child in ("bottom_up", "net"):
        backbone = getattr(backbone, child, backbone)
    return backbone
