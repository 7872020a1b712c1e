"""The wheel and the sdist: what is in them, and what they bring along."""

import email
import os
import pathlib
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from align_jax import __version__

ROOT = pathlib.Path(__file__).parents[1]
LIGHT = ["jax", "flax", "jaxtyping", "numpy"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run = [sys.executable, "-m"]
    subprocess.run([*run, "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    found = sorted(folder.iterdir())
    subprocess.run([*run, "twine", "check", "--strict", *found], check=True)
    return found


def library():
    """The files that belong to the library."""
    found = [p for p in (ROOT / "align_jax").rglob("*") if p.suffix in (".py", ".typed")]
    return {p.relative_to(ROOT).as_posix() for p in found}


def test_the_oldest_versions_admitted_are_the_ones_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    admitted = {}
    for needed in map(Requirement, project["dependencies"]):
        (floor,) = needed.specifier
        assert floor.operator == ">="
        admitted[needed.name] = Version(floor.version)
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if "==" in line]
    assert admitted == {name: Version(version) for name, _, version in pins}


def test_the_workflow_runs_the_checks_before_it_publishes():
    """Its commands are files and modules that are here."""
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = {
        name: [step["run"] for step in job["steps"] if "run" in step]
        for name, job in workflow["jobs"].items()
    }
    assert ".ci/run" in steps["checks"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert workflow["jobs"]["docs"]["needs"] == "checks"
    assert "python -m sphinx -q -W docs site" in steps["docs"]


@pytest.mark.slow  # building fetches setuptools
def test_wheel(built):
    wheel = next(path for path in built if path.suffix == ".whl")
    assert wheel.name == f"align_jax-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = f"align_jax-{__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        licence = archive.read(f"{info}/licenses/LICENSE")
    assert names == library()
    assert "align_jax/py.typed" in names
    assert licence == (ROOT / "LICENSE").read_bytes()
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert [line.partition(">")[0] for line in needed] == LIGHT


@pytest.mark.slow
def test_sdist(built):
    sdist = next(path for path in built if path.name.endswith(".tar.gz"))
    with tarfile.open(sdist) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    about = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert {name for name in names if not name.startswith("align_jax.egg-info/")} == (
        library() | about
    )
