"""Models that answer from what they are shown, and keep it."""

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

CLASSES = 3


class Echo(nn.Module):
    """Objects: one, as large as the picture, its score the mean of the input's first channel."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, inputs):
        self.batches.append(inputs)
        results = []
        for x in inputs:
            found = Instances((x["height"], x["width"]))
            found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, x["width"], x["height"]]]))
            found.scores = x["image"][0].float().mean()[None] / 255
            found.pred_classes = torch.zeros(1, dtype=torch.long)
            results.append({"instances": found})
        return results


class EchoActions(nn.Module):
    """Actions of the boxes that are given, or of a person as large as the frame; class k scores k / 10."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, inputs):
        self.batches.append(inputs)
        return [{"instances": self._people(x)} for x in inputs]

    @staticmethod
    def _people(x):
        height, width = x["clip"].shape[2:]
        boxes = x.get("boxes", Boxes(torch.tensor([[0.0, 0.0, width, height]]))).clone()
        boxes.scale(x["width"] / width, x["height"] / height)
        scores = torch.arange(1, CLASSES + 1).expand(len(boxes), CLASSES) / 10
        return Instances((x["height"], x["width"]), pred_boxes=boxes, scores=scores)
