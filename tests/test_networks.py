"""The networks against their formulas; chunks of vectors give what all vectors at once give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from align_jax import AlignmentConfig, networks
from align_jax.alignment import Alignment
from align_jax.networks import Critic, Discriminator, Highway, Navigator

BATCH, TOKENS, HEADS, WIDTH = 3, 5, 2, 4
VECTORS = BATCH * TOKENS * HEADS


class InChunks(nn.Module):
    """A network inside a parent, as `in_chunks` wants it."""

    network: nn.Module

    @nn.compact
    def __call__(self, x):
        return networks.in_chunks(self.network, x)


def value_and_gradients(model, variables, x):
    def loss(variables, x):
        out = model.apply(variables, x)
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables, x)
    return out, *gradients


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Discriminator(), ()),
        (Critic(features=6, highway=False), (6,)),
        (Navigator(features=6), (6,)),
    ],
)
@pytest.mark.parametrize("vectors", [1, 7, 10, VECTORS])  # in a chunk; 7 leave an incomplete one
def test_chunks_change_nothing(network, shape, vectors, monkeypatch):
    x = np.random.default_rng(0).normal(size=(BATCH, TOKENS, HEADS, WIDTH)).astype(np.float32)
    model = InChunks(network)
    variables = model.init(jax.random.key(0), x)
    expected = value_and_gradients(model, variables, x)
    assert expected[0].shape == (BATCH, TOKENS, HEADS, *shape)
    monkeypatch.setattr(networks, "CHUNK_SIZE", vectors * WIDTH)
    actual = value_and_gradients(model, variables, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
                 actual, expected)  # fmt: skip


def random_variables(network, x):
    """Biases too, which start as zeros."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize("make", [functools.partial(Critic, 1), Discriminator])
@pytest.mark.parametrize("highway", [True, False])
def test_an_adversary_is_a_network_with_gradient_reversal_on_both_sides(make, highway):
    x = np.random.default_rng(0).normal(size=(7, WIDTH)).astype(np.float32)
    network = make(highway=highway)
    variables = random_variables(network, x)
    expected, of_variables, of_x = value_and_gradients(network, variables, x)
    actual = value_and_gradients(make(highway=highway, adversarial=True), variables, x)
    np.testing.assert_array_equal(actual[0], expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-5), actual[1], of_variables)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of_variables))
    np.testing.assert_allclose(actual[2], of_x, rtol=1e-5)


@pytest.mark.parametrize("highway", [True, False])
def test_a_critic_and_a_navigator_together_are_the_two_apart(highway):
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            critic = Critic(6, highway=highway, name="critic")
            return networks.CriticAndNavigator(critic, Navigator(5, name="navigator"))(x)

    x = np.random.default_rng(0).normal(size=(7, WIDTH)).astype(np.float32)
    variables = random_variables(Both(), x)
    features, navigation = Both().apply(variables, x)
    apart = {"critic": Critic(6, highway=highway), "navigator": Navigator(5)}
    for name, value in (("critic", features), ("navigator", navigation)):
        own = {"params": variables["params"][name]}
        np.testing.assert_allclose(value, apart[name].apply(own, x), rtol=1e-5, atol=1e-5)


def test_dense_layers_of_flax_have_the_same_parameters():
    x = np.ones((1, WIDTH), np.float32)

    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10, name="output")(nn.Dense(10, name="hidden")(x))

    own, flax = (m.init(jax.random.key(0), x) for m in (Navigator(10), Dense()))
    jax.tree.map(np.testing.assert_array_equal, own, flax)


@pytest.mark.parametrize("method", ["gan", "ct"])
def test_chunks_keep_the_game_and_the_parameters_names(method, monkeypatch):
    """Who maximises and who minimises does not depend on how the networks are computed."""
    rng = np.random.default_rng(0)
    query, key = (
        rng.normal(size=(BATCH, TOKENS, HEADS, WIDTH)).astype(np.float32) for _ in range(2)
    )
    module = Alignment(AlignmentConfig(method))

    def gradients(variables):
        def loss(params):
            _, sown = module.apply({"params": params}, query, key, mutable=["alignment"])
            return sown["alignment"]["divergence"][0].sum()

        return jax.grad(loss)(variables["params"])

    variables = module.init(jax.random.key(0), query, key)
    expected = gradients(variables)
    monkeypatch.setattr(networks, "CHUNK_SIZE", 7 * WIDTH)
    again = module.init(jax.random.key(0), query, key)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 gradients(variables), expected)  # fmt: skip


def test_networks_are_what_they_are_called():
    """Against the formulas in NumPy, from the same parameters."""
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

    def dense(p, x):
        return x @ np.asarray(p["kernel"]) + np.asarray(p["bias"])

    def randomised(module):
        params = module.init(jax.random.key(0), x)["params"]
        leaves, structure = jax.tree.flatten(params)
        rng = np.random.default_rng(1)
        return jax.tree.unflatten(
            structure, [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
        )

    def highway(p, x):
        gate = 1 / (1 + np.exp(-dense(p["gate"], x)))
        return gate * np.maximum(dense(p["transform"], x), 0) + (1 - gate) * x

    params = randomised(Highway())
    np.testing.assert_allclose(
        Highway().apply({"params": params}, x), highway(params, x), rtol=1e-4, atol=1e-5
    )
    for module in (Critic(6), Critic(6, highway=False), Discriminator()):
        params = randomised(module)
        y = highway(params["highway"], x) if module.highway else x
        y = dense(params["hidden"], y)
        y = np.where(y > 0, y, (0.01 if module.highway else 0.0) * y)
        expected = dense(params["output"], y)
        if isinstance(module, Discriminator):
            expected = expected[:, 0]
        actual = module.apply({"params": params}, x)
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    params = randomised(Navigator(6))
    expected = dense(params["output"], np.maximum(dense(params["hidden"], x), 0))
    np.testing.assert_allclose(
        Navigator(6).apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("network", [Highway, Discriminator, functools.partial(Critic, 6),
                                     functools.partial(Navigator, 6)])  # fmt: skip
def test_the_computation_takes_the_dtype_asked_for(network):
    x = np.random.default_rng(0).normal(size=(7, WIDTH)).astype(np.float32)
    variables = random_variables(network(), x)
    exact, rounded = (network(dtype=dtype).apply(variables, x) for dtype in (None, jnp.bfloat16))
    assert (exact.dtype, rounded.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, rtol=0.1, atol=0.1)
