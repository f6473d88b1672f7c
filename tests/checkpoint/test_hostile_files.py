"""Files made to run code, exhaust the memory or lead astray: each is refused by name, and nothing runs."""

import codecs
import collections
import io
import os
import pickle
import random
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nlnet_d2.checkpoint.checkpointer import CheckpointError
from nlnet_d2.checkpoint.plain_pickle import ADMITTED
from nlnet_d2.checkpoint.read import read_tensors

WEIGHTS = {"stem.conv1.weight": torch.arange(48.0).reshape(4, 12), "step": torch.tensor(3)}
MEGABYTE = 1 << 20
CORE = getattr(np, "_core", None) or np.core  # numpy 2, 1


class RunsACommand:
    """Unpickling an instance runs ``touch MARKER``."""

    def __init__(self, marker, function=os.system):
        self.call = function, (f"touch {marker}",)

    def __reduce__(self):
        return self.call


class Reduces:
    """Pickles as a call of ``function``, which need not be ours."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "the file ran a command"


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)


def write(tmp_path, content):
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    return path


def zip_of(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


class TensorPickler(pickle._Pickler):
    """Writes the pickle inside a torch file: a ``Declared`` storage becomes a persistent id."""

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Declared) else None


class Declared:
    def __init__(self, numel, storage=torch.FloatStorage, kind="storage", key="0"):
        self.pid = (kind, storage, key, "cpu", numel)


def torch_zip(content, data=bytes(64), compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    TensorPickler(buffer, 2).dump(content)
    members = {"data.pkl": buffer.getvalue(), "byteorder": b"little", "data/0": data, "version": b"3\n"}
    return zip_of([(f"archive/{name}", value) for name, value in members.items()], compression)


def tensor_of(storage, size, stride, offset=0):
    hooks = collections.OrderedDict()
    return Reduces(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, hooks)


@pytest.mark.parametrize("protocol", range(6))
def test_command_in_a_plain_pickle(tmp_path, marker, protocol):
    evil = RunsACommand(marker)
    for content in (evil, {"a": evil}, {"model": {"a": np.ones(3), "b": [evil]}}, {evil: 1}):
        refused(write(tmp_path, pickle.dumps(content, protocol)), r"posix\.system, which could run code")


@pytest.mark.parametrize(
    "function", [eval, exec, __import__, getattr, open, torch.load, np.load, np.fromfile]
)
def test_other_functions_in_a_plain_pickle(tmp_path, marker, function):
    content = pickle.dumps({"a": RunsACommand(marker, function)}, 2)
    refused(write(tmp_path, content), f"{function.__name__}, which could run code")


def test_command_through_numpy(tmp_path, marker):
    evil = RunsACommand(marker)
    refused(write(tmp_path, pickle.dumps({"a": np.array([evil], dtype=object)})), "dtype object")
    reconstruct = Reduces(CORE.multiarray._reconstruct, evil, (0,), b"b")
    refused(write(tmp_path, pickle.dumps({"a": reconstruct})), "posix.system")
    np.savez(tmp_path / "weights.npz", a=np.array([evil], dtype=object))
    refused(tmp_path / "weights.npz", "damaged|allow_pickle|declares")


@pytest.mark.parametrize("zipped", [True, False])
def test_command_in_a_torch_file(tmp_path, marker, zipped, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for extra in ({"args": RunsACommand(marker)}, {"optimizer": [{"state": (RunsACommand(marker),)}]}):
        path = tmp_path / "weights.pth"
        torch.save({"model": WEIGHTS, **extra}, path, _use_new_zipfile_serialization=zipped)
        refused(path, r"posix\.system, which could run code")


def test_command_through_torch_storages(tmp_path, marker):
    evil = RunsACommand(marker)
    for storage in (Declared(4, storage=evil), Declared(evil), Declared(4, kind=evil)):
        refused(write(tmp_path, torch_zip({"a": tensor_of(storage, (4,), (1,))})), "posix.system")
    refused(write(tmp_path, torch_zip({"a": tensor_of(evil, (4,), (1,))})), "posix.system")
    loads = Reduces(torch.storage._load_from_bytes, pickle.dumps(evil))
    refused(write(tmp_path, pickle.dumps({"a": loads})), "torch.storage._load_from_bytes")
    refused(write(tmp_path, torch_zip({"a": loads})), "torch.storage._load_from_bytes")


def test_a_program_is_not_weights(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "weights.pth")
    refused(tmp_path / "weights.pth", "TorchScript archive is a program")


@pytest.mark.parametrize("name", [b"c_codecs\nencode\n", b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n"])
def test_a_pickle_cannot_change_how_later_files_are_read(tmp_path, name):
    """BUILD sets attributes of whatever it is given, also of what a GLOBAL found: here ``evil``, to 1."""
    before = [dict(vars(found)) for found in ADMITTED.values() if hasattr(found, "__dict__")]
    attributes = b"}X\x04\x00\x00\x00evilK\x01s"
    for state in (attributes, b"}" + attributes + b"\x86"):
        with pytest.raises(CheckpointError):
            read_tensors(write(tmp_path, b"\x80\x02" + name + state + b"b."))
    assert before == [dict(vars(found)) for found in ADMITTED.values() if hasattr(found, "__dict__")]


def shared():
    """(name, file, what the error says): small files in which one thing is used many times."""
    pairs, attributes = [(str(i), None) for i in range(2000)], {str(i): i for i in range(2000)}
    calls = {"text": (codecs.encode, "a" * 65536, "latin1"), "pairs": (collections.OrderedDict, pairs)}
    for name, call in calls.items():
        content = pickle.dumps([Reduces(*call) for _ in range(1000)])
        yield f"one {name} in many calls", content, "again and again"
    dicts = [Reduces(collections.OrderedDict, state=attributes) for _ in range(1000)]
    yield "one state of many dicts", pickle.dumps(dicts), "again and again"
    yield "the same in a torch file", torch_zip(dicts), "again and again"
    functions = pickle.dumps(attributes, 2)[:-1] + b"0](" + b"c_codecs\nencode\nh\x00b" * 1000 + b"e."
    yield "one state of many functions", functions, "a list instead of names"
    put, pair = b"q\x010", b"h\x01h\x01\x86"
    yield "a deep key", b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.", "51 deep"
    for name, change in (("", b""), (" that is not changed", b"(e"), (" whose state is empty", b"NN\x86b")):
        content = b"\x80\x02}q\x00)" + put + (pair + change + put) * 40 + b"h\x00h\x01Ns."
        yield f"a key of 2 ** 40 objects{name}", content, "objects if written out"
    nested, keys = "x", frozenset()
    for _ in range(24):  # written out they would have 100 MB
        nested, keys = [nested, nested], frozenset([keys, (keys,)])
    yield "encoding", pickle.dumps({"a": Reduces(codecs.encode, "a", nested)}), "something else"
    yield "dtype", pickle.dumps({"a": Reduces(np.dtype, nested)}), "a dtype that is no name"
    yield "name", pickle.dumps({keys: np.ones(3)}), "objects if written out"
    storages = Declared(4, kind=nested), Declared(4, key=nested)
    for part, storage in zip(("kind", "key"), storages, strict=True):
        content = torch_zip({"a": tensor_of(storage, (4,), (1,))})
        yield f"{part} of a storage", content, "an unknown kind of storage"


def oversized():
    """(name, file, what the error says): small files that declare a lot."""
    huge, ones = 1 << 40, np.ones(MEGABYTE // 8)
    from_buffer = getattr(CORE.numeric, "_frombuffer")  # noqa: B009  (private)
    yield "array", pickle.dumps({"a": Reduces(from_buffer, b"1234", np.dtype("f4"), (huge,), "C")}), "reshape"
    reconstruct = Reduces(CORE.multiarray._reconstruct, np.ndarray, (huge,), b"b")
    yield "empty array", pickle.dumps({"a": reconstruct}), "damaged"
    state = (1, (huge,), np.dtype("f8"), False, b"12345678")
    reconstruct = Reduces(CORE.multiarray._reconstruct, np.ndarray, (0,), b"b", state=state)
    yield "array state", pickle.dumps({"a": reconstruct}), "reshape"
    yield "length of bytes", b"\x80\x04\x8e" + huge.to_bytes(8, "little") + b"abc.", "only 4 remain"
    yield "length of a bytearray", b"\x80\x05\x96" + huge.to_bytes(8, "little") + b"abc.", "only 4 remain"
    yield "memo", b"\x80\x02]r\xff\xff\xff\x7f.", "memo index of 2147483647"
    aliases = {f"a{i}": ones for i in range(100)}
    yield "one array of many names", pickle.dumps(aliases), "tensors take more than"
    yield "torch storage", torch_zip({"a": tensor_of(Declared(huge), (4,), (1,))}), "declares 4398046511104"
    for size, stride in (
        ((huge,), (1,)),
        ((huge,), (0,)),
        ((-4,), (1,)),
        ((4,), (-1,)),
        ((4, 4), (8, 1)),
        ((4, 4), (5, 1)),  # the last row
        ((1 << 32, 1 << 32), (0, 0)),
    ):
        content = torch_zip({"a": tensor_of(Declared(16), size, stride)})
        yield f"torch tensor {size} {stride}", content, "refused: a tensor of shape"
    both = {"a": tensor_of(Declared(4), (4,), (1,)), "b": tensor_of(Declared(4, key="1"), (4,), (1,))}
    yield "second torch storage", torch_zip(both), "storage 1 declares 16 bytes and has 0"
    both = {"a": tensor_of(Declared(4), (4,), (1,)), "b": tensor_of(Declared(16), (4,), (1,))}
    yield "torch storage, twice", torch_zip(both), "two sizes"
    packed = torch_zip({"a": tensor_of(Declared(1), (1,), (1,))}, bytes(MEGABYTE), zipfile.ZIP_DEFLATED)
    yield "compressed torch file", packed, "compresses nothing"
    bomb = zip_of([("a.npy", bytes(64 * MEGABYTE))], zipfile.ZIP_DEFLATED)
    yield "zip bomb", bomb, "unpacks to 67108864"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (huge,)})
    yield "npz header", zip_of([("a.npy", header.getvalue())]), "a.npy declares 8796093022208"
    yield "safetensors header", huge.to_bytes(8, "little") + b'{"a":1}', "SafetensorError"
    tensors = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    yield "safetensors shape", len(tensors).to_bytes(8, "little") + tensors + bytes(8), "SafetensorError"


@pytest.mark.parametrize(
    ("content", "match"), [pytest.param(c, m, id=n) for n, c, m in (*oversized(), *shared())]
)
def test_declared_sizes_are_not_believed(tmp_path, content, match):
    path = write(tmp_path, content)
    tracemalloc.start()
    try:
        refused(path, match)
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()


def test_oversized_storage_in_an_old_torch_file(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(7)}, path, _use_new_zipfile_serialization=False)
    small, huge = b"X\x03\x00\x00\x00cpuq", b"K\x07"
    content = path.read_bytes()
    assert small in content and content.count(huge) >= 2
    storage, rest = content.split(small, 1)
    path.write_bytes(storage + small + rest.replace(huge, b"\x8a\x05\x00\x00\x00\x00\x01", 1))
    refused(path, "storages declare 17179869184 bytes")


@pytest.mark.parametrize("name", ["../../evil.npy", "/etc/evil.npy", "C:\\evil.npy", "a\\..\\..\\evil.npy"])
def test_paths_out_of_an_archive(tmp_path, name):
    array = io.BytesIO()
    np.save(array, np.ones(3))
    refused(write(tmp_path, zip_of([("a.npy", array.getvalue()), (name, array.getvalue())])), "leads outside")
    assert not (tmp_path.parent.parent / "evil.npy").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path):
    """Two readers may take two different ones; torch's ignores case."""
    for second in ("archive/data.pkl", "archive/DATA.PKL"):
        refused(write(tmp_path, zip_of([("archive/data.pkl", b"1"), (second, b"2")])), "same name")


