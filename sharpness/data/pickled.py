"""Pickled dicts of byte arrays, lists and numbers, read without executing them.

A pickle is a program that may call whatever it names. Here the few names that such a dict needs stand for recorders of
this file, which keep what they are given, so that no NumPy object is ever made from what a file says about itself.
Every other name, persistent ids and registered extensions are refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any, ClassVar

import numpy as np

PROTOCOL = 4  # the highest whose opcodes are read; the originals have protocol 2
HASHING = ("DICT", "EMPTY_SET", "ADDITEMS", "FROZENSET")  # opcodes for sets and for the dicts of protocol 0
CALLING = ("NEWOBJ", "NEWOBJ_EX")  # opcodes for objects of classes, which arrays are not stored as
ARGUMENTS = 3  # the most that any of the names is called with


class StoredDtype:
    """Stands for ``numpy.dtype``: keeps the code that it is made with, ``u1`` for bytes."""

    code: object = None

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, _: object) -> None:
        """Ignore byte order and fields: single bytes have neither."""


class StoredArray:
    """Stands for ``numpy.ndarray`` and ``_reconstruct``: keeps the state, whose values ``byte_array`` takes."""

    state: object = None

    def __init__(self, *_: object) -> None:
        """Ignore the arguments, which are those of an empty array."""

    def __setstate__(self, state: object) -> None:
        self.state = state


class StoredBytes:
    """Stands for ``_codecs.encode(text, "latin1")``, as which Python 3 writes bytes in protocol 2.

    ``left`` is how many bytes it still encodes, at first as many as the file has. Python stores every text that it
    encodes, one or two bytes for each, and encodes it once; encoded again it would take nine bytes, however long.
    """

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"it wants to encode as {brief(encoding)}, which is refused")
        self.left -= len(text)
        if self.left < 0:
            raise pickle.UnpicklingError("it wants to encode more bytes than it has, which is refused")
        return text.encode("latin1")

    def __setstate__(self, _: object) -> None:
        raise pickle.UnpicklingError("it wants to change a function, which is refused")


NAMES: dict[tuple[str, str], object] = {  # and _codecs.encode, of which every file has its own
    ("numpy", "ndarray"): StoredArray,
    ("numpy", "dtype"): StoredDtype,
    ("numpy.core.multiarray", "_reconstruct"): StoredArray,  # up to NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): StoredArray,  # from NumPy 2
}


class Reader(pickle._Unpickler):
    """The unpickler written in Python: in the one written in C, nine bytes can claim 64 GiB for its memo."""

    # without protocol 5, which adds only buffers that can claim any size as well, and without what hashes or calls
    # unasked
    dispatch: ClassVar = {
        ord(opcode.code): pickle._Unpickler.dispatch[ord(opcode.code)]
        for opcode in pickletools.opcodes
        if opcode.proto <= PROTOCOL and opcode.name not in HASHING + CALLING
    }

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.names = {**NAMES, ("_codecs", "encode"): StoredBytes(len(content))}

    def load_reduce(self: Any) -> None:
        _check_arguments(self.stack[-1])
        pickle._Unpickler.dispatch[pickle.REDUCE[0]](self)

    def load_setitem(self: Any) -> None:
        _check_keys(self.stack[-2:-1])
        pickle._Unpickler.dispatch[pickle.SETITEM[0]](self)

    def load_setitems(self: Any) -> None:
        _check_keys(self.stack[::2])
        pickle._Unpickler.dispatch[pickle.SETITEMS[0]](self)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise pickle.UnpicklingError(f"it wants to call {brief(f'{module}.{name}')}, which is refused")
        return self.names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it wants an object from elsewhere, persistent id {brief(pid)}; this is refused")

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"it wants to call the registered extension {code}, which is refused")


def _check_keys(keys: list[object]) -> None:
    """Texts and numbers only: the hash of a tuple in a tuple in … overflows the stack of the interpreter."""
    wrong = [key for key in keys if not isinstance(key, bytes | str | int)]
    if wrong:
        raise pickle.UnpicklingError(f"it has {brief(wrong[0])} as the key of a dict")


def _check_arguments(arguments: object) -> None:
    """A few in a tuple: a long text, taken apart into letters, takes many times its size, and again at every call."""
    if not isinstance(arguments, tuple) or len(arguments) > ARGUMENTS:
        raise pickle.UnpicklingError(f"it wants a call with other arguments than up to {ARGUMENTS} in a tuple")


def load(content: bytes) -> Any:
    """The dict, list, … in a pickle that Python 2 or 3 wrote, with the texts of Python 2 as bytes.

    Arrays come as ``StoredArray``. ``pickle.UnpicklingError``, whose message says what ``content`` wants or lacks,
    where it is damaged or needs anything else; nothing that it names is imported or called.

    >>> load(pickle.dumps({"labels": [6, 9]}, protocol=2))
    {'labels': [6, 9]}
    >>> load(pickle.dumps(print))
    Traceback (most recent call last):
    _pickle.UnpicklingError: it wants to call 'builtins.print', which is refused
    """
    try:
        return Reader(content).load()
    except (pickle.UnpicklingError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle fails in any way: EOFError, IndexError, KeyError of an opcode, …
        raise pickle.UnpicklingError(f"it is damaged or of another kind ({type(error).__name__})") from error


def byte_array(stored: object, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a ``StoredArray``, uint8 in this shape; ``pickle.UnpicklingError`` if it holds anything else.

    >>> bytes_of = np.arange(6, dtype=np.uint8).reshape(2, 3)
    >>> byte_array(load(pickle.dumps(bytes_of, protocol=2)), (2, 3))
    array([[0, 1, 2],
           [3, 4, 5]], dtype=uint8)
    """
    state = stored.state if isinstance(stored, StoredArray) else None
    if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], StoredDtype)):
        raise pickle.UnpicklingError(f"it holds {brief(stored)} instead of an array with its values")
    _, found, dtype, by_columns, content = state
    if dtype.code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"it holds an array of dtype {brief(dtype.code)} instead of bytes, 'u1'")
    if found != shape:
        sizes = "×".join(map(brief, found[:4])) if isinstance(found, tuple) else brief(found)
        raise pickle.UnpicklingError(f"it holds an array of shape {sizes} instead of {'×'.join(map(str, shape))}")
    if not isinstance(content, bytes) or len(content) != math.prod(shape):
        size = f"{len(content):,}" if isinstance(content, bytes) else brief(content)
        raise pickle.UnpicklingError(f"it holds an array of {math.prod(shape):,} bytes, of which it gives {size}")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")


def brief(value: object) -> str:
    """A value out of a file for a message: itself where that is short, else its type (or the start of a text).

    >>> brief("os.system"), brief(10), brief([1, 2])
    ("'os.system'", '10', 'a list')
    """
    if isinstance(value, str | bytes):
        return repr(value[:80])
    if value is None or (isinstance(value, int | float) and -1e9 < value < 1e9):  # Python prints no huge integers
        return repr(value)
    return f"a {type(value).__name__}"
