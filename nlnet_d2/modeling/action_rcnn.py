"""Action R-CNN: a clip and the boxes of its people -> actions per person (SlowFast, arXiv 1812.03982)."""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from nlnet_d2.modeling.action_head import ActionHead
from nlnet_d2.modeling.people import PEOPLE


@META_ARCH_REGISTRY.register()
class ActionRCNN(nn.Module):
    """Detects actions: normalises and pads clips, runs the backbone, classifies boxes.

    Args:
        backbone: clip (N, 3, T, H, W) -> dict of maps (N, C, T', H', W').
        action_head: maps and boxes -> logits.
        people: finds the people of clips that come without boxes, see ``nlnet_d2/modeling/people.py``; None:
            such a clip is an error.
        pixel_mean, pixel_std: per channel, of RGB values in 0 ... 255.
    """

    takes_clips = True  # engine/config.py compares it with the data sets: clips, not images

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        action_head: ActionHead,
        people: nn.Module | None = None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        super().__init__()
        self.backbone = backbone
        self.action_head = action_head
        self.people = people
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg) -> dict:
        backbone, people = build_backbone(cfg), cfg.MODEL.PEOPLE.NAME
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "action_head": ActionHead(cfg, shapes),
            "people": PEOPLE.get(people)(cfg, shapes) if people else None,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """
        Args:
            batched_inputs: one dict per clip:
                ``clip``: (3, T, H, W), float or uint8, RGB in 0 ... 255; all clips have the same T;
                ``boxes``: ``Boxes`` of the people, XYXY absolute pixels of the clip (inference; without them
                the model finds the people, if it can);
                ``height``, ``width``: of the wanted output, in pixels; of the clip unless given;
                ``instances``: ``Instances`` with ``gt_boxes``, and ``gt_actions`` (boxes x K) multi-hot
                (training).

        Returns:
            In training the losses; otherwise ``[{"instances": Instances}]`` with ``pred_boxes``, scaled to
            height and width, ``scores`` (boxes x K), probabilities of the actions, and, for people found by
            the model, ``person_scores``. Boxes that were given keep their order, and none is left out.

        Raises:
            ValueError: an input that does not have this form; names the clip and the key.
        """
        clips = self.preprocess(batched_inputs)
        features = self.backbone(clips.tensor)
        if self.training:
            return self._losses(batched_inputs, clips, features)
        people = self._find_people(batched_inputs, clips, features)
        logits = self.action_head(features, [p.pred_boxes for p in people], clips.image_sizes)
        scores = logits.float().sigmoid().split([len(p) for p in people])
        for person, score in zip(people, scores, strict=True):
            person.scores = score
        return [
            {"instances": _rescale(p, x.get("height"), x.get("width"))}
            for p, x in zip(people, batched_inputs, strict=True)
        ]

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise, and pad to the largest H and W: ``tensor`` (N, 3, T, H, W) and the sizes before padding.

        Padding is 0, the mean colour. Clips of different sizes see a little of it near the border.
        """
        clips = [_clip(x, i).to(self.device, non_blocking=True) for i, x in enumerate(batched_inputs)]
        if len(frames := {clip.shape[1] for clip in clips}) > 1:
            raise ValueError(f"clips of one batch differ in their number of frames: {sorted(frames)}")
        clips = [(clip - self.pixel_mean) / self.pixel_std for clip in clips]
        return ImageList.from_tensors(clips, self.backbone.size_divisibility)

    def _find_people(
        self, batched_inputs: list[dict], clips: ImageList, features: dict[str, torch.Tensor]
    ) -> list[Instances]:
        """``pred_boxes`` in pixels of each clip: those given with it, else found, with ``person_scores``."""
        given = [self.people is None or "boxes" in inputs for inputs in batched_inputs]
        found = [None] * len(given) if all(given) else self.people(batched_inputs, clips, features)
        people = []
        for i, (inputs, size) in enumerate(zip(batched_inputs, clips.image_sizes, strict=True)):
            if given[i]:
                people.append(Instances(size, pred_boxes=_boxes(inputs, i).to(self.device)))
            else:
                fields = {"pred_boxes": found[i].pred_boxes, "person_scores": found[i].scores}
                people.append(Instances(size, **fields))
        return people

    def _losses(
        self, batched_inputs: list[dict], clips: ImageList, features: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        targets = [_targets(x, i, self.action_head.num_classes) for i, x in enumerate(batched_inputs)]
        targets = [t.to(self.device) for t in targets]
        logits = self.action_head(features, [t.gt_boxes for t in targets], clips.image_sizes)
        losses = self.action_head.losses(logits, torch.cat([t.gt_actions for t in targets]))
        return losses if self.people is None else losses | self.people.losses(clips, features, targets)


def _clip(inputs: dict, index: int) -> torch.Tensor:
    clip = inputs.get("clip")
    if not isinstance(clip, torch.Tensor) or clip.ndim != 4 or clip.shape[0] != 3:
        got = tuple(clip.shape) if isinstance(clip, torch.Tensor) else type(clip).__name__
        raise ValueError(f"input {index}: 'clip' must be a tensor (3, T, H, W), RGB; got {got}")
    return clip


def _boxes(inputs: dict, index: int) -> Boxes:
    if not isinstance(boxes := inputs.get("boxes"), Boxes):
        raise ValueError(
            f"input {index}: 'boxes' must be detectron2 Boxes of the people, in pixels of the clip; got "
            f"{type(boxes).__name__}. A model that is to find them itself needs MODEL.PEOPLE.NAME"
        )
    return boxes


def _targets(inputs: dict, index: int, num_classes: int) -> Instances:
    targets = inputs.get("instances")
    if targets is None or not (targets.has("gt_boxes") and targets.has("gt_actions")):
        raise ValueError(f"input {index}: training needs 'instances' with gt_boxes and gt_actions")
    if targets.gt_actions.shape != (len(targets), num_classes):
        raise ValueError(
            f"input {index}: gt_actions is {tuple(targets.gt_actions.shape)}, but {len(targets)} boxes and "
            f"MODEL.ACTION_HEAD.NUM_CLASSES {num_classes} need {(len(targets), num_classes)}"
        )
    return targets


def _rescale(people: Instances, height: int | None, width: int | None) -> Instances:
    """From pixels of the clip to those of (height, width); Detectron2's postprocessing drops thin boxes."""
    old = people.image_size
    new = height or old[0], width or old[1]
    boxes = people.pred_boxes.clone()
    boxes.scale(new[1] / old[1], new[0] / old[0])
    return Instances(new, **people.get_fields() | {"pred_boxes": boxes})
