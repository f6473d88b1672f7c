"""The config keys that this package adds to Detectron2's."""

from detectron2.config import CfgNode


def model_keys(cfg: CfgNode) -> CfgNode:
    """``cfg.MODEL`` with the keys of ``add_nlnet_config``.

    Raises:
        ValueError: it lacks them.
    """
    if "CONTEXT" not in cfg.MODEL:
        raise ValueError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}: the config lacks the keys of nlnet_d2; call "
            "nlnet_d2.add_nlnet_config(cfg) after get_cfg(), before files are merged"
        )
    return cfg.MODEL
