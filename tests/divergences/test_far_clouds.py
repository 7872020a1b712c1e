"""Far from the origin, of very different scale, and with NaN: against NumPy in float64."""

import functools

import jax
import numpy as np
import pytest

from align_jax import divergences, numerics, yardstick
from align_jax.divergences.edge_conditional_transport import edge_conditional_transport
from tests.divergences import oracles

N, M, D, PADDING = 6, 8, 4, 3
rng = np.random.default_rng(0)
QUERY, KEY = (rng.normal(size=(1, n, 1, D)).astype(np.float32) for n in (N, M))


def transport(query, key, **masks):
    return divergences.conditional_transport(
        query, key, 0 * query, 0 * key, cost="squared_euclidean", **masks
    )


def exact_transport(query, key):
    return oracles.conditional_transport(query, key, 0 * query, 0 * key, cost="squared_euclidean")


def scale_free(query, key, query_mask=None, key_mask=None):
    masks = {
        name: mask if mask is None else mask[0]
        for name, mask in (("query_mask", query_mask), ("key_mask", key_mask))
    }
    return yardstick.scale_free_mmd(query[0], key[0], **masks)[None]


def exact_scale_free(query, key):
    both = np.concatenate([query, key])
    squared = oracles.squared_euclidean_cost(both, both)
    np.fill_diagonal(squared, np.nan)
    kernel = np.exp(-squared / np.nanmedian(squared))
    n = len(query)
    within, between = (kernel[:n, :n], kernel[n:, n:]), kernel[:n, n:]
    return sum(np.nanmean(x) for x in within) - 2 * between.mean()


OT = {"cost": "squared_euclidean", "epsilon": 1.0}
CASES = {
    "mmd": (divergences.maximum_mean_discrepancy, oracles.maximum_mean_discrepancy),
    "mmd-own": (
        functools.partial(divergences.maximum_mean_discrepancy, bandwidth=None),
        lambda *x: oracles.maximum_mean_discrepancy(*x, bandwidth=oracles.own_bandwidth(*x)),
    ),
    "energy": (divergences.energy_distance, oracles.energy_distance),
    "scale-free": (scale_free, exact_scale_free),
    "ot": (
        functools.partial(divergences.optimal_transport, **OT),
        functools.partial(oracles.optimal_transport, **OT),
    ),
    "ct": (transport, exact_transport),
    "ct-dense": (functools.partial(transport, implementation="dense"), exact_transport),
}  # fmt: skip
# Of 5 samples, the shapes of each divergence's arrays.
CLOUDS = (5, 3, 1, D), (5, 4, 1, D)
EDGES = np.array([[0, 1, 2, 2], [0, 0, 1, 2]])  # senders and receivers
EVERY = {
    "gan": (divergences.adversarial, ((5, 3, 1), (5, 4, 1))),
    "mmd": (divergences.maximum_mean_discrepancy, CLOUDS),
    "mmd-own": (functools.partial(divergences.maximum_mean_discrepancy, bandwidth=None), CLOUDS),
    "energy": (divergences.energy_distance, CLOUDS),
    "ot": (functools.partial(divergences.optimal_transport, epsilon=0.5), CLOUDS),
    "ct-dense": (
        functools.partial(divergences.conditional_transport, implementation="dense"), CLOUDS * 2,
    ),
    "ct-blockwise": (
        functools.partial(divergences.conditional_transport, implementation="blockwise"),
        CLOUDS * 2,
    ),
    "ct-edges": (
        jax.vmap(lambda *x: edge_conditional_transport(*x, *EDGES)),
        ((5, 3, 1, D),) * 4,
    ),
}  # fmt: skip


@functools.cache
def _gradients(case):
    function, shapes = EVERY[case]

    def total(*arrays):
        value = function(*arrays)
        return value.sum(), value

    return jax.jit(jax.value_and_grad(total, tuple(range(len(shapes))), has_aux=True))


