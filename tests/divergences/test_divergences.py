"""What must hold for every divergence: values, gradients, masks, symmetries, singular points."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import divergences
from align_jax.divergences import blocks
from tests.divergences import oracles

B, N, M, H = 3, 5, 7, 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A divergence, its oracle, and the trailing axes of its query and key arrays in turn."""

    name: str
    function: Callable
    oracle: Callable
    trailing: tuple[tuple[int, ...], ...]
    # In the norm of the gradient; a plan at a small epsilon amplifies float32's rounding.
    gradient_tolerance: float = 1e-5
    value_tolerance: float = 1e-5

    def __post_init__(self):
        object.__setattr__(self, "jitted", jax.jit(self.function))

    def gradient(self, arrays, weights=1.0, **masks):
        """The gradient of the weighted sum, and the value."""

        def loss(arrays):
            value = self.function(*arrays, **masks)
            return jnp.sum(value * weights), value

        return jax.jit(jax.grad(loss, has_aux=True))(arrays)

    def arrays(self, seed=0, queries=N, keys=M):
        rng = np.random.default_rng(seed)
        lengths = (queries, keys) * (len(self.trailing) // 2)
        return [
            rng.normal(size=(B, length, H, *axes)).astype(np.float32)
            for length, axes in zip(lengths, self.trailing, strict=True)
        ]


def _ct(query, key, query_navigation, key_navigation, **options):
    return divergences.conditional_transport(
        query, key, query_navigation, key_navigation, **options
    )


def _case(name, function, oracle, trailing, tolerance=1e-5, **options):
    if name == "ct":  # the oracle takes pairs in turn, the function groups them the same way
        name += "-" + "-".join(str(value) for value in options.values())
    implementation = {key: options.pop(key) for key in ("implementation",) if key in options}
    return Case(
        name,
        functools.partial(function, **options, **implementation),
        functools.partial(oracle, **options),
        trailing,
        tolerance,
    )


CT_AXES = ((4,), (4,), (3,), (3,))
CASES = [
    _case("adversarial", divergences.adversarial, oracles.adversarial, ((), ())),
    *(
        _case(
            "ct", _ct, oracles.conditional_transport, CT_AXES,
            rho=rho, cost=cost, implementation=implementation,
        )
        for rho, cost in ((0.5, "cosine"), (0.2, "squared_euclidean"))
        for implementation in ("dense", "blockwise")
    ),
    *(
        dataclasses.replace(
            _case(
                "ot", divergences.optimal_transport, oracles.optimal_transport, ((4,), (4,)),
                tolerance, epsilon=epsilon, cost=cost,
            ),
            name=f"ot-{epsilon}-{cost}",
            value_tolerance=1e-4,  # the solver's last residual is up to 1e-5
        )
        for epsilon, cost, tolerance in (
            (0.1, "cosine", 1e-5), (0.05, "cosine", 2e-5), (0.5, "squared_euclidean", 1e-5),
        )
    ),
    *(
        _case(
            "mmd", divergences.maximum_mean_discrepancy, oracles.maximum_mean_discrepancy,
            ((4,), (4,)), bandwidth=1.5, implementation=implementation,
        )
        for implementation in ("dense", "blockwise")
    ),
]  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks even for these few tokens, the last one incomplete."""
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 2 * M)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)


def masks(seed=0):
    """The first sample is complete, the second ragged, the third padded at the end."""
    rng = np.random.default_rng(seed)
    query_mask, key_mask = rng.random((B, N)) < 0.6, rng.random((B, M)) < 0.6
    query_mask[0], key_mask[0] = True, True
    query_mask[1, 2], key_mask[1, 3] = True, True
    query_mask[2], key_mask[2] = np.arange(N) < 3, np.arange(M) < 1
    return query_mask, key_mask


def poisoned(arrays, query_mask, key_mask, value):
    arrays = [x.copy() for x in arrays]
    for number, x in enumerate(arrays):
        x[~(query_mask, key_mask)[number % 2]] = value
    return arrays


def relative_error(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@every_case
def test_value_matches_oracle(case):
    arrays = case.arrays()
    value = case.jitted(*arrays)
    assert value.shape == (B, H)
    assert value.dtype == jnp.float32
    expected = oracles.batched(case.oracle, arrays)
    np.testing.assert_allclose(value, expected, rtol=case.value_tolerance)


@every_case
def test_gradient_matches_finite_differences(case):
    arrays = [x[:2, :4] for x in case.arrays()]
    weights = np.random.default_rng(1).normal(size=(2, H))

    def loss64(*arrays):
        return np.sum(oracles.batched(case.oracle, arrays) * weights)

    gradients, _ = case.gradient(arrays, weights)
    expected = oracles.finite_difference(loss64, arrays)
    for gradient, reference in zip(gradients, expected, strict=True):
        assert relative_error(gradient, reference) < case.gradient_tolerance


@every_case
@pytest.mark.parametrize("padding", [np.nan, np.inf])
def test_masked_equals_sliced(case, padding):
    query_mask, key_mask = masks()
    arrays = poisoned(case.arrays(), query_mask, key_mask, padding)

    gradients, value = case.gradient(arrays, query_mask=query_mask, key_mask=key_mask)
    expected = oracles.batched(case.oracle, arrays, query_mask, key_mask)
    np.testing.assert_allclose(value, expected, rtol=case.value_tolerance)
    largest = max(np.abs(x).max() for x in gradients)
    for b in range(B):
        sliced = [
            x[b : b + 1, (query_mask, key_mask)[number % 2][b]] for number, x in enumerate(arrays)
        ]
        sliced_gradients, _ = case.gradient(sliced)
        for number, (whole, part) in enumerate(zip(gradients, sliced_gradients, strict=True)):
            mask = (query_mask, key_mask)[number % 2][b]
            # A plan between few tokens can have a gradient of zero but for rounding.
            np.testing.assert_allclose(
                whole[b, mask],
                part[0],
                rtol=case.gradient_tolerance * 10,
                atol=1e-5 * largest,
            )
            assert np.all(np.asarray(whole[b, ~mask]) == 0.0)


@every_case
def test_a_fully_masked_sample_counts_zero(case):
    query_mask, key_mask = masks()
    query_mask[1] = False
    key_mask[2] = False
    arrays = poisoned(case.arrays(), query_mask, key_mask, np.nan)

    gradients, value = case.gradient(arrays, query_mask=query_mask, key_mask=key_mask)
    assert np.all(np.asarray(value[1:]) == 0.0)
    assert np.all(np.abs(value[0]) > 0.0)
    for gradient in gradients:
        assert np.all(np.asarray(gradient[1:]) == 0.0)
        assert np.all(np.isfinite(gradient))


@every_case
def test_permuting_tokens_changes_nothing(case):
    arrays = case.arrays()
    rng = np.random.default_rng(2)
    orders = (rng.permutation(N), rng.permutation(M))
    permuted = [x[:, orders[number % 2]] for number, x in enumerate(arrays)]
    np.testing.assert_allclose(
        case.jitted(*permuted), case.jitted(*arrays), rtol=case.value_tolerance
    )


@every_case
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(np.zeros_like, id="zeros"),
        pytest.param(np.ones_like, id="all-equal"),
        pytest.param(lambda x: x * np.float32(1e-30), id="tiny"),
        pytest.param(lambda x: x * np.float32(1e30), id="huge"),
        pytest.param(lambda x: np.where(np.arange(x.size).reshape(x.shape) < 4, 0, x), id="zero"),
        pytest.param(lambda x: x[:, :1], id="one-token"),
    ],
)  # fmt: skip
def test_singular_points_are_finite(case, make):
    arrays = [make(x).astype(np.float32) for x in case.arrays()]
    gradients, value = case.gradient(arrays)
    assert np.all(np.isfinite(value))
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))


@every_case
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_computes_in_float32(case, dtype):
    arrays = [jnp.asarray(x, dtype) for x in case.arrays()]
    gradients, value = case.gradient(arrays)
    assert value.dtype == jnp.float32
    rounded = [np.asarray(x.astype(jnp.float32)) for x in arrays]
    expected = oracles.batched(case.oracle, rounded)
    np.testing.assert_allclose(value, expected, rtol=case.value_tolerance)
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype(dtype)}


@every_case
def test_the_value_is_float32_where_jax_knows_float64(case):
    arrays = case.arrays()
    jax.config.update("jax_enable_x64", True)
    try:
        value = jax.jit(case.function)(*map(jnp.asarray, arrays))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, case.jitted(*arrays), rtol=case.value_tolerance, atol=1e-6)


@every_case
def test_vmap_equals_a_loop(case):
    stacked = [np.stack([x, 0.5 * x]) for x in case.arrays()]
    value = jax.jit(jax.vmap(case.function))(*stacked)
    expected = [case.jitted(*(x[i] for x in stacked)) for i in range(2)]
    # MMD is the small difference of numbers near 1, whose last bits depend on the compiler.
    np.testing.assert_allclose(value, np.stack(expected), rtol=case.value_tolerance, atol=1e-6)


@every_case
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: [a[0][0], *a[1:]], ValueError, r"must have shape \[B, N, H"),
        (lambda a: [a[0][:, :, :1], *a[1:]], ValueError, r"differ in axis 2 \(H\)"),
        (lambda a: [a[0][:1], *a[1:]], ValueError, r"differ in axis 0 \(B\)"),
        (lambda a: [x[:0] for x in a], ValueError, "empty"),
        (lambda a: [a[0].astype(np.int32), *a[1:]], TypeError, "floating point, got int32"),
    ],
)
def test_bad_arrays_are_named(case, change, error, message):
    with pytest.raises(error, match=message):
        case.function(*change(case.arrays()))


@every_case
def test_bad_masks_are_named(case):
    arrays = case.arrays()
    with pytest.raises(ValueError, match=r"query_mask must have shape \(3, 5\), got \(3, 7\)"):
        case.function(*arrays, query_mask=np.ones((B, M), bool))
    with pytest.raises(TypeError, match="key_mask must be a bool array .*, got int32"):
        case.function(*arrays, key_mask=np.ones((B, M), np.int32))
