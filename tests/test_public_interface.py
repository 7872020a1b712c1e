"""The public interface as documented: examples run, annotated shapes hold, imports stay light."""

import doctest
import importlib
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


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", align_jax.__all__)
def test_every_public_name_is_documented(name):
    value = getattr(align_jax, name)
    assert name == "__version__" or value.__doc__


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
        checked = jaxtyped(function, typechecker=beartype)
        checked(*arrays, **masks)
        with pytest.raises(TypeCheckError):
            checked(*arrays[:1], arrays[1][:1], *arrays[2:], **masks)


def test_import_is_light():
    """Nothing beyond jax and flax is loaded until a function needs it."""
    code = (
        "import sys, align_jax; "
        "print([m for m in ('ott', 'optax', 'torch', 'tokenizers', 'safetensors', 'sklearn', "
        "'matplotlib', 'train') if m in sys.modules and m not in before])"
    )
    code = "import sys, jax, flax.linen; before = set(sys.modules); " + code
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_there_are_four_devices_to_test_with():
    assert jax.device_count() == 4
