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
WEIGHTS = np.random.default_rng(1).normal(size=(B, H)).astype(np.float32)


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
    # Options of the oracle, made of queries and keys, through which no gradient runs.
    constants: Callable = lambda *parts: {}

    def __post_init__(self):
        def loss(arrays, weights, masks):
            value = self.function(*arrays, **masks)
            return jnp.sum(value * weights), value

        # One function for all tests, for most of them call it with the same shapes.
        object.__setattr__(self, "compiled", jax.jit(jax.grad(loss, has_aux=True)))

    def gradient(self, arrays, **masks):
        """The gradient of the weighted sum, and the value, as NumPy's arrays."""
        return jax.device_get(self.compiled(arrays, WEIGHTS, masks))

    def value(self, arrays):
        return self.gradient(arrays)[1]

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


def _bandwidth(query, key):
    return {"bandwidth": oracles.own_bandwidth(query, key)}


def _mmd_of_own_bandwidth(query, key, **constants):
    return oracles.maximum_mean_discrepancy(query, key, **(constants or _bandwidth(query, key)))


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
            f"mmd-{implementation}", divergences.maximum_mean_discrepancy,
            oracles.maximum_mean_discrepancy,
            ((4,), (4,)), bandwidth=1.5, implementation=implementation,
        )
        for implementation in ("dense", "blockwise")
    ),
    *(
        dataclasses.replace(
            _case(
                "mmd-own", divergences.maximum_mean_discrepancy, _mmd_of_own_bandwidth,
                ((4,), (4,)), implementation=implementation,
            ),
            name=f"mmd-own-{implementation}",
            function=functools.partial(
                divergences.maximum_mean_discrepancy, bandwidth=None, implementation=implementation
            ),
            constants=_bandwidth,
        )
        for implementation in ("dense", "blockwise")
    ),
    *(
        dataclasses.replace(
            _case(
                "energy", divergences.energy_distance, oracles.energy_distance, ((4,), (4,)),
                implementation=implementation,
            ),
            name=f"energy-{implementation}",
            constants=lambda query, key: {"largest": oracles.largest_energy(query, key)},
        )
        for implementation in ("dense", "blockwise")
    ),
]  # fmt: skip
# Each divergence, each cost, and each implementation of transport and of what averages over pairs;
# of the energy that whose derivative is JAX's own, which meets the root at 0.
FAST = [
    "adversarial", "ct-0.5-cosine-dense", "ct-0.2-squared_euclidean-blockwise", "ot-0.1-cosine",
    "ot-0.5-squared_euclidean", "mmd-dense", "mmd-own-blockwise", "energy-dense",
]  # fmt: skip


def cases(leave_out=()):
    """A mark for all cases but some."""
    chosen = [case for case in CASES if case.name not in leave_out]
    marks = {case.name: () if case.name in FAST else pytest.mark.thorough for case in chosen}
    params = [pytest.param(case, marks=marks[case.name]) for case in chosen]
    return pytest.mark.parametrize("case", params, ids=lambda case: case.name)


every_case = cases()
# Where the size of epsilon does not matter: the same program but for that number.
every_program = cases(leave_out=["ot-0.05-cosine"])
# Where the cost does not, for it is the same few lines that all divergences hand their arrays to,
# nor a bandwidth of one's own, which comes before the implementation: each implementation once.
every_divergence = cases(leave_out=[
    "ot-0.05-cosine", "ot-0.5-squared_euclidean", "ct-0.5-cosine-blockwise",
    "ct-0.2-squared_euclidean-dense", "mmd-blockwise", "mmd-own-dense",
])  # fmt: skip


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
    gradients, value = case.gradient(arrays)
    assert value.shape == (B, H)
    assert {x.dtype for x in (value, *gradients)} == {jnp.dtype("float32")}
    expected = oracles.batched(case.oracle, arrays)
    np.testing.assert_allclose(value, expected, rtol=case.value_tolerance)


