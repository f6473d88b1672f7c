"""From the record of a key frame to what an action model takes: a clip and the boxes of its people."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from nlnet_d2.data.augmentation import random_flip
from nlnet_d2.data.clip_sampler import clip_frames
from nlnet_d2.data.clip_transforms import ResizeShorterSide, train_augmentations, transform_clip
from nlnet_d2.data.datasets.ava import select_people


class ClipMapper:
    """Reads the clip around a key frame, augments it, and brings it into the form of ``ActionRCNN``.

    Takes a record of ``data/datasets/ava.py``; returns a dict with

    - ``clip``: (3, T, H, W) uint8 RGB;
    - ``boxes``: ``Boxes`` of the people, XYXY absolute pixels of the clip, unless the model finds them;
    - ``instances`` (training): ``gt_boxes``, the same, and ``gt_actions`` (B, K) multi-hot. People whom the
      crop cuts off are left out; there may be none left;
    - ``height``, ``width``: of the video, in pixels; ``video_id``, ``second``.

    Args:
        is_train: with ``instances``.
        augmentations: Detectron2's, drawn once for all frames.
        num_frames, stride: of the clip, see ``clip_sampler.clip_frames``.
        with_boxes: False if the model is to find the people itself.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation],
        num_frames: int,
        stride: int,
        with_boxes: bool = True,
    ):
        self.is_train = is_train
        self.augmentations = list(augmentations)
        self.num_frames, self.stride = num_frames, stride
        self.with_boxes = with_boxes

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        clip = cfg.INPUT.CLIP
        if is_train:
            augmentations = train_augmentations(
                clip.SCALES_TRAIN, clip.SCALE_SAMPLING, clip.CROP_TRAIN, random_flip(cfg), clip.COLOR_JITTER
            )
        else:
            augmentations = [ResizeShorterSide(clip.SIZE_TEST, clip.SIZE_TEST)]
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "num_frames": clip.NUM_FRAMES,
            "stride": clip.STRIDE,
            "with_boxes": is_train or not cfg.MODEL.PEOPLE.NAME,
        }

    def __call__(self, record: dict) -> dict:
        """
        Raises:
            DataError: a frame cannot be read.
        """
        video = record["video"]
        indices = clip_frames(record["key_frame"], self.num_frames, self.stride, video.num_frames)
        boxes = record["boxes"] * np.array([video.width, video.height] * 2, np.float32)
        frames, boxes = transform_clip(self.augmentations, video.read(indices), boxes)
        size = frames.shape[1:3]
        boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
        boxes.clip(size)
        sample = {key: record[key] for key in ("video_id", "second", "height", "width")}
        sample["clip"] = torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2)))
        if self.is_train:
            sample["instances"] = _targets(size, boxes, record["actions"])
        elif self.with_boxes:
            sample["boxes"] = boxes
        return sample


def _targets(size: tuple[int, int], boxes: Boxes, actions: np.ndarray) -> Instances:
    seen = boxes.nonempty()
    instances = Instances(size)
    instances.gt_boxes = boxes[seen]
    instances.gt_actions = torch.from_numpy(actions)[seen]
    return instances


def clip_records(cfg, names: Sequence[str], is_train: bool) -> list[dict]:
    """Key frames of registered data sets with the people of ``INPUT.CLIP``, as ``ClipMapper`` takes them.

    A model that finds the people itself is tested on all key frames.
    """
    clip = cfg.INPUT.CLIP
    min_score = clip.PERSON_SCORE_TRAIN if is_train else clip.PERSON_SCORE_TEST
    records = []
    for name in names:
        found = DatasetCatalog.get(name)
        if is_train or not cfg.MODEL.PEOPLE.NAME:
            found = select_people(found, is_train, min_score, clip.WITHOUT_PEOPLE)
        records += found
    return records
