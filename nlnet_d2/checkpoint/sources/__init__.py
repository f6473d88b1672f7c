"""The table of tables: every origin of weights that is known."""

from nlnet_d2.checkpoint.source import Source
from nlnet_d2.checkpoint.sources import openmmlab, refused, resnet, transformers, video
from nlnet_d2.checkpoint.sources.native import NATIVE

_TABLES = (resnet, transformers, video, openmmlab, refused)
SOURCES: dict[str, Source] = {
    source.name: source for source in (NATIVE, *(s for table in _TABLES for s in table.SOURCES))
}

__all__ = ["NATIVE", "SOURCES"]
