"""Suite ``train-step``: losses and gradients of whole models."""

from functools import partial

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from nlnet_d2.backbones.mvit import MViT
from nlnet_d2.backbones.resnet import ContextResNet
from nlnet_d2.backbones.video.slowfast import SlowFast
from nlnet_d2.backbones.vit import ViT
from nlnet_d2.benchmarks import literal
from nlnet_d2.benchmarks.backbones import TINY_MVIT, TINY_SLOWFAST, TINY_VIT, beside
from nlnet_d2.benchmarks.blocks import BOTH, randomize
from nlnet_d2.benchmarks.measure import Case, Pair
from nlnet_d2.blocks.nonlocal_ import NonLocal
from nlnet_d2.config import add_nlnet_config


def cases(quick: bool) -> list[Case]:
    side, clip = (64, (8, 32, 32)) if quick else (512, (32, 224, 224))
    no_drop = {"drop_path_rate": 0.0}
    backbones = [
        ("ViTDet-B", ViT, no_drop | (TINY_VIT if quick else {}), (side, side)),
        ("MViTv2-T", MViT, no_drop | (TINY_MVIT if quick else {}), (side, side)),
        ("R50 with GN", ContextResNet, {"norm": "GN", "depth": 18 if quick else 50}, (side, side)),
        ("SlowFast R50 8x8", SlowFast, TINY_SLOWFAST if quick else {}, clip),
    ]
    rows = [
        Case(
            name=f"{name} with activation checkpointing, {size[-1]} px",
            alternative="all activations kept",
            build=partial(build_checkpointed, net, options, size),
            work=size[-1],
            unit="pixels of the side",
        )
        for name, net, options, size in backbones
    ]
    detector = f"Mask R-CNN R50, non-local block at res4, {side} px"
    rows.append(
        Case(
            detector,
            "literal form of the block",
            partial(build_detector, quick, side),
            side,
            rows[0].unit,
            1e-2,
        )
    )
    return rows


def build_checkpointed(net: type, options: dict, size: tuple[int, ...], device) -> Pair:
    kept, recomputed = (
        randomize(net(use_act_checkpoint=flag, **options)).to(device) for flag in (False, True)
    )
    recomputed.load_state_dict(kept.state_dict())
    image = torch.randn(1, 3, *size, device=device)
    return beside(kept, recomputed, BOTH, image)


def build_detector(quick: bool, side: int, device) -> Pair:
    """The losses are compared; both sides draw the same proposals."""
    cfg = get_cfg()
    add_nlnet_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = device.type, True, "bitmask"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_context_resnet_fpn_backbone", 2
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.IN_FEATURES = "StandardROIHeads", ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
    cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = "MaskRCNNConvUpsampleHead", 4
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = (18, 64) if quick else (50, 256)
    cfg.MODEL.CONTEXT.BLOCKS = [{"NAME": "NonLocal", "AT": {"res4": [-1]}}]
    model = build_model(cfg).train()
    block = next(m for m in model.modules() if isinstance(m, NonLocal))
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run(forward) -> list[torch.Tensor]:
        block.forward = forward
        with EventStorage():  # Detectron2's heads log into it
            losses = model(batch(side))
        torch.autograd.grad(sum(losses.values()), parameters, allow_unused=True)
        return [loss.detach() for loss in losses.values()]

    ours, other = partial(NonLocal.forward, block), partial(literal.non_local, block)
    return Pair(partial(run, ours), partial(run, other), lambda: torch.manual_seed(0))


def batch(side: int) -> list[dict]:
    """One image with one object."""
    instances = Instances((side, side))
    corner = side // 4
    instances.gt_boxes = Boxes(torch.tensor([[corner, corner, 3 * corner, 3 * corner]], dtype=torch.float32))
    instances.gt_classes = torch.tensor([0])
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, corner : 3 * corner, corner : 3 * corner] = True
    instances.gt_masks = BitMasks(mask)
    return [{"image": 255 * torch.rand(3, side, side), "instances": instances}]
