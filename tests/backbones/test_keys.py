import pytest
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone

import nlnet_d2  # noqa: F401  (fills the registry)

OURS = sorted(name for name, built in BACKBONE_REGISTRY if built.__module__.startswith("nlnet_d2."))


@pytest.mark.parametrize("name", OURS)
def test_a_config_without_the_keys_of_this_package(name):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    with pytest.raises(ValueError, match=f"{name}: the config lacks .*call nlnet_d2.add_nlnet_config"):
        build_backbone(cfg)
