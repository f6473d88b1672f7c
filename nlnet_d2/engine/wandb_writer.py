"""Numbers of a run to Weights & Biases (an extra: ``pip install wandb``)."""

from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from nlnet_d2.engine.errors import ConfigError

ID_FILE = "wandb_id.txt"  # in OUTPUT_DIR, so that a resumed run goes on there


class WandbWriter(EventWriter):
    """Writes all scalars of the event storage, each at its iteration, and the config.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self, cfg: CfgNode):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("WANDB.PROJECT needs Weights & Biases: pip install wandb") from error
        id_file = Path(cfg.OUTPUT_DIR, ID_FILE)
        known = id_file.read_text() if id_file.is_file() else None
        content = yaml.safe_load(cfg.dump())
        self._run = wandb.init(
            project=cfg.WANDB.PROJECT, config=content, dir=cfg.OUTPUT_DIR, id=known, resume="allow"
        )
        id_file.write_text(self._run.id)
        self._last = -1

    def write(self) -> None:
        by_iteration: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest().items():
            if iteration > self._last:
                by_iteration.setdefault(iteration, {})[name] = value
        for iteration in sorted(by_iteration):
            self._run.log(by_iteration[iteration], step=iteration)
        self._last = max(by_iteration, default=self._last)

    def close(self) -> None:
        self._run.finish()
