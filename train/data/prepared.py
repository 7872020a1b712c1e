"""Data sets that tensorflow-datasets has prepared on disk, for random access without TensorFlow."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from train.data.base import data_folder
from train.registry import ConfigError


def prepared_builder(name: str, module: str, folder: str = "") -> Any:
    """A data set of tensorflow-datasets that lies prepared on disk, for random access.

    Args:
        name: such as "glue/mrpc".
        module: the Python module that defines the data set. Importing it makes the data set known;
            without that, TFDS looks it up in a way that needs TensorFlow.
        folder: TFDS' data_dir; "" means $ALIGN_JAX_DATA/tfds or, without that variable, TFDS' own
            default.
    """
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    folder = str(data_folder(folder, "tfds", default))
    try:
        import tensorflow_datasets as tfds

        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{name} is read by tensorflow-datasets: pip install tensorflow-datasets array_record "
            f"({error})."
        ) from error
    builder = tfds.builder(name, data_dir=folder)
    if not builder.is_prepared() or builder.info.file_format.value != "array_record":
        raise ConfigError(
            f"{name} is not prepared in {folder} (as array_record). Where there is a network, run: "
            f'python -c "import tensorflow_datasets as tfds, {module}; tfds.builder({name!r}, '
            f"data_dir={folder!r}, file_format='array_record').download_and_prepare()\" - or set "
            f"data.folder to the folder that holds {name.partition('/')[0]}/."
        )
    return builder


def prepared_examples(builder: Any, split: str, rows: np.ndarray | None = None) -> list[Any]:
    """The records of a prepared split: those of `rows`, or all."""
    source = builder.as_data_source(split=split)
    return source.__getitems__(list(range(len(source))) if rows is None else rows.tolist())


def prepared_text(value: bytes, where: str, example: Any) -> str:
    r"""A text of a record, out of its bytes.

    Raises:
        ConfigError: it is not UTF-8; says in which split (`where`) and example.

    Example:
        >>> prepared_text(b"caf\xe9", "glue/mrpc, split 'train'", 3)
        Traceback (most recent call last):
        train.registry.ConfigError: glue/mrpc, split 'train', example 3 is not UTF-8: ...
    """
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}, example {example} is not UTF-8: it has the byte {value[error.start]:#04x} "
            f"after {value[max(error.start - 20, 0) : error.start].decode('utf-8', 'replace')!r}. "
            "Prepare the data set anew."
        ) from error