def finite_differences(case, arrays, query_mask, key_mask):
    """Each sample and head by itself, for no other depends on it."""
    gradients = [np.zeros(x.shape) for x in arrays]
    for b, h in np.ndindex(B, H):
        masks = (query_mask[b], key_mask[b])
        parts = [x[b : b + 1, masks[number % 2], h : h + 1] for number, x in enumerate(arrays)]
        constants = case.constants(*(x[0, :, 0].astype(np.float64) for x in parts))
        oracle = functools.partial(oracles.batched, functools.partial(case.oracle, **constants))
        own = oracles.finite_difference(lambda *x, oracle=oracle: oracle(x).item(), parts)
        for number, gradient in enumerate(own):
            gradients[number][b, masks[number % 2], h] = WEIGHTS[b, h] * gradient[0, :, 0]
    return gradients


@every_case
def test_gradient_matches_finite_differences(case):
    arrays = case.arrays()
    gradients, _ = case.gradient(arrays)
    complete = np.ones((B, N), bool), np.ones((B, M), bool)
    for gradient, reference in zip(
        gradients, finite_differences(case, arrays, *complete), strict=True
    ):
        assert relative_error(gradient, reference) < case.gradient_tolerance


@every_case
def test_masked_equals_sliced(case):
    query_mask, key_mask = masks()
    expected = oracles.batched(case.oracle, case.arrays(), query_mask, key_mask)
    differences = finite_differences(case, case.arrays(), query_mask, key_mask)
    for padding in (np.nan, np.inf):
        arrays = poisoned(case.arrays(), query_mask, key_mask, padding)
        gradients, value = case.gradient(arrays, query_mask=query_mask, key_mask=key_mask)
        np.testing.assert_allclose(value, expected, rtol=case.value_tolerance)
        largest = max(np.abs(x).max() for x in gradients)
        for number, gradient in enumerate(gradients):
            # A plan between few tokens can have a gradient of zero but for rounding.
            np.testing.assert_allclose(
                gradient,
                differences[number],
                rtol=case.gradient_tolerance * 10,
                atol=1e-5 * largest,
            )
            assert np.all(gradient[~(query_mask, key_mask)[number % 2]] == 0.0)


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
    np.testing.assert_allclose(case.value(permuted), case.value(arrays), rtol=case.value_tolerance)


@every_case
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(np.zeros_like, id="zeros"),
        pytest.param(np.ones_like, id="all-equal"),
        pytest.param(lambda x: x * np.float32(1e-30), id="tiny"),
        pytest.param(lambda x: x * np.float32(1e30), id="huge"),
        pytest.param(lambda x: np.where(np.arange(x.size).reshape(x.shape) < 4, 0, x), id="zero"),
    ],
)  # fmt: skip
def test_singular_points_are_finite(case, make):
    assert_finite(case, make)


@every_program
def test_single_tokens_are_finite(case):
    assert_finite(case, lambda x: x[:, :1])


def assert_finite(case, make):
    arrays = [make(x).astype(np.float32) for x in case.arrays()]
    gradients, value = case.gradient(arrays)
    assert np.all(np.isfinite(value))
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))


@every_divergence
def test_bfloat16_is_computed_in_float32(case):
    assert_computed_in_float32(case, jnp.bfloat16)


@pytest.mark.parametrize("case", CASES[:1], ids=lambda case: case.name)
def test_float16_is_computed_in_float32(case):
    """`numerics.prepare` converts every dtype alike."""
    assert_computed_in_float32(case, jnp.float16)


def assert_computed_in_float32(case, dtype):
    arrays = [x.astype(dtype) for x in case.arrays()]
    gradients, value = case.gradient(arrays)
    assert value.dtype == jnp.float32
    rounded = [x.astype(np.float32) for x in arrays]
    expected = oracles.batched(case.oracle, rounded)
    np.testing.assert_allclose(value, expected, rtol=case.value_tolerance)
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype(dtype)}


@every_divergence
def test_the_value_is_float32_where_jax_knows_float64(case):
    arrays = case.arrays()
    jax.config.update("jax_enable_x64", True)
    try:
        value = jax.jit(case.function)(*arrays)
    finally:
        jax.config.update("jax_enable_x64", False)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, case.value(arrays), rtol=case.value_tolerance, atol=1e-6)


@every_divergence
def test_vmap_equals_a_loop(case):
    stacked = [np.stack([x, 0.5 * x]) for x in case.arrays()]
    value = jax.jit(jax.vmap(case.function))(*stacked)
    expected = [case.value([x[i] for x in stacked]) for i in range(2)]
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
