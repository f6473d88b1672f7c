#!/usr/bin/env python
"""Install detectron2 0.6 from the package index: no compiler, no git host, no CUDA toolkit.

The index holds detectron2 0.6 as the source archive ``pb1-detectron2``: the Python files of upstream's tag
v0.6 without the C++ sources. This script fetches that archive with pip (hash-checked), applies the repairs
listed in ``REPAIRS``, adds ``detectron2_stand_in.py`` as ``detectron2/_C.py`` and installs the result as a
pure-Python wheel named ``detectron2``. Any other detectron2 that can be imported is left alone.

    python tools/install_detectron2.py                   # into the environment of this python
    python tools/install_detectron2.py --wheel-dir DIR   # only build the wheel
"""

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

VERSION = "0.6+nlnet1"  # the local label counts the revisions of REPAIRS, SETUP and the stand-in
ARCHIVE = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
# Any pip from 23.2 to 26.1 accepts the archive's metadata; 26.3 refuses it because of a direct-URL extra.
FETCH_WITH = ("pip==25.3", "setuptools>=70.1")


class Repair(NamedTuple):
    """Replace ``old`` by ``new``, which must occur exactly ``count`` times in ``file``."""

    file: str
    count: int
    old: str
    new: str
    reason: str


ALIAS = "numpy >= 1.24 has no aliases of the builtin types"
NO_C = "detectron2._C is the stand-in"
NO_PKG = "setuptools >= 81 has no pkg_resources"
REPAIRS = (
    Repair("data/build.py", 2, "np.int", "int", ALIAS),
    Repair("data/datasets/pascal_voc.py", 1, "np.str", "str", ALIAS),
    Repair("evaluation/pascal_voc_evaluation.py", 2, "np.bool)", "bool)", ALIAS),
    Repair("evaluation/sem_seg_evaluation.py", 2, "np.int)", "int)", ALIAS),
    Repair("evaluation/sem_seg_evaluation.py", 5, "np.float)", "float)", ALIAS),
    Repair("structures/masks.py", 3, "np.bool)", "bool)", ALIAS),
    Repair("utils/video_visualizer.py", 1, "np.bool)", "bool)", ALIAS),
    Repair("utils/visualizer.py", 3, "np.bool)", "bool)", ALIAS),
    Repair("data/transforms/transform.py", 1, "Image.LINEAR", "Image.BILINEAR", "Pillow >= 10 has no LINEAR"),
    Repair(
        "data/common.py",
        1,
        "self._rng.sample(self._fallback_candidates, k=1)",
        "self._rng.sample(sorted(self._fallback_candidates), k=1)",
        "Python >= 3.11 does not sample from a set, so a mapper that returns None killed the run",
    ),
    Repair(
        "model_zoo/model_zoo.py",
        1,
        "import pkg_resources\n",
        "from importlib import resources\n",
        NO_PKG,
    ),
    Repair(
        "model_zoo/model_zoo.py",
        1,
        "pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )",
        'str(resources.files("detectron2.model_zoo") / "configs" / config_path)',
        NO_PKG,
    ),
    Repair(
        "export/__init__.py",
        1,
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:  # Caffe2 export only\n    pass\n",
        "caffe2 left PyTorch in 2.0; TracingAdapter must be importable without it",
    ),
    Repair(
        "evaluation/coco_evaluation.py",
        1,
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "COCOeval_opt = COCOeval  # the C++ evaluator is part of detectron2._C\n",
        NO_C,
    ),
    Repair(
        "layers/deform_conv.py",
        1,
        "\ndeform_conv = _DeformConv.apply\n",
        "\ndeform_conv = _C.deform_conv\n",
        NO_C,
    ),
    Repair(
        "layers/deform_conv.py",
        1,
        "\nmodulated_deform_conv = _ModulatedDeformConv.apply\n",
        "\nmodulated_deform_conv = _C.modulated_deform_conv\n",
        NO_C,
    ),
    Repair(
        "layers/nms.py",
        1,
        "    return torch.ops.detectron2.nms_rotated(",
        "    from detectron2 import _C\n\n    return _C.nms_rotated(",
        NO_C,
    ),
)

