"""Paths and URLs: what is of this machine, what is a bucket, and what is refused by name."""

from __future__ import annotations

import functools
import io
import os
import pathlib

import jax
import numpy as np
import pytest
import rich.console
from etils.epath import backend, gpath
from ml_collections import ConfigDict
from orbax.checkpoint._src.path import gcs_utils

from tests.train.commands import command
from train import cli
from train.attack import __main__ as attack
from train.experiment.experiment import build_experiment
from train.places import check_no_url, is_remote, place_of, reaching
from train.registry import ConfigError
from train.report.__main__ import main as report
from train.reproduce.__main__ import main as reproduce
from train.run import loop
from train.run.folder import CheckpointError, read_config
from train.run.log import read_records

URLS = ["s3://bucket/run", "abfs://container@account/run", "https://host/run", "S3:/bucket/run"]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("runs/digits", "runs/digits"),
        (pathlib.Path("/tmp/run"), "/tmp/run"),
        ("C:/run", "C:/run"),
        ("a:b", "a:b"),
        ("file:///data/my%20run", "/data/my run"),
        ("file://localhost/data/run", "/data/run"),
        (pathlib.Path("file:///data/run"), "/data/run"),
    ],
)
def test_a_path_of_this_machine(given, path) -> None:
    found = place_of(given, "--workdir")
    assert (str(found), is_remote(found)) == (path, False)


@pytest.mark.fault(
    "A URL where a path is expected (s3://, abfs://, https://, ...)",
    "Refused by name; no folder of that name is made. A run's folder may be gs://",
)
@pytest.mark.parametrize("given", [*URLS, "gs://bucket/run", pathlib.Path("gs://bucket/run")])
def test_another_url_is_refused_by_name(given) -> None:
    with pytest.raises(ConfigError, match=r"--output is the URL '\w+://.*'; expected a path or"):
        place_of(given, "--output")


@pytest.mark.parametrize("given", URLS)
def test_a_run_may_lie_in_no_other_bucket(given, monkeypatch, tmp_path, tiny_config) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--workdir is the URL .* or gs://"):
        loop.run(tiny_config(), given)
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_needs_its_package_and_a_name(monkeypatch) -> None:
    monkeypatch.setattr("train.places.BUCKET_PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigError, match="pip install gcsfs"):
        place_of("gs://bucket/run", "--workdir", bucket=True)
    with pytest.raises(ConfigError, match="names no bucket"):
        place_of("gs:///", "--workdir", bucket=True)


def test_the_cache_lies_where_it_can_be_written(monkeypatch, tmp_path, capsys) -> None:
    kept: list[tuple[str, object]] = []
    monkeypatch.setattr(jax.config, "update", lambda *pair: kept.append(pair))
    (tmp_path / "file").touch()
    for given, folder in (
        (tmp_path / "new/cache", tmp_path / "new/cache"),
        (f"file://{tmp_path}/my%20cache", tmp_path / "my cache"),
        (tmp_path / "file" / "cache", None),  # no folder can be made there
        (tmp_path / "file", None),
        ("", None),
    ):
        kept.clear()
        monkeypatch.setenv("ALIGN_JAX_CACHE", str(given))
        cli.use_compilation_cache()
        assert dict(kept).get("jax_compilation_cache_dir") == (folder and str(folder))
        said = capsys.readouterr().err
        assert said.count("\n") == (folder is None and given != "")
        assert (str(given) in said and "ALIGN_JAX_CACHE" in said) or not said
    monkeypatch.setenv("ALIGN_JAX_CACHE", "s3://bucket/cache")
    with pytest.raises(ConfigError, match=r"\$ALIGN_JAX_CACHE is the URL 's3://bucket/cache'"):
        cli.use_compilation_cache()


@pytest.mark.parametrize("key", ["data.folder", "model.pretrained"])
def test_urls_in_a_config_are_refused_by_key(key, tiny_config) -> None:
    with pytest.raises(ConfigError, match=f"config.{key} is the URL 's3://bucket/x'"):
        check_no_url({key.split(".")[0]: {key.split(".")[1]: "s3://bucket/x"}})
    check_no_url({"train": {"init_from": "gs://bucket/run"}, "data": {"folder": "package:a/b"}})
    config = tiny_config().unlock()
    config.name = "https://host/x"
    with pytest.raises(ConfigError, match="config.name is the URL"):
        build_experiment(config)


def test_commands_refuse_urls_where_they_write(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert report([str(tmp_path), "--output=s3://bucket/report"]) == 2
    assert "error: --output is the URL 's3://bucket/report'" in capsys.readouterr().err
    assert report(["gs://bucket/run"]) == 2
    assert "error: RUN_DIR is the URL 'gs://bucket/run'" in capsys.readouterr().err
    assert reproduce(["--workdir=abfs://c@a/x"]) == 2
    assert "error: --workdir is the URL 'abfs://c@a/x'" in capsys.readouterr().err
    monkeypatch.setattr(attack, "SUMMARISE", type("Flag", (), {"value": ["s3://bucket/x"]}))
    with pytest.raises(ConfigError, match="--summarise is the URL"):
        attack.main()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "flags", "named"),
    [
        ("train.sweep", ["--config=train/configs/digits.py", "--workdir=gs://b/x"], "--workdir"),
        ("train.predict", ["--checkpoint=x", "--export=gs://b/x"], "--export"),
        ("train.predict", ["--checkpoint=x", "--input=s3://b/x"], "--input"),
        ("train.predict", ["--checkpoint=s3://b/x", "--input=-"], "--checkpoint"),
    ],
)
def test_commands_with_flags_refuse_urls(module, flags, named) -> None:
    done = command(*flags, module=module, forked=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {named} is the URL")


class FakeBucket:
    """Etils' way to gs://, which leads into a folder of this machine."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = f"{root}/"

    def __getattr__(self, name: str):
        return functools.partial(self._call, name)

    def open(self, path, mode: str):
        if "w" in mode:  # a bucket needs no folder
            os.makedirs(os.path.dirname(self._inside(path)), exist_ok=True)
        return self._call("open", path, mode)

    def _call(self, name: str, *arguments, **options):
        found = getattr(backend.os_backend, name)(*map(self._inside, arguments), **options)
        if name == "walk":
            return ((self._outside(top), *names) for top, *names in found)
        return [self._outside(path) for path in found] if name == "glob" else found

    def _inside(self, path):
        text = os.fspath(path) if isinstance(path, os.PathLike | str) else ""
        return text.replace("gs://", self._root, 1) if text.startswith("gs://") else path

    def _outside(self, path) -> str:
        return os.fspath(path).replace(self._root, "gs://", 1)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A bucket gs://bucket that lies in a folder of this machine, which is returned."""
    root = tmp_path / "cloud"
    root.mkdir()
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", FakeBucket(root))
    monkeypatch.setenv("EPATH_USE_TF", "false")
    monkeypatch.setattr("train.places.BUCKET_PACKAGES", ("etils",))
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda _: False)

    def store(path: str) -> dict[str, str]:
        return {"driver": "file", "path": path.replace("gs://", f"{root}/", 1)}

    monkeypatch.setattr(gcs_utils, "get_kvstore_for_gcs", store)
    return root / "bucket"


