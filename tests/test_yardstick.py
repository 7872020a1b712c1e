"""The yardstick, against NumPy in float64, and what it promises."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

from align_jax import AlignmentConfig, aligned, yardstick

mmd = jax.jit(yardstick.scale_free_mmd)
sample_tokens = jax.jit(yardstick.sample_tokens, static_argnames="tokens")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def reference(query, key):
    """One head's, pair by pair: [N, D], [M, D]."""
    both = np.concatenate([query, key]).astype(np.float64)
    squared = ((both[:, None] - both[None]) ** 2).sum(-1)
    scale = np.median(squared[~np.eye(len(both), dtype=bool)])
    kernel = np.exp(-squared / scale)
    n, m = len(query), len(key)
    within = kernel[:n, :n], kernel[n:, n:]
    means = [(k.sum() - np.trace(k)) / (c * (c - 1)) for k, c in zip(within, (n, m), strict=True)]
    return sum(means) - 2 * kernel[:n, n:].mean()


def test_it_is_the_unbiased_estimate_with_the_median_of_the_squared_distances(rng):
    query = rng.normal(size=(20, 3, 5)).astype(np.float32)
    key = (rng.normal(size=(30, 3, 5)) * [[[1.0], [2.0], [1.0]]] + [[[0.0], [0.0], [4.0]]]).astype(
        np.float32
    )
    expected = [reference(query[:, head], key[:, head]) for head in range(3)]
    np.testing.assert_allclose(mmd(query, key), expected, atol=1e-5)


def test_masked_equals_sliced(rng):
    query, key = rng.normal(size=(2, 20, 2, 4)).astype(np.float32)
    key += 1.0
    query_mask, key_mask = rng.random((2, 20)) < 0.6
    query[~query_mask] = np.nan
    key[~key_mask] = 1e30
    found = mmd(query, key, query_mask=query_mask, key_mask=key_mask)
    np.testing.assert_allclose(found, mmd(query[query_mask], key[key_mask]), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 100.0, 1e6])
def test_neither_scale_nor_place_matters(rng, scale):
    query, key = rng.normal(size=(2, 40, 2, 4)).astype(np.float32)
    key[..., 0] += 1.0
    moved = [scale * (x + 5.0) for x in (query, key)]
    np.testing.assert_allclose(mmd(*moved), mmd(query, key), atol=1e-3)


def test_it_is_about_zero_for_one_distribution_and_one_for_two_far_apart(rng):
    x, y = rng.normal(size=(2, 300, 6, 8)).astype(np.float32)
    alike = mmd(x, y)
    assert np.abs(alike).max() < 0.01
    assert alike.min() < 0 < alike.max()  # no bias: it errs on both sides
    assert mmd(x, y + 20.0).min() > 0.95
    # The same mean, another spread.
    assert mmd(x, 3.0 * y).min() > 0.1


@pytest.mark.parametrize("kept", [0, 1])
def test_too_few_tokens_have_no_distance(rng, kept):
    x, y = rng.normal(size=(2, 5, 1, 3)).astype(np.float32)
    assert mmd(x, y, query_mask=np.arange(5) < kept)[0] == 0.0


def test_points_that_are_nearly_all_one_have_a_distance(rng):
    x = np.zeros((10, 1, 2), np.float32)
    y = x.copy()
    y[0] = 3.0
    assert np.isfinite(mmd(x, x)).all()
    assert mmd(x, y + 1.0)[0] > 0.5


def test_bad_shapes_are_named(rng):
    x = np.zeros((5, 2, 3), np.float32)
    with pytest.raises(ValueError, match="differ in axis 2"):
        yardstick.scale_free_mmd(x, x[:, :1])
    with pytest.raises(TypeError, match="query_mask must be a bool array"):
        yardstick.scale_free_mmd(x, x, query_mask=np.ones(5))


@pytest.fixture(scope="module")
def sown():
    """What a model sows of three samples, of six, four and two tokens."""
    model = aligned(nn.MultiHeadDotProductAttention(num_heads=2), AlignmentConfig("none"))
    x = jax.random.normal(jax.random.key(0), (3, 6, 8))
    mask = (jnp.arange(6) < jnp.array([6, 4, 2])[:, None])[:, None, None, :]

    @jax.jit
    def measured(rng):
        params = model.init(rng, x)
        return model.apply(params, x, mask=mask, mutable=["alignment_clouds"])[1]

    return measured(jax.random.key(1))


def test_tokens_come_from_all_samples_and_none_from_padding(sown):
    clouds = yardstick.alignment_clouds(sown)[""]
    sample = sample_tokens(sown, jax.random.key(2), tokens=9)[""]
    assert sample.query.shape == (9, 2, 4)
    assert sample.key_mask.all()
    valid = np.asarray(clouds.key)[np.asarray(clouds.key_mask)]  # [12, H, D]
    found = [np.flatnonzero((valid == x).all((1, 2))) for x in np.asarray(sample.key)]
    assert all(len(rows) == 1 for rows in found)
    assert len({int(rows[0]) for rows in found}) == 9


