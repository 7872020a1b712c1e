"""Paths that a user gives: on this machine, or where a run's folder may lie, in a bucket.

A URL that is taken for a path becomes a folder called "gs:" on this machine, which nobody finds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import re
import typing
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from flax import traverse_util

from train.registry import ConfigError

# pathlib makes one slash of several; a single letter is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
BUCKET = "gs"  # the one that Orbax writes to
BUCKET_PACKAGES = ("gcsfs", "tensorflow")  # either lets etils reach it
URL_KEYS = ("train.init_from",)  # of a config; `place_of` is asked about their values


def place_of(given: str | os.PathLike[str], what: str, *, bucket: bool = False) -> pathlib.Path:
    """The path that a user named.

    Args:
        given: a path, a URL file:///..., or where a bucket will do gs://BUCKET/...
        what: names it in messages, such as "--workdir".
        bucket: whether it may lie in a bucket of Google Cloud Storage.

    Returns:
        A path of this machine, or for a bucket etils' path, which has the methods of one.

    Raises:
        ConfigError: it is a URL of another kind, or what is needed to reach it is not installed.

    Example:
        >>> str(place_of("file:///data/my%20run", "--workdir"))
        '/data/my run'
    """
    found = _URL.fullmatch(os.fspath(given))
    if not found:
        return pathlib.Path(given)
    scheme, rest = found[1].lower(), found[2]
    url = f"{scheme}://{rest}"
    if scheme == "file":
        return pathlib.Path("/" + urllib.parse.unquote(rest.removeprefix("localhost/")))
    if scheme != BUCKET or not bucket:
        kinds = "a path or file:///... of this machine"
        raise ConfigError(
            f"{what} is the URL {url!r}; expected {kinds}{', or gs://...' if bucket else ''}. Copy "
            f"what is there to this machine, or mount it as a folder."
        )
    if not rest.strip("/"):
        raise ConfigError(f"{what} is {url!r}, which names no bucket; expected gs://BUCKET/FOLDER.")
    if not any(importlib.util.find_spec(name) for name in BUCKET_PACKAGES):
        raise ConfigError(
            f"{what} is {url!r}; reaching a bucket takes the package gcsfs. Install it (pip "
            f"install gcsfs), and see to the credentials."
        )
    from etils import epath

    return typing.cast(pathlib.Path, epath.Path(url.rstrip("/")))


def is_remote(place: pathlib.Path) -> bool:
    """Whether it lies in a bucket."""
    return not isinstance(place, pathlib.Path)


@contextlib.contextmanager
def reaching(place: pathlib.Path) -> Iterator[None]:
    """Turns whatever the libraries of a bucket raise into a ConfigError, which says why."""
    try:
        yield
    except Exception as error:
        # A bucket's libraries have errors of their own kinds, and those of the connection.
        if not is_remote(place) or isinstance(
            error, ConfigError | RuntimeError | FileNotFoundError
        ):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(
            f"{place} cannot be reached ({reason}). Check the name, the network and the "
            f"credentials, and start the same command again."
        ) from error


def check_no_url(config: Mapping[str, Any]) -> None:
    """Refuses URLs among a config's values: they would be taken for folders of this machine.

    Raises:
        ConfigError: there is one, not under `URL_KEYS`.

    Example:
        >>> check_no_url({"data": {"folder": "s3://bucket/squad"}})
        Traceback (most recent call last):
        train.registry.ConfigError: config.data.folder is the URL 's3://bucket/squad'; ...
    """
    for key, value in traverse_util.flatten_dict(dict(config), sep=".").items():
        if isinstance(value, str) and key not in URL_KEYS and _URL.fullmatch(value):
            raise ConfigError(
                f"config.{key} is the URL {value!r}; expected a path of this machine. Copy what is "
                f"there to this machine, or mount it as a folder."
            )