def test_a_run_in_a_bucket_is_one_on_a_disk(bucket, tmp_path, tiny_config, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config("none", train__steps=4, train__checkpoint_every=2, eval__every=2)

    def run(workdir):
        for config.train.steps in (2, 4):  # the second goes on
            console = rich.console.Console(file=io.StringIO())
            devices = jax.local_devices()[:1]
            result = loop.run(config, workdir, devices=devices, console=console)
        return result["metrics"]

    assert run("gs://bucket/run") == run(f"file://{tmp_path / 'local'}")
    names = [
        {path.name for path in folder.iterdir()} for folder in (bucket / "run", tmp_path / "local")
    ]
    assert names[0] == names[1]
    assert len(list((bucket / "run" / "tensorboard").iterdir())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cloud", "local"]
    place = place_of("gs://bucket/run", "--checkpoint", bucket=True)
    steps = [(record["step"], record["split"]) for record in read_records(place)]
    assert steps == [(r["step"], r["split"]) for r in read_records(tmp_path / "local")]
    saved = ConfigDict(read_config(place))
    params = [loop.restore_run(folder, saved)[1].params for folder in (place, tmp_path / "local")]
    jax.tree.map(np.testing.assert_array_equal, *params)
    with pytest.raises(CheckpointError, match="model.layers was 1, now 2"):
        loop.run(tiny_config("none", model__layers=2), "gs://bucket/run")


def test_a_bucket_that_cannot_be_reached_is_said(monkeypatch) -> None:
    class HttpError(Exception):
        pass

    place = place_of("runs", "--workdir")
    with pytest.raises(HttpError), reaching(place):
        raise HttpError("403")
    monkeypatch.setattr("train.places.is_remote", lambda _: True)
    said = r"runs cannot be reached \(HttpError: 403\)"
    with pytest.raises(ConfigError, match=said), reaching(place):
        raise HttpError("403")
