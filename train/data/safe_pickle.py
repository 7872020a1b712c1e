"""Reads the pickles that graph data sets are published as, without running what they ask for.

A pickle is a program: loading it calls whatever functions it names, with arguments of its own. The
unpickler here knows the few names that numpy arrays, scipy's sparse rows and dictionaries of lists
need, and refuses every other one. What it knows are inert stand-ins for them, which note their
arguments and do nothing: numpy's own constructors would make arrays of objects over raw bytes, or
over memory before their buffer. Arrays are made afterwards, of what was noted and checked.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

MOST_ENTRIES = 2**28  # of a matrix, once it is dense: 1 GiB of float32
MOST_TUPLES = 1000  # in one pickle; hashing tuples in tuples in tuples overflows the stack


class UnsafePickleError(ValueError):
    """A pickle asked for a name outside the list."""


class _StandIn:
    """What a name in a pickle stands for; one without attributes that a pickle could set."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it sets the state of something that has none")


class _Dtype(_StandIn):
    """numpy.dtype: of plain numbers alone."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"f[248]|[iu][1248]|b1", code):
            raise ValueError(f"it holds an array of dtype {code!r:.40}; expected plain numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        order, *parts = state[1:5]
        if order not in ("<", ">", "=", "|") or any(part is not None for part in parts):
            raise ValueError(f"it holds an array of dtype {state!r:.80}; expected plain numbers")
        self.order = order


class _Array(_StandIn):
    """A numpy array, which numpy's `_reconstruct` makes empty and its state fills."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _SparseRows(_StandIn):
    """scipy's csr_matrix."""

    __slots__ = ("fields",)

    def __setstate__(self, state: Any) -> None:
        self.fields = state


class _Bytes(_StandIn):
    """`_codecs.encode`, which is how Python 3 writes bytes in an old protocol; latin1 alone."""

    def __new__(cls, text: str, _encoding: Any) -> Any:
        return text.encode("latin1")


class _Dictionary(_StandIn):
    """collections.defaultdict, whose default nobody here asks for."""

    def __new__(cls, *_: Any) -> Any:
        return {}


class _Type(_StandIn):
    """A type that is an argument to others and never called."""

    def __new__(cls, *_: Any) -> Any:
        raise UnsafePickleError("it calls a type of numpy's or Python's, which may touch memory")


# Both the names Python 2 wrote and those that today's Python, numpy and scipy write.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _Bytes,
    ("builtins", "list"): _Type,
    ("collections", "defaultdict"): _Dictionary,
    ("numpy", "ndarray"): _Type,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("scipy.sparse.csr", "csr_matrix"): _SparseRows,
    ("scipy.sparse._csr", "csr_matrix"): _SparseRows,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        admitted = ", ".join(sorted({name for _, name in _ADMITTED}))
        raise UnsafePickleError(
            f"it asks for {module}.{name}, which loading would run; only {admitted} are admitted"
        )


def load(path: Path) -> Any:
    """Reads a pickle of a numpy array of numbers, scipy's sparse rows, or a dictionary of lists.

    A sparse matrix comes back dense, float32, a default dictionary as a plain one.

    Raises:
        UnsafePickleError: the file asks for anything else, which is named and was not run.
        ValueError: the file is corrupted, or its arrays are not of plain numbers.
        FileNotFoundError: there is no such file.

    Example:
        >>> import pickle, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "graph")
        ...     _ = path.write_bytes(pickle.dumps({0: [1], 1: [0, 2]}))
        ...     load(path)
        {0: [1], 1: [0, 2]}
    """
    data = Path(path).read_bytes()
    try:
        _check_operations(data)
        # Python 2 strings hold numpy's raw bytes; latin1 maps every byte to itself.
        value = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        if isinstance(value, _SparseRows):
            return _dense(value)
        return _array(value) if isinstance(value, _Array) else value
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path} was refused: {error}. Nothing was run. Delete the file and get it from its "
            f"official source."
        ) from None
    # A damaged pickle can fail anywhere in the unpickler, with nearly any exception.
    except Exception as error:
        raise ValueError(
            f"{path} is corrupted ({type(error).__name__}: {error}). Delete the file and get it "
            f"again from its official source."
        ) from error


def _check_operations(data: bytes) -> None:
    """Refuses what makes the unpickler itself take any memory, or overflow the stack."""
    tuples = 0
    argument: Any
    for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
        # The memo is an array as long as its largest index, which a file may choose.
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= argument <= number:
            raise ValueError(f"operation {number} has the memo's number {argument}")
        tuples += operation.name.startswith("TUPLE") or operation.name == "FROZENSET"
        if tuples > MOST_TUPLES:
            raise ValueError(f"it holds more than {MOST_TUPLES} tuples")


def _array(noted: Any) -> np.ndarray:
    """The array that a stand-in noted, if its bytes are as many as its shape needs."""
    if not isinstance(noted, _Array):
        raise ValueError(f"it holds {type(noted).__name__} where an array should be")
    _, shape, dtype, by_columns, raw = noted.state
    if isinstance(raw, str):  # from Python 2
        raw = raw.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
        raise ValueError("it holds an array of something else than numbers")
    kind: np.dtype[Any] = np.dtype(dtype.order + dtype.code)
    shape = _sizes(shape)
    if math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError(f"its array of {kind} {list(shape)} has {len(raw)} bytes")
    return np.frombuffer(raw, kind).reshape(shape, order="F" if by_columns else "C")


def _sizes(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape)
    if len(sizes) > 8 or any(type(size) is not int or not 0 <= size < 2**31 for size in sizes):
        raise ValueError(f"its shape {shape!r:.80} is none")
    return sizes


def _dense(sparse: _SparseRows) -> np.ndarray:
    """Compressed sparse rows to an array [rows, columns], every index checked."""
    fields = sparse.fields
    rows, columns = _sizes(fields["_shape"] if "_shape" in fields else fields["shape"])
    if rows * columns > MOST_ENTRIES:
        raise ValueError(
            f"its sparse rows are a {rows} x {columns} matrix; expected up to {MOST_ENTRIES} "
            "entries"
        )
    values, indices, starts = (_array(fields[name]) for name in ("data", "indices", "indptr"))
    if indices.dtype.kind not in "iu" or starts.dtype.kind not in "iu":
        raise ValueError(f"its sparse rows have indices of {indices.dtype} and {starts.dtype}")
    indices, starts = indices.astype(np.int64), starts.astype(np.int64)
    counts = np.diff(starts)
    fits = (
        starts.shape == (rows + 1,)
        and values.shape == indices.shape == (counts.sum(),)
        and starts[0] == 0
        and bool(np.all(counts >= 0))
        and bool(np.all((indices >= 0) & (indices < columns)))
    )
    if not fits:
        raise ValueError(f"its sparse rows do not describe a {rows} x {columns} matrix")
    dense = np.zeros((rows, columns), np.float32)
    np.add.at(dense, (np.repeat(np.arange(rows), counts), indices), values)
    return dense
