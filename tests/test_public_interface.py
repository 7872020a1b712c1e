"""The public interface as documented: examples run, annotated shapes hold, imports stay light."""

import doctest
import functools
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

import align_jax
from align_jax import divergences

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(align_jax.__path__, "align_jax.")
    if not module.ispkg
)


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


# What the reference in docs/api shows.
REFERENCE = [
    "align_jax",
    "align_jax.calibration",
    "align_jax.convert_nnx",
    "align_jax.divergences",
    "align_jax.models",
    "align_jax.networks",
    "align_jax.pretrained",
]


def public(module):
    """The functions and classes that a module offers, by name."""
    here = [name for name, value in vars(module).items() if _made_in(value, module.__name__)]
    names = getattr(module, "__all__", [name for name in here if not name.startswith("_")])
    found = {name: getattr(module, name) for name in names}
    return {name: value for name, value in found.items() if callable(value)}


def _made_in(value, module):
    return callable(value) and getattr(value, "__module__", None) == module


@pytest.mark.parametrize("name", REFERENCE)
def test_every_public_name_is_documented(name):
    """Its page in the reference, what it takes and gives, and an example that runs."""
    pages = pathlib.Path(__file__).parents[1] / "docs" / "api"
    assert f".. automodule:: {name}\n" in (pages / f"{name.split('.')[-1]}.rst").read_text()
    found = public(importlib.import_module(name))
    assert found
    for value in found.values():
        assert not list(_undocumented(value)), value


def _undocumented(value):
    if inspect.isclass(value):
        text = "".join(inspect.getdoc(base) or "" for base in value.__mro__ if base is not object)
        fields = inspect.get_annotations(value) if not issubclass(value, Exception) else {}
        documented = [n for n, kind in fields.items() if "ClassVar" not in str(kind)]
    else:
        text = inspect.getdoc(value)
        signature = inspect.signature(value)
        documented = list(signature.parameters)
        if signature.return_annotation not in (None, "None", inspect.Signature.empty):
            documented.append("Returns")
    for name in documented:
        if f"{name}:" not in text and name not in ("parent", "name"):
            yield name
    _, _, example = inspect.getdoc(value).partition("Example:\n")
    lines = [line for line in example.splitlines() if ">>>" in line and "+SKIP" not in line]
    if not lines and "See `" not in example:
        yield "Example"


def test_annotated_shapes_hold():
    x = {n: jnp.ones((2, n, 3, 4)) for n in (5, 7)}
    logits = {n: jnp.ones((2, n, 3)) for n in (5, 7)}
    masks = {"query_mask": jnp.ones((2, 5), bool), "key_mask": jnp.ones((2, 7), bool)}
    calls = {
        divergences.adversarial: (logits[5], logits[7]),
        divergences.maximum_mean_discrepancy: (x[5], x[7]),
        divergences.optimal_transport: (x[5], x[7]),
        divergences.conditional_transport: (x[5], x[7], x[5], x[7]),
    }
    for function, arrays in calls.items():
        checked = functools.partial(jaxtyped(function, typechecker=beartype), **masks)
        jax.eval_shape(checked, *arrays)
        with pytest.raises(TypeCheckError):
            jax.eval_shape(checked, *arrays[:1], arrays[1][:1], *arrays[2:])


def test_import_is_light():
    """Nothing beyond jax, flax and jaxtyping is loaded until a function needs it."""
    code = (
        "import sys, jax, flax.linen; before = set(sys.modules); import align_jax; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    light = {"align_jax", "flax", "jax", "jaxlib", "jaxtyping", "numpy", "wadler_lindig"}
    assert {"align_jax"} <= set(output.stdout.split()) <= light


def test_there_are_four_devices_to_test_with():
    assert jax.device_count() == 4
