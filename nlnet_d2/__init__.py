"""nlnet_d2: long-range context, normalisation, transformer backbones and action detection for Detectron2.

Importing this package fills Detectron2's registries and its catalog of data sets, and silences two warnings
that detectron2 0.6 causes; ``add_nlnet_config(cfg)`` adds its config keys.
"""

import importlib.util
import sys
import warnings
from pathlib import Path

if importlib.util.find_spec("detectron2") is None:
    places = Path(__file__).parents[1] / "tools", Path(sys.prefix) / "share" / "nlnet_d2"  # checkout, wheel
    found = [path / "install_detectron2.py" for path in places if (path / "install_detectron2.py").is_file()]
    raise ImportError(
        "nlnet_d2 extends detectron2, which is not installed. Get it, without a compiler, with:\n"
        f"  {sys.executable} {found[0] if found else 'tools/install_detectron2.py'}\n"
        "or build upstream's: pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2"
    )

# detectron2 0.6 causes both, and its users can do nothing about them.
warnings.filterwarnings("ignore", ".*torch.jit.*deprecated", FutureWarning)
warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)

from nlnet_d2 import backbones, blocks, data, modeling  # noqa: E402, F401  (imported to register)
from nlnet_d2.checkpoint import load_weights  # noqa: E402
from nlnet_d2.config import add_nlnet_config  # noqa: E402
from nlnet_d2.inference import optimize_for_inference, predict  # noqa: E402

__all__ = ["add_nlnet_config", "load_weights", "optimize_for_inference", "predict"]
__version__ = "0.1.0"