def formats(folder):
    """One small file of each container."""
    folder.mkdir(exist_ok=True)
    arrays = {name: value.numpy() for name, value in WEIGHTS.items()}
    torch.save(WEIGHTS, folder / "new.pth")
    torch.save(WEIGHTS, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "protocol2.pkl").write_bytes(pickle.dumps({"blobs": arrays}, 2))
    (folder / "protocol5.pkl").write_bytes(pickle.dumps({"model": arrays}, 5))
    np.savez(folder / "plain.npz", **arrays)
    save_file(WEIGHTS, folder / "plain.safetensors")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return formats(tmp_path_factory.mktemp("formats"))


@pytest.mark.parametrize("sixteenth", range(16))
def test_truncated_files(files, tmp_path, sixteenth):
    for file in files:
        content = file.read_bytes()
        path = tmp_path / file.name
        path.write_bytes(content[: len(content) * sixteenth // 16])
        refused(path, "truncated|damaged|no weights|refused")


def test_damaged_files_end_in_a_named_error(files, tmp_path):
    """Seeded mutations: each file is read, to tensors of the same size, or refused; nothing else happens."""
    rng = random.Random(0)
    for file in files:
        for _ in range(40):
            content = bytearray(file.read_bytes())
            for _ in range(rng.choice((1, 2, 8))):
                content[rng.randrange(len(content))] = rng.randrange(256)
            path = tmp_path / file.name
            path.write_bytes(content)
            try:
                tensors = read_tensors(path)
            except CheckpointError as error:
                assert str(path) in str(error)
            else:
                assert sum(t.nbytes for t in tensors.values()) <= 4 * len(content) + MEGABYTE


def test_one_flipped_bit_in_a_tensor(files):
    """torch.load takes it for a weight."""
    path = next(file for file in files if file.name == "new.pth")
    content = path.read_bytes()
    at = content.index(WEIGHTS["stem.conv1.weight"].numpy().tobytes()) + 40
    damaged = path.with_name("flipped.pth")
    damaged.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    refused(damaged, "the checksum of .* is wrong")


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"version https://git-lfs", b"\x1f\x8b\x08", b"hello"]
)
def test_what_is_no_weights_file(tmp_path, content):
    refused(write(tmp_path, content), "no weights|unknown format")


def test_missing_file(tmp_path):
    refused(tmp_path / "absent.pth", "no such file")
    refused(tmp_path, "a folder; name the file of weights in it")
