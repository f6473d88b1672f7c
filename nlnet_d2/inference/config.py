"""The config of a prediction: that of the training, wherever its data are; and the names of its classes."""

import logging
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from nlnet_d2.data.datasets.ava import is_ava
from nlnet_d2.data.datasets.label_map import LabelMap, read_label_map
from nlnet_d2.data.errors import DataError
from nlnet_d2.engine.config import config_of
from nlnet_d2.engine.errors import ConfigError

logger = logging.getLogger(__name__)

ABOUT_DATA = ("DATASETS.REGISTER", "DATASETS.REGISTER_AVA", "DATASETS.TRAIN", "DATASETS.TEST")


def predict_config(path: str, options: Sequence[str] = ()) -> CfgNode:
    """The config of a file and of pairs KEY VALUE.

    The data that it names give the names of the classes; where they are not, the classes are numbers.

    Raises:
        ConfigError: see ``load_config``.
    """
    try:
        return config_of(path, options)
    except (ConfigError, DataError) as error:
        if len(options) % 2:  # or the options below would be named, which nobody gave
            raise
        without = [word for key in ABOUT_DATA for word in (key, "[]")]
        cfg = config_of(path, [*options, *without])  # fails again if it was not the data
        logger.warning("Nothing is known of the data of the training: %s", error)
        return cfg


def object_classes(cfg: CfgNode) -> Metadata:
    """Detectron2's metadata of the data set that a config names, or of one that knows no names."""
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    return MetadataCatalog.get(names[0]) if names else Metadata()


def action_classes(cfg: CfgNode, label_map: str | None = None) -> LabelMap:
    """Ids and names of the actions, in the order of the scores.

    Args:
        label_map: their file; None for that of the data set which the config names. Where that is not there,
            actions are called by their numbers.

    Raises:
        DataError: the file cannot be read.
        ConfigError: it has another number of classes than the model.
    """
    number = cfg.MODEL.ACTION_HEAD.NUM_CLASSES
    path = label_map or _own_label_map(cfg)
    if path is None:
        logger.warning("Actions will be called by their numbers: name their label map")
        return LabelMap({id_: f"action {id_}" for id_ in range(1, number + 1)}, {})
    classes = read_label_map(path)
    if len(classes.names) != number:
        raise ConfigError(
            f"{path} has {len(classes.names)} classes, but MODEL.ACTION_HEAD.NUM_CLASSES is {number}: name "
            "the label map of the training"
        )
    return classes


def _own_label_map(cfg: CfgNode) -> str | None:
    names = [name for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN) if is_ava(name)]
    paths = [MetadataCatalog.get(name).source.label_map for name in names]
    return next((path for path in paths if os.path.isfile(path)), None)
