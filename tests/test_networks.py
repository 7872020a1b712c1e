"""The networks against their formulas; chunks of vectors give what all vectors at once give."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from align_jax import AlignmentConfig, networks
from align_jax.alignment import Alignment
from align_jax.networks import Critic, Discriminator, Highway, Navigator
from tests.cases import thorough

BATCH, TOKENS, HEADS, WIDTH = 3, 5, 2, 4
VECTORS = BATCH * TOKENS * HEADS


class Inside(nn.Module):
    """A network inside a parent, as `in_chunks` and `for_each_head` want it."""

    network: nn.Module
    apply_to: Callable = networks.in_chunks

    @nn.compact
    def __call__(self, x):
        return self.apply_to(self.network, x)


def value_and_gradients(model, variables, x):
    def loss(variables, x):
        out = model.apply(variables, x)
        return jnp.sum(jnp.sin(out)), out

    # Compiled in each call, for the size of a chunk is not among the arguments.
    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, out), gradients = value_and_grad(variables, x)
    return out, *gradients


def random_variables(network, x):
    """Biases too, which start as zeros."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Discriminator(), ()),
        (Critic(features=6, highway=False), (6,)),
        (Navigator(features=6), (6,)),
    ],
)
def test_chunks_change_nothing(network, shape, monkeypatch):
    x = np.random.default_rng(0).normal(size=(BATCH, TOKENS, HEADS, WIDTH)).astype(np.float32)
    model = Inside(network)
    variables = random_variables(model, x)
    expected = value_and_gradients(model, variables, x)
    assert expected[0].shape == (BATCH, TOKENS, HEADS, *shape)
    for vectors in (1, 8):  # in a chunk; the last of 8 is incomplete
        monkeypatch.setattr(networks, "CHUNK_SIZE", vectors * WIDTH)
        actual = value_and_gradients(model, variables, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
                     actual, expected)  # fmt: skip


def apply(network, variables, x):
    return jax.jit(network.apply)(variables, x)


def slices(variables):
    """Each head's own."""
    return [jax.tree.map(lambda leaf, head=head: leaf[head], variables) for head in range(HEADS)]


@pytest.mark.parametrize("network", [Discriminator(), Critic(features=6, highway=False)])
def test_each_head_has_a_network_of_its_own(network, monkeypatch):
    """Values and gradients are those of the network with each head's share of the parameters."""
    x = np.random.default_rng(0).normal(size=(BATCH, TOKENS, HEADS, WIDTH)).astype(np.float32)
    model = Inside(network, networks.for_each_head)
    variables = random_variables(model, x)
    # The heads one after another, in one program.
    alone = jax.device_get(
        jax.jit(
            lambda variables: [
                value_and_gradients(network, {"params": own["params"]["network"]}, x[:, :, head])
                for head, own in enumerate(slices(variables))
            ]
        )(variables)
    )
    for vectors in (7, VECTORS):  # in a chunk: heads in a loop, or all at once
        monkeypatch.setattr(networks, "CHUNK_SIZE", vectors * WIDTH)
        value, of_variables, of_x = jax.device_get(value_and_gradients(model, variables, x))
        for head, own in enumerate(slices(of_variables)):
            actual = value[:, :, head], {"params": own["params"]["network"]}, of_x[:, :, head]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                         actual, alone[head])  # fmt: skip


def test_the_heads_networks_start_differently():
    x = np.ones((BATCH, TOKENS, HEADS, WIDTH), np.float32)
    model = Inside(Discriminator(), networks.for_each_head)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    kernels = variables["params"]["network"]["hidden"]["kernel"]
    assert kernels.shape == (HEADS, WIDTH, 10)
    assert np.abs(kernels[0] - kernels[1]).min() > 0.0


def squared_slope(network, params, x):
    """Of one vector: the squared norm of the Jacobian."""
    return jnp.sum(jax.jacobian(lambda x: network.apply({"params": params}, x))(x) ** 2)


@pytest.mark.parametrize("each_head", [False, True])
@pytest.mark.parametrize("make", [Discriminator, functools.partial(Critic, 3)])
def test_the_penalty_is_the_squared_norm_of_the_jacobian(make, each_head):
    """Exactly so where all tokens are equal, for then it does not matter which of them stands for
    which feature."""
    x = np.random.default_rng(0).normal(size=(BATCH, 1, HEADS, WIDTH)).astype(np.float32)
    model = Inside(make(), networks.for_each_head if each_head else networks.in_chunks)
    params = random_variables(model, x)["params"]["network"]
    of_head = slices(params) if each_head else [params] * HEADS

    @jax.jit
    def expected(of_head):
        slopes = [jax.vmap(functools.partial(squared_slope, make(), own)) for own in of_head]
        return jnp.stack([slope(x[:, 0, head]) for head, slope in enumerate(slopes)], axis=1)

    @jax.jit
    def penalty(x):
        return networks.gradient_penalty(make(), params, [(x, None)], each_head=each_head)

    for tokens in (1, 17):  # of which 1 and 3 are looked at
        found = penalty(np.repeat(x, tokens, axis=1))
        np.testing.assert_allclose(found, expected(of_head), rtol=1e-5)


