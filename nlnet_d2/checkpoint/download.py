"""Weights from the network: https only, complete, checked, and cached under what identifies them.

A SHA-256 may follow the address, ``https://host/R-50.pkl#sha256=...``; its beginning may end the file name,
as in ``resnet50-0676ba61.pth`` of torchvision and in files of timm and OpenMMLab; of some files, ``SHA256``
knows it. ``NLNET_D2_OFFLINE=1`` forbids downloads, ``NLNET_D2_CACHE`` is the folder to keep them in.
"""

import hashlib
import logging
import os
import re
import urllib.request
from pathlib import Path
from urllib.error import URLError

from iopath.common.file_io import file_lock

from nlnet_d2.checkpoint.checkpointer import CheckpointError, atomic_write

logger = logging.getLogger(__name__)

ZOO = "https://dl.fbaipublicfiles.com/detectron2/"
MIRRORS = {"detectron2://": ZOO}
MAX_BYTES = 16 << 30
CHUNK = 1 << 20
# From projects that check what they download from these addresses: those of Detectron2's zoo are in
# InterDigitalInc/CompressAI-Vision (scripts/install.sh), all but the two X101 also elsewhere.
SHA256 = {
    f"{ZOO}COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl": (
        "3c25caca37baabbff3e22cc9eb0923db165a0c18b867871a3bf3570bac9b7ef0"
    ),
    f"{ZOO}COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl": (
        "9a737e290372f1f70994ebcbd89d8004dbb3ae30a605fd915a190fa4a782dd66"
    ),
    f"{ZOO}COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x/139173657/model_final_68b088.pkl": (
        "fe5ad56ff746aa55c5f453b01f8395134e9281d240dbeb473411d4a6b262c9dc"
    ),
    f"{ZOO}COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x/139653917/model_final_2d9806.pkl": (
        "12f6e1811baf1b4d329c3f5ac5ec52d8f634d3cedc82a13fff55d0c05d84f442"
    ),
    "https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth": (
        "aec5f0b68e5f3193a00b07bc65a37440db549c15b36b8bea242606cc40c4bc5d"
    ),
    "https://download.pytorch.org/models/resnet50-0676ba61.pth": (
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a"
    ),
    "https://download.pytorch.org/models/resnet101-63fe2227.pth": (
        "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a"
    ),
}
HASH_IN_NAME = re.compile(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.[a-z.]+$")  # but not a date


def local_path(source: str) -> Path:
    """Where the file is, or after a download will be.

    Raises:
        CheckpointError: not an https address, no network, offline, too large, or of another hash; or a hash
            that is none.
    """
    source = address_of(source)
    if "://" not in source:
        return Path(source)
    if not source.startswith("https://"):
        raise CheckpointError(f"{source}: weights are downloaded over https only")
    url, _, fragment = source.partition("#")
    digest = expected_hash(url, fragment)
    # The whole address is the key: files of the same path on two hosts are two files.
    path = cache_folder() / hashlib.sha256(source.encode()).hexdigest()
    if not path.is_file():
        _download(url, path, digest)
    return path


def address_of(source: str) -> str:
    """``source``, with the host where it is an address of Detectron2's."""
    for scheme, address in MIRRORS.items():
        source = address + source.removeprefix(scheme) if source.startswith(scheme) else source
    return source


def expected_hash(url: str, fragment: str = "") -> str:
    """The SHA-256 that an address promises, the beginning of it, or an empty string."""
    if not fragment:
        in_name = HASH_IN_NAME.search(url)
        return SHA256.get(url) or (in_name[1] if in_name else "")
    given = re.fullmatch("sha256=([0-9a-f]{64})", fragment.lower())
    if not given:
        raise CheckpointError(f"{url}#{fragment}: expected #sha256= and 64 hexadecimal digits")
    return given[1]


def cache_folder() -> Path:
    """Folder of downloaded weights."""
    return Path(os.environ.get("NLNET_D2_CACHE", "~/.cache/nlnet_d2")).expanduser()


def _download(url: str, path: Path, digest: str) -> None:
    """Put a file into the cache: all processes of a run ask for it, one downloads, the others wait."""
    if os.environ.get("NLNET_D2_OFFLINE", "") not in ("", "0"):
        raise CheckpointError(f"{url} is not in {path.parent}, and NLNET_D2_OFFLINE forbids to download it")
    with file_lock(str(path)):  # makes the folder, too
        if not path.is_file():
            _fetch(url, path, digest)


def _fetch(url: str, path: Path, digest: str) -> None:
    logger.info("Downloading %s to %s", url, path)
    try:
        with atomic_write(path) as file:
            found = _copy(url, file)
            if not found.startswith(digest):
                raise CheckpointError(
                    f"{url}: its SHA-256 is {found}, not {digest}: damaged, or another file than is meant. If"
                    f" not, end the address in #sha256={found}"
                )
    except (URLError, TimeoutError, ConnectionError) as error:
        raise CheckpointError(f"{url} cannot be downloaded: {error}") from error
    logger.info("Its SHA-256 is %s", found)


def _copy(url: str, file) -> str:
    """Write the content of ``url`` to ``file``; returns its SHA-256."""
    sha, size = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=60) as response:
        if not response.url.startswith("https://"):
            raise CheckpointError(f"{url} leads to {response.url}: weights are downloaded over https only")
        while chunk := response.read(CHUNK):
            size += len(chunk)
            if size > MAX_BYTES:
                raise CheckpointError(f"{url} has more than {MAX_BYTES} bytes")
            sha.update(chunk)
            file.write(chunk)
    promised = int(response.headers.get("Content-Length", size))
    if size != promised:  # a connection that breaks looks like an end
        raise ConnectionError(f"{size} of {promised} bytes arrived")
    return sha.hexdigest()
