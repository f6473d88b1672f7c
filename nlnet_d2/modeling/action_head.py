"""Action head: what is each person doing? SlowFast, arXiv 1812.03982, section 5 ("Detection architecture").

Each map is averaged over time, RoIAlign'ed, max-pooled; the maps are concatenated and classified, one sigmoid
per action. Deliberately different from public code: the loss takes logits, so that it is safe in mixed
precision, and the boxes keep float32 coordinates there.

Name of the parameters: classifier.{weight,bias}.
"""

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from fvcore.nn import sigmoid_focal_loss
from torch import nn
from torch.nn import functional as F

from nlnet_d2.backbones.video.resnet3d import ClipShapeSpec, check_choice

TEMPORAL_POOLS = {"avg": torch.mean, "max": torch.amax}


class ActionHead(nn.Module):
    """Multi-label classifier of boxes.

    Args:
        input_shape: shape of each map of the backbone.
        num_classes: K, the number of actions.
        in_features: maps to use.
        temporal_pool: "avg" or "max" over all T' of a map.
        pooler_resolution: side of the RoI features before they are max-pooled.
        pooler_sampling_ratio: of RoIAlign; 0 for as many samples as the box needs.
        pooler_type: "ROIAlignV2", or "ROIAlign" for its half-pixel shift (weights trained in Caffe2).
        frame_context: append to each box the whole frame: averages of each map in a grid of pooler_resolution
            x pooler_resolution cells, and of these the largest (the global context of mmaction2).
        dropout: probability, before the classifier.
        focal_gamma: exponent of the focal loss (arXiv 1708.02002); 0 for plain cross entropy.
        class_weights: K factors of the loss, () for 1.
        loss_weight: factor of the loss.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ClipShapeSpec],
        *,
        num_classes: int = 80,
        in_features: Sequence[str] = ("slow_res5", "fast_res5"),
        temporal_pool: str = "avg",
        pooler_resolution: int = 7,
        pooler_sampling_ratio: int = 0,
        pooler_type: str = "ROIAlignV2",
        frame_context: bool = False,
        dropout: float = 0.5,
        focal_gamma: float = 0.0,
        class_weights: Sequence[float] = (),
        loss_weight: float = 1.0,
    ):
        super().__init__()
        check_choice("MODEL.ACTION_HEAD.TEMPORAL_POOL", temporal_pool, TEMPORAL_POOLS)
        for name in in_features:
            check_choice("MODEL.ACTION_HEAD.IN_FEATURES", name, input_shape)
        if len(class_weights) not in (0, num_classes):
            raise ValueError(
                f"MODEL.ACTION_HEAD.CLASS_WEIGHTS has {len(class_weights)} factors for {num_classes} classes"
            )
        self.num_classes, self.frame_context = num_classes, frame_context
        self.resolution = pooler_resolution
        self.focal_gamma, self.loss_weight = focal_gamma, loss_weight
        self.temporal_pool = TEMPORAL_POOLS[temporal_pool]
        self.strides = {name: input_shape[name].stride for name in in_features}
        self.poolers = nn.ModuleDict(
            {
                name: ROIPooler(pooler_resolution, (1 / stride,), pooler_sampling_ratio, pooler_type)
                for name, stride in self.strides.items()
            }
        )
        weights = torch.tensor(class_weights or [1.0] * num_classes)
        self.register_buffer("class_weights", weights, persistent=False)
        channels = sum(input_shape[name].channels for name in in_features)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels * (2 if frame_context else 1), num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ClipShapeSpec]) -> dict:
        head = cfg.MODEL.ACTION_HEAD
        return {"input_shape": input_shape} | {key.lower(): value for key, value in head.items()}

    def forward(
        self,
        features: Mapping[str, torch.Tensor],
        boxes: list[Boxes],
        frame_sizes: Sequence[tuple[int, int]],
    ) -> torch.Tensor:
        """Logits (M, K) of the M boxes of all N clips, in order.

        Args:
            features: maps (N, C, T', H', W').
            boxes: N times Boxes, XYXY absolute pixels of the clip.
            frame_sizes: N times (height, width) in pixels, without padding.
        """
        # In half precision boxes would be off by up to half a pixel.
        maps = {f: self.temporal_pool(features[f].float(), 2) for f in self.strides}  # (N, C, H', W')
        pooled = [pooler([maps[name]], boxes).amax((2, 3)) for name, pooler in self.poolers.items()]  # (M, C)
        if self.frame_context:
            counts = torch.tensor([len(b) for b in boxes], device=pooled[0].device)
            context = [self._whole_frame(x, self.strides[name], frame_sizes) for name, x in maps.items()]
            pooled += [x.repeat_interleave(counts, dim=0) for x in context]
        return self.classifier(self.dropout(torch.cat(pooled, dim=1)))

    def losses(self, logits: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean of the loss over all boxes and classes; 0, with a gradient, where there are no boxes.

        Args:
            logits, actions: (M, K); actions is multi-hot.
        """
        actions = actions.to(logits.dtype)
        if self.focal_gamma:
            loss = sigmoid_focal_loss(logits, actions, gamma=self.focal_gamma)
        else:
            loss = F.binary_cross_entropy_with_logits(logits, actions, reduction="none")
        total = (loss * self.class_weights).sum()
        return {"loss_action": self.loss_weight * total / max(loss.numel(), 1)}

    def _whole_frame(self, x: torch.Tensor, stride: int, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """(N, C, H', W') pooled as a box is, over the part of each map that is not padding: (N, C)."""
        extents = [(-(-height // stride), -(-width // stride)) for height, width in sizes]
        cells = [
            F.adaptive_avg_pool2d(m[:, :h, :w], self.resolution) for m, (h, w) in zip(x, extents, strict=True)
        ]
        return torch.stack(cells).amax((2, 3))
