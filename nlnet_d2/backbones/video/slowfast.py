"""SlowFast: "SlowFast Networks for Video Recognition", Feichtenhofer et al. 2019, arXiv 1812.03982.

::

    clip (N, 3, T, H, W) -+- every alpha-th frame -> slow.stem -(+)-> slow.res2 -(+)-> ... -> slow.res5
                          |                                      |                |
                          |                              fuse.stem        fuse.res2 ... T x 1 x 1, step alpha
                          |                                      |                |
                          +- all T frames --------> fast.stem ---+--> fast.res2 --+--> ... -> fast.res5

(+) concatenates channels. Both pathways are ``ResNet3D``, so the names of parameters are::

    slow.*, fast.*                                    as in resnet3d.py: slow.res4.5.conv2.weight
    fuse.{stem,res2,res3,res4}.{weight,norm.*}        from fast to slow, after the stage of that name
    slow.res4.6.after_add.0.theta.weight              context blocks live in the slow pathway

Deliberately different from public code: the slow pathway picks its frames here and not in the data loader.
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import nn
from torch.nn import functional as F

from nlnet_d2.backbones.resnet import STAGES
from nlnet_d2.backbones.video.conv3d import Conv3d
from nlnet_d2.backbones.video.resnet3d import ClipShapeSpec, ResNet3D, check_choice, frozen

FUSED = ("stem", "res2", "res3", "res4")
PATHWAYS = ("slow", "fast")
FRAME_RULES = ("linspace", "nearest")


def slow_frames(frames: int, alpha: int, rule: str = "linspace") -> list[int]:
    """Indices of the frames of the slow pathway, ``frames / alpha`` of them.

    Args:
        frames: T, number of frames of the clip.
        alpha: ratio of the frame rates of the two pathways.
        rule: "linspace": equally spaced from the first frame to the last, rounded down: 0, 4, 8, 13, 17, 22,
            26, 31 for 32 frames and alpha 4 (the weights of PySlowFast and pytorchvideo); "nearest": every
            alpha-th frame: 0, 4, 8, ... 28 (those of mmaction2, and the paper's text).

    Raises:
        ValueError: T is no multiple of alpha.
    """
    if frames < alpha or frames % alpha:
        raise ValueError(f"a clip has {frames} frames, which is no multiple of MODEL.VIDEO.ALPHA {alpha}")
    if rule == "nearest":
        return list(range(0, frames, alpha))
    count = frames // alpha
    return [i * (frames - 1) // max(count - 1, 1) for i in range(count)]


@BACKBONE_REGISTRY.register()
class SlowFast(Backbone):
    """Two pathways, a slow one with many channels and a fast one with few.

    Args:
        alpha: the slow pathway sees T / alpha frames; 4 for "8x8" and "16x8", 8 for "4x16".
        beta_inv: the fast pathway has 1 / beta_inv of the channels of the slow one.
        fusion_kernel: temporal kernel of the lateral connections; 7 in the released R50 8x8, otherwise 5.
        fusion_ratio: a lateral connection has this many times the channels of the fast pathway.
        fusion_norm: whether a lateral connection has a norm and a ReLU after its convolution; in most weights
            of mmaction2 it has not.
        frame_rule: which frames the slow pathway sees, see ``slow_frames``.
        out_features: stage names with their pathway, "slow_res5", "fast_res5".
        stem_channels, width, res2_channels: of the slow pathway, as in ``ResNet3D``.
        blocks: entries of ``MODEL.CONTEXT.BLOCKS``, placed in the slow pathway.
        freeze_at, resnet: as in ``ResNet3D``, for both pathways; a lateral connection freezes with its stage.

    Input (N, 3, T, H, W), output a dict of (N, C, T / temporal stride, H / stride, W / stride): the temporal
    stride is alpha in the slow pathway and 1 in the fast one.

    Raises:
        ValueError: as in ``ResNet3D``; when it runs, for a T that is no multiple of alpha.
    """

    @configurable
    def __init__(
        self,
        *,
        alpha: int = 4,
        beta_inv: int = 8,
        fusion_kernel: int = 7,
        fusion_ratio: int = 2,
        fusion_norm: bool = True,
        frame_rule: str = "linspace",
        out_features: Sequence[str] = ("slow_res5", "fast_res5"),
        stem_channels: int = 64,
        width: int = 64,
        res2_channels: int = 256,
        blocks: Sequence[dict] = (),
        norm: str = "BN",
        freeze_at: int = 0,
        **resnet,
    ):
        super().__init__()
        check_choice("MODEL.VIDEO.SLOW_FRAMES", frame_rule, FRAME_RULES)
        for name in out_features:
            check_choice("MODEL.RESNETS.OUT_FEATURES", name, [f"{p}_{s}" for p in PATHWAYS for s in STAGES])
        if any(c % beta_inv for c in (stem_channels, width, res2_channels)):
            raise ValueError(f"MODEL.VIDEO.BETA_INV {beta_inv} does not divide the slow pathway's channels")
        self.alpha, self.frame_rule, self._out_features = alpha, frame_rule, list(out_features)
        self.fusion_norm = fusion_norm

        fast = [stem_channels // beta_inv] + [res2_channels // beta_inv * 2**i for i in range(3)]
        lateral = [fusion_ratio * channels for channels in fast]
        resnet |= {"norm": norm, "freeze_at": freeze_at, "out_features": STAGES}
        self.slow = ResNet3D(
            arch="slow",
            blocks=blocks,
            stem_channels=stem_channels,
            width=width,
            res2_channels=res2_channels,
            lateral_channels=lateral,
            **resnet,
        )
        self.fast = ResNet3D(
            arch="fast",
            stem_channels=fast[0],
            width=width // beta_inv,
            res2_channels=fast[1],
            **resnet,
        )
        self.fuse = nn.ModuleDict()
        for i, name in enumerate(FUSED):
            fuse_norm = norm if fusion_norm else ""
            self.fuse[name] = Conv3d(
                fast[i],
                lateral[i],
                (fusion_kernel, 1, 1),
                temporal_stride=alpha,
                norm=frozen(fuse_norm) if i < freeze_at else fuse_norm,
            ).requires_grad_(i >= freeze_at)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        kwargs, video = ResNet3D.from_config(cfg, input_shape), cfg.MODEL.VIDEO
        del kwargs["arch"]
        return kwargs | {
            "alpha": video.ALPHA,
            "beta_inv": video.BETA_INV,
            "fusion_kernel": video.FUSION_KERNEL,
            "fusion_ratio": video.FUSION_RATIO,
            "fusion_norm": video.FUSION_NORM,
            "frame_rule": video.SLOW_FRAMES,
        }

    def output_shape(self) -> dict[str, ClipShapeSpec]:
        """Channels, stride and temporal stride of each map that ``forward`` returns."""
        shapes = {f"fast_{name}": shape for name, shape in self.fast.output_shape().items()}
        for name, shape in self.slow.output_shape().items():
            shapes[f"slow_{name}"] = shape._replace(temporal_stride=self.alpha)
        return {name: shapes[name] for name in self._out_features}

    def forward(self, clip: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, T, H, W) -> {pathway_stage: (N, C, T', H', W')}; a map of the slow pathway is as its stage
        left it, before the channels of the fast one join."""
        slow = clip[:, :, slow_frames(clip.shape[2], self.alpha, self.frame_rule)]
        fast, features = clip, {}
        for name in ("stem", *STAGES):
            slow, fast = getattr(self.slow, name)(slow), getattr(self.fast, name)(fast)
            maps = {f"slow_{name}": slow, f"fast_{name}": fast}
            features.update((key, x) for key, x in maps.items() if key in self._out_features)
            if name in self.fuse:
                lateral = self.fuse[name](fast)
                slow = torch.cat([slow, F.relu_(lateral) if self.fusion_norm else lateral], dim=1)
        return features
