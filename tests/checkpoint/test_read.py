"""Every container in use, read by its content; and the network, which is https, checked and cached."""

import argparse
import collections
import hashlib
import io
import os
import pickle
import re
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.download import HASH_IN_NAME, SHA256, address_of, local_path
from nlnet_d2.checkpoint.read import read_tensors, select_tensors

WEIGHTS = {
    "conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "conv.bias": torch.tensor([0.5, -2.0]).half(),
    "steps": torch.tensor(7),
}
ARRAYS = {name: value.numpy() for name, value in WEIGHTS.items()}


def check(path):
    found = read_tensors(path)
    assert list(found) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("container", ["model_state", "state_dict", "model", None])
def test_torch_files(tmp_path, zipped, container):
    """The suffix does not matter, nor what else a training script has put into the file."""
    content = collections.OrderedDict(WEIGHTS)
    content._metadata = {"": {"version": 1}}
    if container:
        milestones = collections.Counter([6, 8])
        extras = {"epoch": 3, "optimizer": {"state": {0: {"momentum": torch.ones(3)}}}, "cfg": "A: 1"}
        content = {container: content, **extras, "args": argparse.Namespace(lr=0.1), "milestones": milestones}
    torch.save(content, tmp_path / "weights.pkl", _use_new_zipfile_serialization=zipped)
    check(tmp_path / "weights.pkl")


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_a_gpu_are_read_without_one(tmp_path, monkeypatch, zipped):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"model": WEIGHTS}, tmp_path / "weights.pyth", _use_new_zipfile_serialization=zipped)
    assert b"cuda:0" in (tmp_path / "weights.pyth").read_bytes()
    check(tmp_path / "weights.pyth")
    assert all(tensor.device.type == "cpu" for tensor in read_tensors(tmp_path / "weights.pyth").values())


def test_parameters_and_views(tmp_path):
    layer = torch.nn.Linear(3, 2)
    content = {"weight": layer.weight, "transposed": layer.weight.t(), "row": layer.weight[1]}
    torch.save(content, tmp_path / "weights.pth")
    found = read_tensors(tmp_path / "weights.pth")
    assert not found["weight"].requires_grad
    assert torch.equal(found["transposed"], layer.weight.t()) and torch.equal(found["row"], layer.weight[1])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", ["blobs", "model", None])
def test_pickles_of_arrays(tmp_path, protocol, container):
    content = {container: ARRAYS, "__author__": "someone"} if container else ARRAYS
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content, protocol))
    check(tmp_path / "weights.pkl")


@pytest.mark.parametrize("order", ["<", ">"])
def test_pickle_of_python_2_and_numpy_1(tmp_path, order):
    """As Caffe2 wrote them: byte strings are Python 2's str, numpy's module is numpy.core."""
    values = np.array([[1.5, -2.0, 3.0], [4.0, 5.0, 6.0]], order + "f4")
    data = values.tobytes(order="F")
    content = (
        b"\x80\x02}U\x05blobsq\x01}q\x02U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\nq\x03"
        b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01" + order.encode() + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x88T" + len(data).to_bytes(4, "little") + data + b"tbss."
    )
    (tmp_path / "weights.pkl").write_bytes(content)
    assert torch.equal(
        read_tensors(tmp_path / "weights.pkl")["conv1_w"], torch.from_numpy(values.astype("f4"))
    )


def test_numbers_and_orders_of_arrays(tmp_path):
    arrays = {"fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "scalar": np.float32(2.5)}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(arrays))
    found = read_tensors(tmp_path / "weights.pkl")
    assert found["fortran"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["scalar"].shape == () and found["scalar"] == 2.5


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "weights.npz", **ARRAYS)
    check(tmp_path / "weights.npz")


def test_safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.bin")
    found = read_tensors(tmp_path / "weights.bin")
    assert all(torch.equal(found[name], tensor) for name, tensor in WEIGHTS.items())


def test_prefix_of_distributed_training():
    assert list(select_tensors({"module.a": torch.ones(1), "module.b": torch.ones(1)})) == ["a", "b"]
    assert list(select_tensors({"module.a": torch.ones(1), "b": torch.ones(1)})) == ["module.a", "b"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({}, "holds no tensors"),
        ({"epoch": 3}, "holds no tensors"),
        ([torch.ones(1)], "a list instead of names"),
        ({"model": {"layers": [torch.ones(1)]}}, "'layers' is a list"),
        ({"a": torch.ones(1), 3: torch.ones(1)}, "a int in the place of a name"),
    ],
)
def test_what_holds_no_weights(content, match):
    with pytest.raises(CheckpointError, match=match):
        select_tensors(content)


