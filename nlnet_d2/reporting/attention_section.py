"""What the model of a run looks at, in some of its test images."""

import logging
from dataclasses import replace

import numpy as np
from detectron2.config import CfgNode
from torch import nn

from nlnet_d2.analysis.attention_maps import attention_modules
from nlnet_d2.analysis.attention_pictures import draw_view
from nlnet_d2.analysis.attention_views import View, what_is_not_drawn
from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.engine.errors import ConfigError
from nlnet_d2.inference.predictor import takes_clips, trained_model
from nlnet_d2.reporting.cards import data_url
from nlnet_d2.reporting.results import Compared, Table
from nlnet_d2.reporting.run_folder import RunFolder
from nlnet_d2.reporting.scenes import Scene, clip_scene, picture_scene, view_scene
from nlnet_d2.reporting.sections import Pairs, Section

logger = logging.getLogger(__name__)

TITLE = "Attention"
BLOCKS = 6  # drawn of one image; the table has all
WIDTH = 1400  # pixels of a picture
NOTE = (
    "Mean distance between the attention maps of different queries, 0 if all see the same (GCNet, arXiv "
    "1904.11492, table 1): (1 - cos) / 2, and the Jensen-Shannon divergence in nats. The queries are 64, "
    "spread over one image or clip; attention in windows is compared between those of one window."
)


def attention_section(run: RunFolder, compared: list[Pairs], count: int) -> Section:
    """Pictures of attention in the ``count`` best images, and how much it depends on the query."""
    chosen = [
        c for pairs in compared for c, v in sorted(pairs, key=lambda p: p[1].quality, reverse=True) if v.right
    ]
    weights = run.weights()
    if not count or not chosen or not weights:
        why = "no checkpoint is here" if not weights else "no image is at hand in which something was found"
        return Section(TITLE, ["Not drawn: " + (why if count else "it was not asked for") + "."])
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights)
    try:
        model = trained_model(cfg).eval()
    except (CheckpointError, ConfigError) as error:
        return Section(TITLE, [f"Not drawn: {error}"])
    notes = [outside] if (outside := what_is_not_drawn(model)) else []
    if not attention_modules(model.backbone):
        return Section(TITLE, ["The backbone of this model has no attention.", *notes])
    views = {c.name: _look(model, cfg, c) for c in chosen[:count]}
    pictures = {
        f"{name}: what the green point sees": data_url(draw_view(_some_blocks(view), 0), WIDTH)
        for name, view in views.items()
    }
    return Section(TITLE, notes, [_differences(views)], pictures=pictures)


def _look(model: nn.Module, cfg: CfgNode, compared: Compared) -> View:
    """From the centre of the surest detection."""
    boxes = compared.found.boxes[[compared.found.scores.argmax()]]
    return view_scene(model, _scene(cfg, compared), boxes[:, :2] + boxes[:, 2:] / 2)


def _scene(cfg: CfgNode, compared: Compared) -> Scene:
    if takes_clips(cfg):
        return clip_scene(cfg, compared.record["video"], compared.record["key_frame"])
    return picture_scene(cfg, compared.image())


def _some_blocks(view: View) -> View:
    """The last block and others, evenly spread."""
    chosen = np.unique(
        np.linspace(0, len(view.blocks) - 1, min(BLOCKS, len(view.blocks))).round().astype(int)
    )
    return replace(view, blocks=[view.blocks[i] for i in chosen])


def _differences(views: dict[str, View]) -> Table:
    rows = [
        [name, block.name, block.rows.shape[1], block.difference.cosine, block.difference.jensen_shannon]
        for name, view in views.items()
        for block in view.blocks
    ]
    header = ["image", "block", "heads", "cosine", "Jensen-Shannon"]
    return Table("How much attention depends on the query", header, rows, NOTE, digits=4)
