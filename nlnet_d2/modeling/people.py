"""Who finds the people of a clip, where no boxes come with it: all on the key frame, T // 2.

Two ways: ``KeyFrameDetector`` learns it with the actions, on the same backbone ("joint mode");
``FrozenDetector`` asks another model.
"""

from collections.abc import Mapping

import torch
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_proposal_generator, build_roi_heads
from detectron2.structures import ImageList, Instances
from detectron2.utils.registry import Registry
from torch import nn
from torch.nn import functional as F

from nlnet_d2.backbones.video.resnet3d import ClipShapeSpec
from nlnet_d2.config import add_nlnet_config
from nlnet_d2.config.files import merge_file
from nlnet_d2.config.zoo import find_config

PEOPLE = Registry("PEOPLE")
PEOPLE.__doc__ = """Finders of people, by ``MODEL.PEOPLE.NAME``. A finder has

- ``forward(batched_inputs, clips, features)``: N times ``Instances`` in pixels of the clip with
  ``pred_boxes`` and ``scores``;
- ``losses(clips, features, targets)``: its losses, given N times ``Instances`` with ``gt_boxes``.
"""


@PEOPLE.register()
class KeyFrameDetector(nn.Module):
    """Detectron2's proposal generator and RoI heads on the key frame's slice of the backbone's maps.

    They are configured by ``MODEL.RPN`` and ``MODEL.ROI_HEADS``, with one class. All ``gt_boxes`` count as
    people, so train it with the ground truth only, without boxes of a detector that repeat it.
    """

    @configurable
    def __init__(self, *, proposal_generator: nn.Module, roi_heads: nn.Module):
        super().__init__()
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ClipShapeSpec]) -> dict:
        if cfg.MODEL.ROI_HEADS.NUM_CLASSES != 1:
            raise ValueError("KeyFrameDetector finds people only: set MODEL.ROI_HEADS.NUM_CLASSES to 1")
        shapes = {k: ShapeSpec(channels=s.channels, stride=s.stride) for k, s in input_shape.items()}
        return {
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes),
        }

    def forward(self, batched_inputs: list[dict], clips: ImageList, features: dict) -> list[Instances]:
        key_maps = _key_maps(features)
        proposals, _ = self.proposal_generator(clips, key_maps, None)
        return self.roi_heads(clips, key_maps, proposals, None)[0]

    def losses(self, clips: ImageList, features: dict, targets: list[Instances]) -> dict[str, torch.Tensor]:
        key_maps, people = _key_maps(features), []
        for target in targets:
            classes = torch.zeros(len(target), dtype=torch.long, device=target.gt_boxes.device)
            people.append(Instances(target.image_size, gt_boxes=target.gt_boxes, gt_classes=classes))
        proposals, losses = self.proposal_generator(clips, key_maps, people)
        return losses | self.roi_heads(clips, key_maps, proposals, people)[1]


def _key_maps(features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Maps (N, C, T', H', W') -> the slice of the key frame, (N, C, H', W')."""
    return {name: x[:, :, x.shape[2] // 2] for name, x in features.items()}


@PEOPLE.register()
class FrozenDetector(nn.Module):
    """Another detector of Detectron2, as it is: it neither learns nor changes.

    It sees an input's ``key_frame``, (3, H', W') RGB at full size; without one, frame T // 2 of the clip.

    Args:
        detector: a model that maps list[dict] with ``image``, ``height``, ``width`` to list[dict] with
            ``instances``, such as ``GeneralizedRCNN``. Its weights are those of ``MODEL.PEOPLE.WEIGHTS``, or
            of the whole model, under ``people.detector.``.
        person_class: its class of people.
        score_threshold: people below it are left out.
        min_size, max_size: the shorter side of key frames as it sees them, and the limit of the longer one,
            in pixels.
        input_format: "RGB" or "BGR", what it takes.
    """

    @configurable
    def __init__(
        self,
        *,
        detector: nn.Module,
        person_class: int = 0,
        score_threshold: float = 0.8,
        min_size: int = 800,
        max_size: int = 1333,
        input_format: str = "BGR",
    ):
        super().__init__()
        self.detector = detector.eval().requires_grad_(False)
        self.person_class, self.score_threshold = person_class, score_threshold
        self.min_size, self.max_size, self.input_format = min_size, max_size, input_format

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ClipShapeSpec]) -> dict:
        people = cfg.MODEL.PEOPLE
        detector_cfg = _detector_config(people.CONFIG_FILE)
        detector_cfg.MODEL.DEVICE = cfg.MODEL.DEVICE
        return {
            "detector": build_model(detector_cfg),
            "person_class": people.PERSON_CLASS,
            "score_threshold": people.SCORE_THRESH,
            "min_size": detector_cfg.INPUT.MIN_SIZE_TEST,
            "max_size": detector_cfg.INPUT.MAX_SIZE_TEST,
            "input_format": detector_cfg.INPUT.FORMAT,
        }

    def train(self, mode: bool = True) -> "FrozenDetector":
        """Always in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict], clips: ImageList, features: dict) -> list[Instances]:
        frames = [self._frame(inputs, clips.tensor.device) for inputs in batched_inputs]
        found = [result["instances"] for result in self.detector(frames)]
        return [p[(p.pred_classes == self.person_class) & (p.scores >= self.score_threshold)] for p in found]

    def losses(self, clips: ImageList, features: dict, targets: list[Instances]) -> dict[str, torch.Tensor]:
        return {}

    def _frame(self, inputs: dict, device: torch.device) -> dict:
        """The detector's input: the key frame, of values 0 ... 255. It answers in pixels of the clip."""
        clip = inputs["clip"]  # (3, T, H, W)
        height, width = clip.shape[2:]
        frame = inputs.get("key_frame", clip[:, clip.shape[1] // 2]).to(device).float()  # (3, H', W')
        size = ResizeShortestEdge.get_output_shape(*frame.shape[1:], self.min_size, self.max_size)
        image = F.interpolate(frame[None], size, mode="bilinear", antialias=True)[0]
        return {
            "image": image.flip(0) if self.input_format == "BGR" else image,
            "height": height,
            "width": width,
        }


def _detector_config(name: str) -> CfgNode:
    """The config of a detector: a file, with the keys of Detectron2 and ours, or the name of a recipe of ours
    or of Detectron2's model zoo.

    Raises:
        ValueError: it is neither.
    """
    cfg = get_cfg()
    add_nlnet_config(cfg)
    try:
        path = str(find_config(name))
    except FileNotFoundError:
        path = _zoo_config(name)
    merge_file(cfg, path)
    return cfg


def _zoo_config(name: str) -> str:
    from detectron2 import model_zoo  # upstream's needs pkg_resources, which not every environment has

    try:
        return model_zoo.get_config_file(name)
    except RuntimeError as error:
        raise ValueError(
            f"MODEL.PEOPLE.CONFIG_FILE: {name!r} is neither a file nor a recipe, ours or of Detectron2's zoo"
        ) from error