class Web:
    """Stands in for urllib: addresses -> contents; ``asked`` counts the requests."""

    def __init__(self, pages, final=None, **headers):
        self.pages, self.final, self.headers, self.asked = pages, final, headers, 0

    def __call__(self, url, timeout):
        self.asked += 1
        if url not in self.pages:
            raise urllib.request.URLError("unknown host")
        response = io.BytesIO(self.pages[url])
        response.url, response.headers = self.final or url, self.headers
        return response


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NLNET_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NLNET_D2_OFFLINE", raising=False)
    return tmp_path / "cache"


def files(cache):
    """What the cache holds, but for the locks of downloads."""
    return [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_download_once_and_per_host(cache, monkeypatch):
    """iopath's cache ignores the host: a file of one becomes the answer of another."""
    web = Web({"https://a.org/zoo/R-50.pkl": b"one", "https://b.org/zoo/R-50.pkl": b"two"})
    monkeypatch.setattr(urllib.request, "urlopen", web)
    for _ in range(2):
        assert local_path("https://a.org/zoo/R-50.pkl").read_bytes() == b"one"
        assert local_path("https://b.org/zoo/R-50.pkl").read_bytes() == b"two"
    assert web.asked == 2 and len(files(cache)) == 2
    monkeypatch.setenv("NLNET_D2_OFFLINE", "1")
    assert local_path("https://a.org/zoo/R-50.pkl").read_bytes() == b"one"
    with pytest.raises(CheckpointError, match="NLNET_D2_OFFLINE forbids"):
        local_path("https://a.org/zoo/R-101.pkl")


def test_what_another_process_downloads_is_waited_for(cache, monkeypatch):
    """The processes of a run start together: a file of gigabytes comes once, not once for each."""

    @contextmanager
    def lock(path):
        Path(path).parent.mkdir()
        Path(path).write_bytes(b"the other's")  # while this process waited
        yield

    web = Web({"https://a.org/x.pkl": b"own"})
    monkeypatch.setattr(urllib.request, "urlopen", web)
    monkeypatch.setattr("nlnet_d2.checkpoint.download.file_lock", lock)
    assert local_path("https://a.org/x.pkl").read_bytes() == b"the other's"
    assert web.asked == 0


def test_a_download_can_be_read_by_whom_the_umask_lets(cache, monkeypatch):
    """NLNET_D2_CACHE may be shared by a group."""
    monkeypatch.setattr(urllib.request, "urlopen", Web({"https://a.org/x.pkl": b"weights"}))
    before = os.umask(0o027)
    try:
        assert local_path("https://a.org/x.pkl").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_detectron2_addresses(cache, monkeypatch):
    web = Web({"https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl": b"msra"})
    monkeypatch.setattr(urllib.request, "urlopen", web)
    assert local_path("detectron2://ImageNetPretrained/MSRA/R-50.pkl").read_bytes() == b"msra"


def test_hash_of_a_download(cache, monkeypatch):
    digest = hashlib.sha256(b"weights").hexdigest()
    named = f"https://a.org/resnet50-{digest[:8]}.pth"
    monkeypatch.setattr(
        urllib.request, "urlopen", Web({"https://a.org/x.pth": b"weights", named: b"weights"})
    )
    assert local_path(f"https://a.org/x.pth#sha256={digest}").is_file() and local_path(named).is_file()
    for wrong in (f"https://a.org/x.pth#sha256={digest[::-1]}", "https://a.org/x.pth#sha256=" + "0" * 64):
        with pytest.raises(CheckpointError, match=f"its SHA-256 is .* end the address in #sha256={digest}"):
            local_path(wrong)
    for wrong in ("sha256=", f"sha256={digest[:8]}", f"md5={digest}", digest):
        with pytest.raises(CheckpointError, match="expected #sha256= and 64 hexadecimal digits"):
            local_path(f"https://a.org/x.pth#{wrong}")
    assert len(files(cache)) == 2, "nothing half-checked stays in the cache"


@pytest.mark.parametrize(
    "name",
    [
        "resnet50-0676ba61.pth",
        "deit_base-b5f2ef4d.pth",
        "mask_rcnn_coco_20200205-d4b0c5d6.pth",
        "x-12345678.pkl",
    ],
)
def test_hash_in_the_name_of_a_download(cache, monkeypatch, name):
    monkeypatch.setattr(urllib.request, "urlopen", Web({f"https://a.org/{name}": b"something else"}))
    with pytest.raises(CheckpointError, match=rf"its SHA-256 is .*, not {name[-12:-4]}"):
        local_path(f"https://a.org/{name}")
    assert not files(cache)


def test_known_hashes(cache, monkeypatch):
    """Each belongs to the file that its name, where that has a beginning of it, says; and is checked."""
    assert all(
        re.fullmatch("[0-9a-f]{64}", digest) and url.startswith("https://") for url, digest in SHA256.items()
    )
    named = {url: HASH_IN_NAME.search(url) for url in SHA256}
    assert sum(SHA256[url].startswith(found[1]) for url, found in named.items() if found) == 2
    source = "detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl"
    monkeypatch.setattr(urllib.request, "urlopen", Web({address_of(source): b"something else"}))
    with pytest.raises(CheckpointError, match="its SHA-256 is .*, not 3c25caca37ba"):
        local_path(source)
    assert not files(cache)


def test_a_download_that_breaks_off(cache, monkeypatch):
    page = {"https://a.org/x.pkl": b"weigh"}
    monkeypatch.setattr(urllib.request, "urlopen", Web(page, **{"Content-Length": "7"}))
    with pytest.raises(CheckpointError, match="x.pkl cannot be downloaded: 5 of 7 bytes arrived"):
        local_path("https://a.org/x.pkl")
    assert not files(cache)


@pytest.mark.parametrize("name", ["model-20200205.pth", "ViT-B_16-224.npz", "c2-R-50.pkl"])
def test_dates_and_numbers_in_a_name_are_no_hash(cache, monkeypatch, name):
    monkeypatch.setattr(urllib.request, "urlopen", Web({f"https://a.org/{name}": b"weights"}))
    assert local_path(f"https://a.org/{name}").read_bytes() == b"weights"


def test_path_in_an_address_cannot_leave_the_cache(cache, monkeypatch):
    """iopath writes to where the dots lead."""
    url = "https://a.org/zoo/../../../../x.pkl"
    monkeypatch.setattr(urllib.request, "urlopen", Web({url: b"weights"}))
    assert local_path(url).parent == cache
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


@pytest.mark.parametrize(
    "source", ["http://a.org/x.pkl", "ftp://a.org/x.pkl", "file:///etc/passwd", "s3://x/y"]
)
def test_only_https(cache, source):
    with pytest.raises(CheckpointError, match="https only"):
        local_path(source)


def test_redirect_away_from_https(cache, monkeypatch):
    web = Web({"https://a.org/x.pkl": b"weights"}, final="http://a.org/x.pkl")
    monkeypatch.setattr(urllib.request, "urlopen", web)
    with pytest.raises(CheckpointError, match="leads to http://a.org"):
        local_path("https://a.org/x.pkl")
    assert not files(cache)


def test_no_network_and_too_large(cache, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", Web({"https://a.org/x.pkl": b"weights"}))
    with pytest.raises(CheckpointError, match="cannot be downloaded.*unknown host"):
        local_path("https://nowhere.org/x.pkl")
    monkeypatch.setattr("nlnet_d2.checkpoint.download.MAX_BYTES", 3)
    with pytest.raises(CheckpointError, match="more than 3 bytes"):
        local_path("https://a.org/x.pkl")
    assert not files(cache)


def test_local_paths_stay_as_they_are(tmp_path):
    assert local_path(str(tmp_path / "x.pkl")) == tmp_path / "x.pkl"