# Replaces the archive's setup.py, which compiles detectron2._C and drops the model-zoo configs from wheels.
# The requirements: upstream's, those it takes for granted, not those of Caffe2 and of the code formatter.
SETUP = f"""
from setuptools import find_packages, setup

projects = {{
    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
    "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}}
setup(
    name="detectron2",
    version="{VERSION}",
    description="detectron2 0.6, repaired for current PyTorch, without compiled operators",
    license="Apache-2.0",
    packages=find_packages(include=("detectron2", "detectron2.*")) + list(projects),
    package_dir=projects,
    package_data={{"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]}},
    python_requires=">=3.8",
    install_requires=[
        "torch>=1.8",
        "torchvision",
        "numpy",
        "Pillow>=7.1",
        "matplotlib",
        "pycocotools>=2.0.2",
        "termcolor>=1.1",
        "yacs>=0.1.8",
        "tabulate",
        "cloudpickle",
        "tqdm>4.29.0",
        "tensorboard",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7,<0.1.10",
        "omegaconf>=2.1",
        "hydra-core>=1.1",
    ],
)
"""
PYPROJECT = """
[build-system]
requires = ["setuptools>=70.1"]
build-backend = "setuptools.build_meta"
"""


def fail(message: str):
    sys.exit(f"install_detectron2: {message}")


def run(*command, **environment):
    """Run ``python command...`` of this interpreter; stop with the command line if it fails."""
    command = [sys.executable, *map(str, command)]
    if subprocess.run(command, env={**os.environ, **environment}).returncode:
        fail(f"this command failed: {' '.join(command)}")


def fetch(directory: Path) -> Path:
    """Download and unpack the archive; returns the folder of its sources.

    pip prepares the metadata of a source archive that it downloads, and this archive's setup.py imports
    torch: hence no build isolation.
    """
    tools, downloads = directory / "pip", directory / "download"
    run("-m", "pip", "install", "--quiet", "--target", tools, *FETCH_WITH)
    pinned = directory / "requirement.txt"
    pinned.write_text(f"{ARCHIVE} --hash=sha256:{SHA256}\n")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes")
    run("-m", "pip", "download", *options, "-d", downloads, "-r", pinned, PYTHONPATH=str(tools))
    (archive,) = downloads.iterdir()
    with tarfile.open(archive) as tar:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(directory, **safe)
    return directory / archive.name.removesuffix(".tar.gz")


def repair(source: Path) -> None:
    """Apply REPAIRS to the package in ``source``; any that does not match is an error, never a skip."""
    for file, count, old, new, _ in REPAIRS:
        path = source / "detectron2" / file
        text = path.read_text()
        if text.count(old) != count:
            fail(f"detectron2/{file} has {text.count(old)} times {old!r}, expected {count}")
        path.write_text(text.replace(old, new))
    shutil.copyfile(Path(__file__).with_name("detectron2_stand_in.py"), source / "detectron2" / "_C.py")
    (source / "setup.py").write_text(SETUP)
    (source / "pyproject.toml").write_text(PYPROJECT)
    shutil.rmtree(source / "pb1_detectron2.egg-info", ignore_errors=True)


def build_wheel(wheel_dir: Path) -> Path:
    """Build the repaired wheel into ``wheel_dir``; returns its path."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as temporary:
        source = fetch(Path(temporary))
        repair(source)
        run("-m", "pip", "wheel", "--quiet", "--no-deps", "-w", wheel_dir, source)
    (wheel,) = wheel_dir.glob("detectron2-*.whl")
    return wheel


def is_installed() -> bool:
    """Whether there is a detectron2 to leave alone: this revision of ours, or any other that imports."""
    try:
        found = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found and "+nlnet" in found.version:
        is_complete = found.read_text("RECORD") is not None  # pip writes it last
        return found.version == VERSION and is_complete
    command = [sys.executable, "-c", "import detectron2.layers, detectron2.modeling"]
    probe = subprocess.run(command, capture_output=True, text=True)
    if found and probe.returncode:
        *_, error = probe.stderr.strip().splitlines()
        fail(
            f"detectron2 {found.version} is installed, but importing it says: {error}\n"
            "Build it again for the PyTorch you have, or remove it to get ours: pip uninstall detectron2"
        )
    return probe.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheel-dir", type=Path, help="build the wheel into this folder, install nothing")
    args = parser.parse_args()
    needs = {"pip": "python -m ensurepip", "torch": "pip install torch torchvision"}
    for module, remedy in needs.items():
        if not importlib.util.find_spec(module):
            fail(f"{sys.executable} has no {module}, first run: {remedy}")
    if args.wheel_dir:
        print(f"built {build_wheel(args.wheel_dir)}")
        return
    if is_installed():
        print("detectron2 is installed already: left as it is")
        return
    with tempfile.TemporaryDirectory(prefix="detectron2-wheel-") as temporary:
        run("-m", "pip", "install", "--quiet", build_wheel(Path(temporary)))
    run("-c", "import detectron2.layers, detectron2.model_zoo; print('detectron2', detectron2.__version__)")


if __name__ == "__main__":
    main()
