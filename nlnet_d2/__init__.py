"""nlnet_d2: long-range context, normalisation, transformer backbones and action detection for Detectron2.

Importing this package fills Detectron2's registries; ``add_nlnet_config(cfg)`` adds its config keys.
"""

import warnings

# detectron2 0.6 does both; its users can do nothing about it.
warnings.filterwarnings("ignore", ".*torch.jit.*deprecated", FutureWarning)
warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)

from nlnet_d2 import backbones, blocks, data, modeling  # noqa: E402, F401  (imported to register)
from nlnet_d2.checkpoint import load_weights  # noqa: E402
from nlnet_d2.config import add_nlnet_config  # noqa: E402
from nlnet_d2.inference import predict  # noqa: E402

__all__ = ["add_nlnet_config", "load_weights", "predict"]
__version__ = "0.1.0"
