"""The config keys that this package adds to Detectron2's, each once."""

from detectron2.config import CfgNode as CN


def add_nlnet_config(cfg: CN) -> None:
    """Add the keys of nlnet_d2 to a Detectron2 config (call it before ``merge_from_file``)."""
    # Context blocks of the backbone: a list of {NAME, AT: {stage: indices}, POSITION, options of the block},
    # for example [{NAME: NonLocal, AT: {res4: [-2]}}]; see blocks/base.py.
    cfg.MODEL.CONTEXT = CN()
    cfg.MODEL.CONTEXT.BLOCKS = []
