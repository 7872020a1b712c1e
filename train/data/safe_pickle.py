"""Reads the pickles that graph data sets are published as, without running what they ask for.

A pickle is a program: loading it calls whatever functions it names. The unpickler here admits the
few names that numpy arrays, scipy's sparse rows and dictionaries of lists need, and refuses every
other name before anything is called. Sparse matrices arrive as an inert record, so that compiled
code never sees indices that nobody has checked.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np


class UnsafePickleError(ValueError):
    """A pickle asked for a name outside the list."""


class _SparseRows:
    """Stands in for scipy's csr_matrix while unpickling: holds its fields, does nothing."""


def _empty_array(_type: Any, _shape: Any, _dtype: Any) -> np.ndarray:
    """Stands in for numpy's `_reconstruct`: the state that follows fills the array."""
    return np.empty(0)


def _bytes(text: str, _encoding: Any) -> bytes:
    """`_codecs.encode`, which is how Python 3 writes bytes in an old protocol; latin1 alone."""
    return text.encode("latin1")


# Both the names Python 2 wrote and those that today's Python, numpy and scipy write.
_ADMITTED = {
    ("_codecs", "encode"): _bytes,
    ("builtins", "list"): list,
    ("collections", "defaultdict"): collections.defaultdict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
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
    """Reads a pickle of numpy arrays, scipy sparse rows, or dictionaries of lists.

    Args:
        path: the file.

    Returns:
        The object; a sparse matrix comes back dense, float32.

    Raises:
        UnsafePickleError: the file asks for anything else, which is named and was not run.
        ValueError: the file is corrupted.
        FileNotFoundError: there is no such file.
    """
    data = Path(path).read_bytes()
    try:
        # Python 2 strings hold numpy's raw bytes; latin1 maps every byte to itself.
        value = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        return _dense(value) if isinstance(value, _SparseRows) else value
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


def _dense(sparse: _SparseRows) -> np.ndarray:
    """Compressed sparse rows to an array [rows, columns], every index checked."""
    fields = vars(sparse)
    shape = fields["_shape"] if "_shape" in fields else fields["shape"]
    rows, columns = (int(size) for size in shape)
    values, indices, starts = (np.asarray(fields[name]) for name in ("data", "indices", "indptr"))
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
