"""Settings of Sphinx: python -m sphinx -W --keep-going docs docs/_build."""

import importlib
import re

from sphinx.util import logging

import align_jax

project = "align_jax"
author = "The align_jax authors"
release = version = align_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "align_jax"

smartquotes = False  # "ct" is to be copied
# The docstrings' single backticks are code.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # the attributes in one list, as they were written
napoleon_use_rtype = False
add_module_names = False
autodoc_default_options = {
    "members": True,
    "imported-members": True,
    "special-members": "__call__",
    # What flax gives to every module and every dataclass of its own.
    "exclude-members": "setup, replace, __version__",
}
autodoc_preserve_defaults = True


def _shorten(app, what, name, value, options, signature, returns):
    """Leaves out the arguments that every Linen module has, and where jax keeps its Array."""
    if signature:
        signature = re.sub(r", parent: .*?, name: str \| None = None", "", signature)
    texts = (signature, returns)
    return tuple(text and text.replace("jaxlib._jax.Array", "Array") for text in texts)


def _skip(app, what, name, value, skip, options):
    """Leaves out a named tuple's fields, which its docstring lists."""
    return True if type(value).__name__ == "_tuplegetter" else None


def _check_complete(app, env):
    """Warns of public names that the pages lack; with -W that is an error."""
    objects, modules = env.domains["py"].objects, env.domains["py"].modules
    for module in modules:
        for name in getattr(importlib.import_module(module), "__all__", ()):
            known = {f"{module}.{name}"} & {*objects, *modules}
            if not known and not name.startswith("__"):
                logging.getLogger(__name__).warning("%s.%s is on no page", module, name)


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _shorten)
    app.connect("autodoc-skip-member", _skip)
    app.connect("env-updated", _check_complete)