PLACES = {
    "both at 100": lambda q, k: (q + 100, k + 100),
    "both at 10,000": lambda q, k: (q + 1e4, k + 1e4),
    "keys at 10,000": lambda q, k: (q, k + 1e4),
    "wide keys": lambda q, k: (q, 1e4 * k),
    "wide queries": lambda q, k: (1e4 * q, k),
    "narrow keys far away": lambda q, k: (q, 1e-2 * k + 1e3),
}
# Of which the costs are too large for the entropy term.
FOR_TRANSPORT = ("both at 100", "both at 10,000")


@pytest.mark.fault(
    "Queries and keys far from 0 (10,000), of scales 10,000 apart, with padding",
    "Within 0.1% of float64; padding changes nothing",
)
@pytest.mark.parametrize("case", CASES)
def test_neither_place_nor_padding_costs_digits(case):
    function, oracle = CASES[case]
    places = FOR_TRANSPORT if case == "ot" else tuple(PLACES)
    clouds = [PLACES[place](QUERY, KEY) for place in places]
    clouds = [np.concatenate(x).astype(np.float32) for x in zip(*clouds, strict=True)]
    padded, masks = [], []
    for x in clouds:
        padding = np.full((len(x), PADDING, *x.shape[2:]), np.nan, np.float32)
        padded.append(np.concatenate([padding, x, padding], axis=1))
        masks.append(np.isfinite(padded[-1]).all((2, 3)))

    @jax.jit
    def one_by_one(*arrays):
        return jax.vmap(lambda *x: function(*(y[None] for y in x[:2]), query_mask=x[2][None],
                                            key_mask=x[3][None])[0])(*arrays)  # fmt: skip

    value = one_by_one(*padded, *masks)
    for number, place in enumerate(places):
        expected = oracle(*(x[number, :, 0].astype(np.float64) for x in clouds))
        np.testing.assert_allclose(value[number, 0], expected, rtol=1e-3, atol=1e-5, err_msg=place)


def test_a_point_coincides_with_itself_however_far_it_lies():
    """On every processor: which of these distances rounding leaves above 0 is its own affair."""
    points = (1e4 + np.random.default_rng(1).normal(size=(1, 100, 1, 33))).astype(np.float32)
    distance = jax.jit(numerics.squared_distance)(points, points)
    np.testing.assert_array_equal(np.diagonal(distance[0, 0]), 0.0)


def test_the_centre_is_that_of_the_narrower_cloud():
    """A pair of near tokens lies near the narrower cloud, and there the distance keeps digits."""
    query, key = np.float32(1e4) * QUERY, KEY
    masks = np.ones((1, N), bool), np.ones((1, M), bool)
    for clouds in ((query, key), (key, query)):
        centre = jax.jit(numerics.centred)(*clouds, *(masks if clouds[0] is query else masks[::-1]))
        narrow = np.asarray(centre[1] if clouds[0] is query else centre[0])
        np.testing.assert_allclose(narrow.mean(axis=1), 0.0, atol=1e-5)


@pytest.mark.fault(
    "NaN or infinity in a token that takes part, in any array of any divergence",
    "NaN in the value and the gradient of that sample, and of no other",
)
@pytest.mark.parametrize("spoilt", [0, 1])
@pytest.mark.parametrize("case", EVERY)
def test_nan_in_is_nan_out(case, spoilt):
    _, shapes = EVERY[case]
    arrays = [np.float32(np.random.default_rng(n).normal(size=s)) for n, s in enumerate(shapes)]
    for number in range(spoilt, len(shapes), 2):
        spoiled = [x.copy() for x in arrays]
        x = spoiled[number]
        x[1, 0], x[2], x[3, 0], x[4, 0] = np.nan, np.nan, np.inf, -np.inf
        (_, value), gradients = jax.device_get(_gradients(case)(*spoiled))
        assert np.isfinite(value[0]).all()
        assert np.isnan(value[1:]).all()
        assert all(np.isfinite(gradient[0]).all() for gradient in gradients)
        for sample in range(1, 5):
            assert np.isnan(gradients[number][sample]).any()
