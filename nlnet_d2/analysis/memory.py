"""How large an image, or how long a clip, a training step can take in a given memory."""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import nn

from nlnet_d2.layers.attention import use_attention
from nlnet_d2.layers.products import use_onednn

RULE = (
    "Measured: what autograd keeps for the backward pass, in float32, of one image or clip with one object, "
    "on the CPU in the ways of a GPU, at two small sizes; it grows linearly with the pixels or frames. "
    "Computed: weights, gradients, the optimizer's state. Not counted: temporaries and what allocators and "
    "CUDA take; leave 1 to 2 GB for them."
)
SIDES = (256, 384)  # of the images that are measured, in pixels
STEP = 32  # image sides are multiples of it
STATES = {"SGD": 1, "AdamW": 2}  # numbers that the optimizer keeps per weight


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step on one image or clip.

    Attributes:
        states: weights, gradients, the optimizer's state, buffers.
        fixed, slope: kept activations are ``fixed + slope * n``, n being pixels or frames.
        step: the clip's frames are multiples of it; None for images.
        size: side of the clip in pixels.
    """

    states: int
    fixed: float
    slope: float
    step: int | None = None
    size: int | None = None

    def largest(self, available: float) -> int:
        """Largest image side, or number of frames, in ``available`` bytes; 0 if nothing fits."""
        n = max(0.0, (available - self.states - self.fixed) / self.slope)
        return int(n // self.step * self.step) if self.step else int(n**0.5 // STEP * STEP)


def step_memory(cfg: CfgNode) -> StepMemory:
    """Build the model of ``cfg`` on the CPU and run its losses at two sizes."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.FPN.SQUARE_PAD = "cpu", "", 0
    cfg.INPUT.MASK_FORMAT = "bitmask"
    model = build_model(cfg).train()
    if cfg.MODEL.META_ARCHITECTURE == "ActionRCNN":
        step, side = cfg.MODEL.VIDEO.ALPHA, cfg.INPUT.CLIP.CROP_TRAIN or cfg.INPUT.CLIP.SIZE_TEST
        fixed, slope = _line({n: kept_bytes(model, [_clip(cfg, n, side)]) for n in (2 * step, 4 * step)})
        return StepMemory(state_bytes(model, cfg), fixed, slope, step, side)
    fixed, slope = _line({side * side: kept_bytes(model, [_image(cfg, side)]) for side in SIDES})
    return StepMemory(state_bytes(model, cfg), fixed, slope)


def _line(points: dict[int, int]) -> tuple[float, float]:
    (n, y), (m, z) = points.items()
    slope = (z - y) / (m - n)
    return y - slope * n, slope


@use_onednn(False)
@use_attention("augmented")
def kept_bytes(model: nn.Module, inputs: list[dict]) -> int:
    """Bytes of all tensors, but parameters and buffers, that the losses keep for their gradient on a GPU."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with EventStorage(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = model(inputs)  # held until the storages are counted, so that no address is used again
    total = sum(size for address, size in kept.items() if address not in own)
    del losses
    return total


def state_bytes(model: nn.Module, cfg: CfgNode) -> int:
    """Weights and buffers, and for what is trained the gradient and the optimizer's numbers."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    everything = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return everything + trained * (1 + STATES[cfg.SOLVER.OPTIMIZER])


def _image(cfg: CfgNode, side: int) -> dict:
    """A square image with one object."""
    instances = Instances((side, side))
    instances.gt_boxes = Boxes(torch.tensor([[side / 4, side / 4, side * 3 / 4, side * 3 / 4]]))
    instances.gt_classes = torch.tensor([0])
    instances.gt_masks = BitMasks(torch.ones(1, side, side, dtype=torch.bool))
    if cfg.MODEL.KEYPOINT_ON:
        count = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        instances.gt_keypoints = Keypoints(torch.full((1, count, 3), side / 2))
    return {"image": torch.zeros(3, side, side), "instances": instances, "height": side, "width": side}


def _clip(cfg: CfgNode, frames: int, side: int) -> dict:
    """A clip with one person."""
    instances = Instances((side, side))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, side, side]]))
    instances.gt_actions = torch.zeros(1, cfg.MODEL.ACTION_HEAD.NUM_CLASSES)
    clip = torch.zeros(3, frames, side, side)
    return {"clip": clip, "instances": instances, "height": side, "width": side}