def test_each_cloud_weighs_as_much_in_the_penalty():
    """However many tokens it has, or that take part."""
    rng = np.random.default_rng(0)
    few, many = (rng.normal(size=(2, n, HEADS, WIDTH)).astype(np.float32) for n in (1, 49))
    mask = np.arange(49) < np.array([[49], [20]])
    params = random_variables(Inside(Discriminator()), few)["params"]["network"]

    @jax.jit
    def penalties():
        clouds = [(few, None), (many, mask)]
        return [
            networks.gradient_penalty(Discriminator(), params, seen, each_head=False)
            for seen in (clouds, clouds[:1], clouds[1:])
        ]

    both, *single = penalties()
    np.testing.assert_allclose(both, (single[0] + single[1]) / 2, rtol=1e-5)


def test_the_penalty_is_a_mean_over_every_eighth_token_that_takes_part():
    """With the gradient of the dense Jacobian; an adversary's is reversed, and none reaches x."""
    x = np.random.default_rng(0).normal(size=(2, 17, HEADS, WIDTH)).astype(np.float32)
    mask = np.ones((2, 17), bool)
    mask[0, 8] = mask[1] = False
    params = random_variables(Inside(Discriminator()), x)["params"]["network"]

    def dense(params):
        slope = jax.vmap(functools.partial(squared_slope, Discriminator(), params))
        return (slope(x[0, 0]) + slope(x[0, 16])) / 2

    def penalty(params, x, network):
        return networks.gradient_penalty(network, params, [(x, mask)], each_head=False)

    def with_gradients(function, *arguments):
        def loss(*arguments):
            out = function(*arguments)
            return jnp.sum(out), out

        numbers = tuple(range(len(arguments)))
        return jax.jit(jax.value_and_grad(loss, argnums=numbers, has_aux=True))(*arguments)

    (_, expected), (of_params,) = with_gradients(dense, params)
    for adversarial in (False, True):
        network = Discriminator(adversarial=adversarial)
        (_, found), (of_own, of_x) = with_gradients(
            functools.partial(penalty, network=network), params, x
        )
        np.testing.assert_allclose(found[0], expected, rtol=1e-5)
        assert found[1].tolist() == [0.0] * HEADS
        assert not of_x.any()
        sign = -1.0 if adversarial else 1.0
        for gradient, own in zip(*map(jax.tree.leaves, (of_own, of_params)), strict=True):
            np.testing.assert_allclose(sign * gradient, own, rtol=1e-4, atol=1e-5)


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
    features, navigation = apply(Both(), variables, x)
    apart = {"critic": Critic(6, highway=highway), "navigator": Navigator(5)}
    for name, value in (("critic", features), ("navigator", navigation)):
        own = {"params": variables["params"][name]}
        np.testing.assert_allclose(value, apply(apart[name], own, x), rtol=1e-5, atol=1e-5)


def test_dense_layers_of_flax_have_the_same_parameters():
    x = np.ones((1, WIDTH), np.float32)

    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10, name="output")(nn.Dense(10, name="hidden")(x))

    own, flax = (jax.jit(m.init)(jax.random.key(0), x) for m in (Navigator(10), Dense()))
    jax.tree.map(np.testing.assert_array_equal, own, flax)


@pytest.mark.parametrize("method", thorough(("gan", "ct"), "gan"))
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

        return jax.jit(jax.grad(loss))(variables["params"])

    def initial_program():
        init = jax.jit(lambda rng: module.init(rng, query, key))  # traced anew
        return init.lower(jax.random.key(0)).as_text()

    expected_start = initial_program()
    shapes = jax.eval_shape(module.init, jax.random.key(0), query, key)
    variables = jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), shapes)
    expected = gradients(variables)
    monkeypatch.setattr(networks, "CHUNK_SIZE", 7 * WIDTH)
    assert initial_program() == expected_start
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 gradients(variables), expected)  # fmt: skip


def test_networks_are_what_they_are_called():
    """Against the formulas in NumPy, from the same parameters."""
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

    def dense(p, x):
        return x @ np.asarray(p["kernel"]) + np.asarray(p["bias"])

    def randomised(module):
        return random_variables(module, x)["params"]

    def highway(p, x):
        gate = 1 / (1 + np.exp(-dense(p["gate"], x)))
        return gate * np.maximum(dense(p["transform"], x), 0) + (1 - gate) * x

    params = randomised(Highway())
    np.testing.assert_allclose(
        apply(Highway(), {"params": params}, x), highway(params, x), rtol=1e-4, atol=1e-5
    )
    for module in (Critic(6), Critic(6, highway=False), Discriminator()):
        params = randomised(module)
        y = highway(params["highway"], x) if module.highway else x
        y = dense(params["hidden"], y)
        y = np.where(y > 0, y, (0.01 if module.highway else 0.0) * y)
        expected = dense(params["output"], y)
        if isinstance(module, Discriminator):
            expected = expected[:, 0]
        actual = apply(module, {"params": params}, x)
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    params = randomised(Navigator(6))
    expected = dense(params["output"], np.maximum(dense(params["hidden"], x), 0))
    np.testing.assert_allclose(
        apply(Navigator(6), {"params": params}, x), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("network", [Highway, Discriminator, functools.partial(Critic, 6),
                                     functools.partial(Navigator, 6)])  # fmt: skip
def test_the_computation_takes_the_dtype_asked_for(network):
    x = np.random.default_rng(0).normal(size=(7, WIDTH)).astype(np.float32)
    variables = random_variables(network(), x)
    exact, rounded = (apply(network(dtype=dtype), variables, x) for dtype in (None, jnp.bfloat16))
    assert (exact.dtype, rounded.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, rtol=0.1, atol=0.1)
