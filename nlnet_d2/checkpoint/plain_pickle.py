"""Pickles that cannot run code: numpy arrays, numbers, strings and plain containers, nothing else.

A pickle is a program: a ``GLOBAL`` names any function of any module and ``REDUCE`` calls it. Here a global is
looked up in a table of a dozen names, and what stands in the table are our own functions, which only take
notes: an array is built after all sizes have been checked, from bytes that are in the file.
"""

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Sized
from typing import Any, NamedTuple

import numpy as np

from nlnet_d2.checkpoint.checkpointer import CheckpointError

MEMO = {"PUT", "BINPUT", "LONG_BINPUT"}
CHANGES = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}  # the object below on the stack
DEPTH = 50  # of tuples in tuples; those of weights have two or three


class PickledDtype:
    """``numpy.dtype`` as pickled: a code such as "f4", its byte order in the state."""

    def __init__(self, code: str, *_flags: Any):
        if not isinstance(code, str):
            raise CheckpointError("refused: a dtype that is no name; only numbers are admitted")
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise CheckpointError(f"refused: an array of dtype {self.dtype}; only numbers are admitted")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray:
    """``numpy.ndarray`` as pickled; ``build`` makes the array, once its size is known to be harmless."""

    def __init__(self, *state: Any):
        if state:
            self.__setstate__((1, *state))

    def __setstate__(self, state: tuple) -> None:
        _version, self.shape, dtype, self.fortran, self.data = state
        self.dtype = dtype.dtype

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def build(self) -> np.ndarray:
        """The array, in this machine's byte order; raises ValueError if shape and data disagree."""
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data  # str: from Python 2
        array = np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if self.fortran else "C")
        return array.astype(self.dtype.newbyteorder("="))


class PickledDict(OrderedDict):
    """``collections.OrderedDict`` as pickled, without its attributes (the versions of a model's layers)."""

    def __setstate__(self, _: Any) -> None:
        """Forget them."""


def _empty_array(_type: Any, _shape: Any, _code: Any) -> PickledArray:
    return PickledArray()


def _array_from_buffer(data: bytes, dtype: PickledDtype, shape: tuple, order: str) -> PickledArray:
    return PickledArray(shape, dtype, order == "F", data)


def _scalar(dtype: PickledDtype, data: bytes) -> PickledArray:
    return PickledArray((), dtype, False, data)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # Python 3 writes bytes so, for Python 2 to read
        raise CheckpointError("refused: _codecs.encode to something else; only latin1 is admitted")
    return text.encode("latin1")


ADMITTED = {
    ("collections", "OrderedDict"): PickledDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): PickledDtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_from_buffer for core in ("core", "_core")},
}


class PlainUnpickler(pickle.Unpickler):
    """Unpickles what ``admitted`` names; arrays come as ``PickledArray``.

    ``file`` is as ``check_opcodes`` needs it, and stands at the pickle. What calls are given is counted: a
    pickle may fetch the same megabyte from its memo a thousand times, and each call may make a copy.
    """

    admitted = ADMITTED

    def __init__(self, file: Any):
        start = file.tell()
        check_opcodes(file)
        self._left = file.tell() - start
        file.seek(start)
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.admitted:
            raise CheckpointError(
                f"refused: it asks for {module}.{name}, which could run code. If you trust it, save its "
                "tensors alone (torch.save of the state dict, or safetensors) and load that"
            )
        found = self.admitted[module, name]
        # A fresh class or function: a pickle may set attributes (BUILD), and must not reach what outlives it.
        if isinstance(found, type):
            methods = {key: self._counted(getattr(found, key)) for key in ("__init__", "__setstate__")}
            return type(name, (found,), methods)
        return self._counted(found) if callable(found) else found

    def _counted(self, function: Callable) -> Callable:
        def call(*args: Any) -> Any:
            self._left -= sum(len(arg) for arg in args if isinstance(arg, Sized))
            if self._left < 0:
                raise CheckpointError("refused: a pickle that hands the same things to calls again and again")
            return function(*args)

        call.__setstate__ = lambda _: None  # BUILD would copy what it is given into the function
        return call

    def persistent_load(self, pid: Any) -> Any:
        raise CheckpointError("refused: a pickle with persistent ids outside a torch file")


class Nesting(NamedTuple):
    """How deep tuples stand within tuples, and how many objects they would be if none were shared."""

    depth: int
    size: int


PLAIN = Nesting(0, 1)  # what is no tuple


def check_opcodes(file: Any) -> None:
    """Refuse a pickle that would make the unpickler allocate more than the file holds, or fail in C.

    ``file`` is a seekable buffer whose ``read`` returns at most what is left (``io.BytesIO``, ``mmap``), and
    stands behind the pickle afterwards. Lengths in the file are compared with what is left (pickletools does
    that), and indices of the memo, for which the unpickler grows an array, with the number of instructions.
    Tuples are followed over the stack: to hash one, Python goes through all that are in it, as often as they
    are, and as deep, until the stack of the process is used up.
    """
    stack: list[Nesting | None] = []  # None is a mark
    memo: dict[int, Nesting | None] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if name in MEMO and argument > count:
            raise CheckpointError(f"refused: a memo index of {argument} after {count} instructions")
        if name in MEMO or name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name.endswith("GET") or name == "DUP":
            stack.append(stack[-1] if argument is None else memo[argument])
        elif not opcode.stack_before:
            stack += [None if name == "MARK" else PLAIN] * len(opcode.stack_after)
        else:
            stack += _results(opcode, _take(stack, opcode.stack_before), 4 * count + 100)


def _take(stack: list[Nesting | None], wanted: list[pickletools.StackObject]) -> list[Nesting]:
    """Pop what an instruction takes from the stack, without marks."""
    first = len(stack) - len(wanted)
    if pickletools.markobject in wanted:
        mark = next(i for i in reversed(range(len(stack))) if stack[i] is None)
        first = mark - wanted.index(pickletools.markobject)
    taken = [item for item in stack[first:] if item is not None]
    del stack[first:]
    return taken


def _results(opcode: pickletools.OpcodeInfo, taken: list[Nesting], limit: int) -> list[Nesting]:
    """What an instruction leaves on the stack."""
    if "TUPLE" in opcode.name or opcode.name == "FROZENSET":
        depth = 1 + max((item.depth for item in taken), default=0)
        size = 1 + sum(item.size for item in taken)
        if depth > DEPTH or size > limit:
            raise CheckpointError(f"refused: tuples in tuples, {depth} deep, {size} objects if written out")
        return [Nesting(depth, size)]
    if opcode.name in CHANGES:
        return taken[:1]
    return [PLAIN] * len(opcode.stack_after)


def load_plain_pickle(file: Any) -> Any:
    """What one pickle at the position of ``file`` (see ``PlainUnpickler``) holds.

    Raises:
        CheckpointError: it asks for anything but the admitted names, or for memory beyond its size.
        Exception: of many kinds, if the pickle is damaged; ``read.py`` gives them a name.
    """
    return PlainUnpickler(file).load()
