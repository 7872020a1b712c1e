"""The networks: chunks of vectors give what all vectors at once give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from align_jax import AlignmentConfig, networks
from align_jax.alignment import Alignment

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
        (networks.Discriminator(), ()),
        (networks.Critic(features=6, highway=False), (6,)),
        (networks.Navigator(features=6), (6,)),
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
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 actual, expected)  # fmt: skip


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