def test_of_fewer_tokens_all_are_taken(sown):
    sample = sample_tokens(sown, jax.random.key(2), tokens=50)[""]
    assert int(sample.key_mask.sum()) == 12
    assert int(sample.query_mask.sum()) == 12


def test_rows_that_fill_up_the_batch_are_left_out(sown):
    mask = jnp.array([True, False, True])
    sample = sample_tokens(sown, jax.random.key(2), sample_mask=mask)[""]
    assert int(sample.query_mask.sum()) == 8


@pytest.mark.parametrize(
    "measure",
    [
        yardstick.attention_statistics,
        lambda sown, sample_mask: yardstick.cloud_distances(
            sown, jax.random.key(0), sample_mask=sample_mask
        ),
    ],
)
def test_a_mask_is_of_samples_and_may_be_a_list(sown, measure):
    (clouds,) = yardstick.alignment_clouds(sown).values()
    samples = len(clouds.query)
    of = [True] * (samples - 1) + [False]
    expected = measure(sown, sample_mask=np.array(of))
    jax.tree.map(np.testing.assert_array_equal, measure(sown, sample_mask=of), expected)
    jax.tree.map(
        np.testing.assert_array_equal, measure(sown, sample_mask=2 * np.array(of)), expected
    )
    for wrong in (np.ones((samples, 1), bool), np.ones(1, bool), clouds.query_mask):
        with pytest.raises(ValueError, match="sample_mask must have shape .*, one entry per"):
            measure(sown, sample_mask=wrong)


def test_distances_are_those_of_all_tokens(sown):
    clouds = yardstick.alignment_clouds(sown)[""]
    query, key = (np.asarray(x)[np.asarray(clouds.query_mask)] for x in (clouds.query, clouds.key))
    found = jax.jit(yardstick.cloud_distances)(sown, jax.random.key(2))[""]
    expected = [reference(query[:, head], key[:, head]) for head in range(2)]
    np.testing.assert_allclose(found.mmd, expected, atol=1e-5)
    np.testing.assert_allclose(
        found.query_norm, np.linalg.norm(query, axis=-1).mean(axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(found.key_norm, np.linalg.norm(key, axis=-1).mean(axis=0), rtol=1e-5)


def test_what_cannot_be_measured_is_explained(sown):
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        yardstick.sample_tokens(sown, jax.random.key(0), tokens=0)
    with pytest.raises(ValueError, match="No 'alignment_clouds' collection"):
        yardstick.cloud_distances({}, jax.random.key(0))


@pytest.mark.parametrize("size", [2, 3, 10, 11])
@pytest.mark.parametrize("ties", [False, True])
def test_the_median_is_numpys(rng, size, ties):
    values = rng.normal(size=(2, size, size)).astype(np.float32) ** 2
    values = np.floor(3 * values) if ties else values
    valid = rng.random((size, size)) < 0.7
    valid[0, :2] = True
    expected = np.median(values[:, valid], axis=1)
    np.testing.assert_array_equal(jax.jit(yardstick._median)(values, valid), expected)


def statistics_of(query, key):
    """One sample's and head's attention, [N, D] and [M, D], in float64."""
    logits = query.astype(np.float64) @ key.astype(np.float64).T / np.sqrt(query.shape[1])
    shares = scipy.special.softmax(logits, axis=1)
    entropy = scipy.stats.entropy(shares, axis=1) / np.log(len(key))
    singular = np.linalg.svd(shares, compute_uv=False)
    rank = (singular**2).sum() ** 2 / (singular**4).sum()
    return np.array([entropy.mean(), logits.std(axis=1).mean(), rank])


def test_statistics_of_attention_are_those_of_the_matrix_without_padding(rng):
    query = 2 * rng.normal(size=(3, 6, 2, 4)).astype(np.float32)
    key = 3 * rng.normal(size=(3, 7, 2, 4)).astype(np.float32)
    queries, keys = [6, 4, 5], [7, 3, 2]
    query_mask = np.arange(6) < np.array(queries)[:, None]
    key_mask = np.arange(7) < np.array(keys)[:, None]
    query[~query_mask], key[~key_mask] = np.nan, np.nan
    clouds = {"query": query, "key": key, "query_mask": query_mask, "key_mask": key_mask}
    sown = {"alignment_clouds": {"layer": {name: (x,) for name, x in clouds.items()}}}

    found = yardstick.attention_statistics(sown, sample_mask=np.array([True, True, False]))
    for head in range(2):
        samples = [
            statistics_of(query[row, : queries[row], head], key[row, : keys[row], head])
            for row in range(2)
        ]
        entropy, deviation, rank = np.transpose(samples)
        # A query counts as much as another, of whichever sample it is; a rank is a sample's.
        assert found["layer"].entropy[head] == pytest.approx(np.average(entropy, weights=[6, 4]))
        assert found["layer"].logit_deviation[head] == pytest.approx(
            np.average(deviation, weights=[6, 4])
        )
        assert found["layer"].rank[head] == pytest.approx(rank.mean())
