"""What a run would find here: versions, the origin of detectron2, devices, data, caches; what is missing.

nlnet-d2 doctor

Exit code 0 where everything that is needed is there, else 2; what only some commands need does not count.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NEEDED = {
    "torch": "pip install torch torchvision",
    "torchvision": "pip install torch torchvision",
    "numpy": "pip install numpy",
    "PIL": "pip install Pillow",
    "cv2": "pip install opencv-python-headless",
    "pycocotools": "pip install pycocotools",
    "faster_coco_eval": "pip install faster-coco-eval",
    "safetensors": "pip install safetensors",
    "shapely": "pip install shapely",
    "tqdm": "pip install tqdm",
    "jinja2": "pip install jinja2",
    "matplotlib": "pip install matplotlib",
}
# Module: what it is for, and how to get it.
OPTIONAL = {
    "av": ("videos: clips, prediction", "pip install av"),
    "onnxruntime": ("nlnet-d2 export to ONNX", "pip install onnx onnxruntime"),
    "wandb": ("Weights & Biases", "pip install wandb"),
}
DATA_SETS = ("coco_2017_train", "coco_2017_val", "keypoints_coco_2017_val", "ava_v2.2_train", "ava_v2.2_val")


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        state: "ok", "absent" (not needed by everybody) or "MISSING".
        value: what was found, or what brings it.
    """

    state: str
    name: str
    value: str


def examine() -> Iterator[Line]:
    """All lines of the report; those about devices, recipes and data where the packages can be imported."""
    yield Line("ok", "Python", f"{platform.python_version()}, {sys.executable}, {platform.platform()}")
    for module, remedy in NEEDED.items():
        yield _module(module, "MISSING", remedy)
    for module, (purpose, remedy) in OPTIONAL.items():
        yield _module(module, "absent", f"{remedy} ({purpose})")
    yield Line("ok", "disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free in {os.getcwd()}")
    try:
        import nlnet_d2
    except Exception as error:
        if not importlib.util.find_spec("detectron2"):
            yield Line("MISSING", "detectron2", str(error))
        else:
            yield Line("MISSING", "nlnet_d2", f"cannot be imported: {error}")
        return
    yield Line("ok", "detectron2", _origin_of_detectron2())
    yield Line("ok", "nlnet_d2", f"{nlnet_d2.__version__}, {Path(nlnet_d2.__file__).parent}")
    yield from _devices()
    yield from _recipes_and_weights()
    yield from _data()


def _module(module: str, otherwise: str, remedy: str) -> Line:
    if not importlib.util.find_spec(module):
        return Line(otherwise, module, f"get it with: {remedy}")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # a broken library may raise anything
        return Line("MISSING", module, f"cannot be imported ({error}); get it again with: {remedy}")
    return Line("ok", module, str(getattr(found, "__version__", "there")))


def _origin_of_detectron2() -> str:
    """Version, who built it, and whether its operators are compiled."""
    import detectron2

    module = importlib.util.find_spec("detectron2._C")  # None in a checkout that was not built
    compiled = module is not None and not (module.origin or "").endswith(".py")
    operators = "compiled operators" if compiled else "no compiled operators: rotated boxes are not available"
    folder = Path(detectron2.__file__).parent
    try:
        distribution = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return f"{detectron2.__version__}, not installed but found at {folder}, {operators}"
    if "+nlnet" in distribution.version:
        return f"{distribution.version}, the repaired wheel of install_detectron2.py, {operators}"
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id", "")
    place = " ".join(part for part in (origin.get("url", "a package index"), commit) if part)
    return f"{distribution.version}, installed from {place}, {operators}"


def _devices() -> Iterator[Line]:
    import torch

    if not torch.cuda.is_available():
        build = (
            f"PyTorch is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "PyTorch is built for CPUs"
        )
        yield Line("absent", "GPU", f"none that PyTorch sees ({build}): runs are on the CPU")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        yield Line("ok", f"GPU {index}", f"{properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}")
    yield Line("ok", "CPU", f"{os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads")


def _recipes_and_weights() -> Iterator[Line]:
    from nlnet_d2.checkpoint.download import cache_folder
    from nlnet_d2.config.zoo import CONFIGS

    yield Line("ok", "recipes", str(CONFIGS))
    folder = cache_folder()
    files = [path for path in folder.glob("*") if path.is_file() and not path.suffix]  # no locks
    size = sum(path.stat().st_size for path in files) / 1e9
    offline = os.environ.get("NLNET_D2_OFFLINE", "") not in ("", "0")
    note = ", NLNET_D2_OFFLINE forbids downloads" if offline else ""
    yield Line("ok", "downloaded weights", f"{len(files)} files, {size:.1f} GB in {folder}{note}")


def _data() -> Iterator[Line]:
    from detectron2.data import MetadataCatalog

    root = os.environ.get("DETECTRON2_DATASETS")
    text = root if root else f"not set: {os.path.abspath('datasets')}"
    yield Line("ok", "DETECTRON2_DATASETS", text)
    for name in DATA_SETS:
        metadata = MetadataCatalog.get(name)
        file = metadata.source.annotations if metadata.get("source") else metadata.json_file
        there = os.path.exists(file)
        yield Line("ok" if there else "absent", name, file if there else f"expected {os.path.abspath(file)}")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    lines = list(examine())
    for line in lines:
        value = line.value.replace("\n", "\n" + 34 * " ")
        print(f"{line.name:23}  {line.state:7}  {value}")
    missing = [line.name for line in lines if line.state == "MISSING"]
    print(f"missing: {', '.join(missing)}" if missing else "everything that is needed is there")
    return 2 if missing else 0
