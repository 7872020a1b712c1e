"""The examples in the application's docstrings run, but for those that take a run or a download."""

import doctest
import importlib
import pkgutil

import pytest

import train

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(train.__path__, "train.")
    if not module.ispkg and not module.name.endswith("__main__")
)


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
