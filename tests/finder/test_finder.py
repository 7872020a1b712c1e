"""What is found in programs, against the clouds that the programs themselves name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import aligned_function, alignment_clouds, attention_report
from align_jax.config import AlignmentConfig
from tests.divergences import oracles
from tests.finder import programs

PARAMETERS, DATA = programs.parameters(), programs.data()
NONE = AlignmentConfig("none")


@functools.cache
def everything():
    """Outputs, found clouds and named clouds of all programs, in one compiled function."""

    @jax.jit
    def run(parameters, data):
        results = {}
        for name, function in programs.ATTENTIONS.items():
            expected_outputs, expected = function(parameters, *data)
            converted = aligned_function(lambda p, *x, f=function: f(p, *x)[0], NONE)
            outputs, sown = converted.apply(
                {}, parameters, *data, collections=("alignment_clouds",)
            )
            clouds = list(alignment_clouds(sown).values())
            results[name] = outputs, expected_outputs, clouds, expected
        return results

    return run(PARAMETERS, DATA)


@pytest.mark.parametrize("name", programs.ATTENTIONS)
def test_queries_keys_and_masks_are_those_of_the_program(name):
    outputs, expected_outputs, found, expected = everything()[name]
    np.testing.assert_allclose(outputs, expected_outputs, rtol=1e-5, atol=1e-6)
    assert len(found) == len(expected)
    # By name, which is by what they come from.
    found = sorted(found, key=lambda clouds: clouds.key.shape[1])
    expected = sorted(expected, key=lambda clouds: clouds.key.shape[1])
    for clouds, named in zip(found, expected, strict=True):
        np.testing.assert_allclose(clouds.query, named.query, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(clouds.key, named.key, rtol=1e-5, atol=1e-6)
        for mask, wanted in (
            (clouds.query_mask, named.query_mask),
            (clouds.key_mask, named.key_mask),
        ):
            np.testing.assert_array_equal(mask, True if wanted is None else wanted)


ORACLE = ("grouped_heads", "rotary", "causal_and_padded", "windows", "cross", "half_precision")


def test_divergences_are_those_of_the_clouds():
    """Against float64 NumPy, on the clouds that the programs name."""
    functions = {name: programs.ATTENTIONS[name] for name in ORACLE}

    @jax.jit
    def run(parameters, data):
        results = {}
        for name, function in functions.items():
            converted = aligned_function(
                lambda p, *x, f=function: f(p, *x)[0], AlignmentConfig("energy")
            )
            _, sown = converted.apply({}, parameters, *data)
            results[name] = sown["alignment"]["alignment"]["divergence"][0]
        return results

    for name, found in run(PARAMETERS, DATA).items():
        (clouds,) = everything()[name][3]
        masks = [None if mask is None else np.asarray(mask) for mask in clouds[2:]]
        arrays = [np.asarray(x, np.float64) for x in clouds[:2]]
        expected = oracles.batched(oracles.energy_distance, arrays, *masks)
        tolerance = 2e-2 if name == "half_precision" else 1e-5
        values = found.reshape(expected.shape)  # a scan of one layer puts an axis before it
        np.testing.assert_allclose(values, expected, rtol=tolerance, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", programs.OTHERS)
def test_nothing_is_found_where_there_is_no_attention(name):
    report = attention_report(programs.OTHERS[name], PARAMETERS, *DATA)
    assert (report.found, report.skipped, report.opaque) == ((), (), ())


@pytest.mark.parametrize("name", programs.REFUSED)
def test_what_cannot_be_aligned_is_refused_by_name(name):
    function, reason = programs.REFUSED[name]
    report = attention_report(function, PARAMETERS, *DATA)
    assert not report.found
    (row,) = report.skipped
    assert reason in row.problem
    with pytest.raises(ValueError, match=reason):
        aligned_function(function, NONE).init(jax.random.key(0), PARAMETERS, *DATA)


LAYOUTS = ("bnhd", "bhnd", "nbhd", "hbnd", "nhbd")
WRAPPERS = {
    "nothing": lambda f: f,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "both": lambda f: jax.jit(jax.checkpoint(jax.jit(f))),
}


def random_program(seed):
    """Attention with axes in random orders, a random mask, and a random transformation."""
    rng = np.random.default_rng(seed)
    query, key, value = (rng.choice(LAYOUTS) for _ in range(3))
    logits = "".join(rng.permutation(list("bhnm")))
    key, value = key.replace("n", "m"), value.replace("n", "m")
    swapped, masked, wrapper = rng.random() < 0.5, rng.integers(3), rng.choice(list(WRAPPERS))
    mask = np.ones((programs.B, 1, 1, programs.N), bool)
    mask[1, ..., rng.integers(1, programs.N) :] = False
    if masked == 2:
        mask = mask & np.tril(np.ones((programs.N, programs.N), bool))

    def program(p, x, _):
        q, k, v = programs.projections(p, x)

        @WRAPPERS[wrapper]
        def attend(q, k, v):
            q = jnp.einsum(f"bnhd->{query}", q)
            k = jnp.einsum(f"bmhd->{key}", k)
            v = jnp.einsum(f"bmhd->{value}", v)
            if swapped:
                scores = jnp.einsum(f"{key},{query}->{logits}", k, q)
            else:
                scores = jnp.einsum(f"{query},{key}->{logits}", q, k)
            if masked:
                allowed = jnp.einsum(f"bhnm->{logits}", mask.astype(np.float32)) > 0
                scores = jnp.where(allowed, scores, -1e30)
            weights = jax.nn.softmax(scores, axis=logits.index("m"))
            return jnp.einsum(f"{logits},{value}->bnhd", weights, v)

        tokens = mask.any(2)[:, 0] if masked else None
        return attend(q, k, v), [programs.Clouds(q, k, tokens, tokens)]

    return program


def test_random_layouts_are_found():
    count = 40

    @jax.jit
    def run(parameters, data):
        results = []
        for seed in range(count):
            program = random_program(seed)
            converted = aligned_function(lambda p, *x, f=program: f(p, *x)[0], NONE)
            _, sown = converted.apply({}, parameters, *data, collections=("alignment_clouds",))
            results.append((list(alignment_clouds(sown).values()), program(parameters, *data)[1]))
        return results

    for seed, (found, (named,)) in enumerate(run(PARAMETERS, DATA)):
        (clouds,) = found
        np.testing.assert_allclose(clouds.query, named.query, rtol=1e-5, atol=1e-6, err_msg=seed)
        np.testing.assert_allclose(clouds.key, named.key, rtol=1e-5, atol=1e-6, err_msg=seed)
        wanted = programs.ALL if named.key_mask is None else named.key_mask
        np.testing.assert_array_equal(clouds.key_mask, wanted, err_msg=str(seed))
        np.testing.assert_array_equal(clouds.query_mask, wanted, err_msg=str(seed))
