"""detectron2 itself is not on the package index: ``tools/install_detectron2.py`` installs it (see README)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "nlnet_d2" / "__init__.py").read_text()).group(1)

VIDEO = ["av>=17"]  # frame-accurate decoding with strict errors; the wheels bring FFmpeg
EXPORT = ["onnx>=1.16", "onnxruntime>=1.18"]
DEV = ["pytest>=8", "ruff>=0.9", "setuptools>=70.1"]  # the last builds wheels

setup(
    name="nlnet_d2",
    version=VERSION,
    description="Long-range context, transformer backbones and action detection for Detectron2",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*find_packages(include=("nlnet_d2", "nlnet_d2.*", "nlnet_d2_command")), "nlnet_d2.configs"],
    package_dir={"nlnet_d2.configs": "configs"},  # the recipes; config/zoo.py finds them, installed or not
    package_data={
        "nlnet_d2.configs": ["**/*.yaml", "README.md"],
        "nlnet_d2.reporting": ["templates/*.html"],
    },
    data_files=[("share/nlnet_d2", ["tools/install_detectron2.py", "tools/detectron2_stand_in.py"])],
    entry_points={"console_scripts": ["nlnet-d2 = nlnet_d2_command:main"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "Pillow>=10",
        "pycocotools>=2.0.7",
        "faster-coco-eval>=1.6.5",  # compiled COCO evaluation: detectron2's own lives in its C++ module
        "safetensors>=0.4.3",
        "shapely>=2.0",  # fvcore clips polygons with it where images are cropped
        "tqdm>=4.64",
        "jinja2>=3.1",
        "matplotlib>=3.6",
    ],
    extras_require={
        "video": VIDEO,
        "opencv": ["opencv-python-headless>=4.8.0.76"],
        "export": EXPORT,
        "wandb": ["wandb>=0.16"],
        "bench": [*VIDEO, "opencv-python-headless>=4.8.0.76", "timm>=1.0", "pytorchvideo>=0.1.5"],
        "dev": DEV,
    },
)
