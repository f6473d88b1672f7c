"""The table of tables: every origin of weights that can be loaded."""

from nlnet_d2.checkpoint.source import Source
from nlnet_d2.checkpoint.sources import openmmlab, resnet, transformers, video
from nlnet_d2.checkpoint.sources.native import NATIVE

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (NATIVE, *resnet.SOURCES, *transformers.SOURCES, *video.SOURCES, *openmmlab.SOURCES)
}

__all__ = ["NATIVE", "SOURCES"]
