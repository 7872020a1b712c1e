"""The alignment module: what it sows, when, and in which direction each parameter is pushed."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from align_jax import (
    Alignment,
    AlignmentConfig,
    MultiHeadDotProductAttention,
    aligned,
    aligned_function,
    alignment_clouds,
    alignment_loss,
    alignment_sums,
    alignment_table,
    cloud_mmd,
    divergences,
    label_parameters,
    networks,
    strip_alignment,
)
from align_jax.collection import AlignmentSums
from tests.cases import thorough

B, N, M, H, D = 3, 5, 7, 2, 4
METHODS = ("gan", "ot", "ct", "mmd", "energy")


def thorough_but(*methods):
    """All methods, of which the rest run what these do."""
    return thorough(METHODS, *(set(METHODS) - set(methods)))


def clouds(seed=0, keys=M):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(B, n, H, D)).astype(np.float32) for n in (N, keys))


def random_variables(module, query, key):
    """Random numbers in place of those that a module starts from, for which it takes a program."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), query, key)
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: np.float32(0.4 * rng.normal(size=x.shape)), shapes)


@functools.cache
def setup(method="ct", keys=M, paper=False, **options):
    config = AlignmentConfig.paper if paper else AlignmentConfig
    module = Alignment(config(method, **options))
    query, key = clouds(keys=keys)
    return module, random_variables(module, query, key), query, key


@functools.partial(jax.jit, static_argnames=("module", "mutable"))
def sow(module, variables, query, key, mutable="alignment", **masks_and_rngs):
    """What the module sows; one program for all tests that ask for the same."""
    return module.apply(variables, query, key, **masks_and_rngs, mutable=[mutable])[1]


@functools.partial(jax.jit, static_argnames=("function", "options"))
def jitted(function, *arrays, options=(), **masks):
    return function(*arrays, **masks, **dict(options))


def lengths(*valid):
    return np.arange(N)[None] < np.array(valid)[:, None]


@pytest.mark.parametrize("method", METHODS)
def test_sows_one_value_per_sample_and_head(method):
    module, variables, query, key = setup(method)
    assert "alignment" not in variables
    sown = sow(module, variables, query, key)
    assert sown["alignment"]["divergence"][0].shape == (B, H)
    assert sown["alignment"]["valid"][0].tolist() == [True] * B
    assert ("sinkhorn_residual" in sown["alignment"]) == (method == "ot")
    if method == "ot":
        residual, failed = (
            sown["alignment"][f"sinkhorn_{name}"][0] for name in ("residual", "unconverged")
        )
        np.testing.assert_array_equal(failed, residual > AlignmentConfig("ot").sinkhorn_threshold)
    np.testing.assert_allclose(
        alignment_loss(sown), np.mean(sown["alignment"]["divergence"][0]), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gan", {}),
        ("ct", {}),
        ("ct", {"rho": 0.2}),
        ("ot", {}),
        ("ot", {"epsilon": 0.5, "cost": "squared_euclidean"}),
        ("mmd", {}),
        ("mmd", {"bandwidth": 3.0}),
        ("energy", {}),
    ],
)
def test_values_are_those_of_the_functions(method, options):
    """In the paper's form the module adds networks, masks and its options to the pure functions,
    and nothing else."""
    masks = {"query_mask": lengths(5, 3, 1), "key_mask": None}
    module, variables, query, key = setup(method, paper=True, **options)
    state = sow(module, variables, query, key, **masks)
    made_by = {
        "gan": {"discriminator": networks.Discriminator()},
        "ct": {"critic": networks.Critic(10), "navigator": networks.Navigator(10)},
    }.get(method, {})
    assert variables.get("params", {}).keys() == made_by.keys()
    arrays = [
        jitted(network.apply, {"params": variables["params"][name]}, x)
        for name, network in made_by.items()
        for x in (query, key)
    ]
    function = {
        "gan": divergences.adversarial,
        "ct": divergences.conditional_transport,
        "ot": divergences.optimal_transport,
        "mmd": divergences.maximum_mean_discrepancy,
        "energy": divergences.energy_distance,
    }[method]
    arrays = arrays or [query, key]
    # The module's own defaults: cheaper, and the data's own bandwidth.
    own = {"ot": {"threshold": 1e-2, "max_iterations": 20}, "mmd": {"bandwidth": None}}
    own = own.get(method, {})
    expected = jitted(function, *arrays, **masks, options=tuple((own | options).items()))
    value = state["alignment"]["divergence"][0]
    np.testing.assert_allclose(value, expected, rtol=1e-4 if method == "ot" else 1e-5)
    if options:  # which the value depends on
        default = jitted(function, *arrays, **masks, options=tuple(own.items()))
        assert not np.allclose(value, default, rtol=1e-2)


@pytest.mark.parametrize("method", ["gan", "ct"])
@pytest.mark.parametrize("discriminator", ["highway", "mlp"])
def test_every_group_is_pushed_the_right_way(method, discriminator):
    """Finite differences of the value itself, which reversal does not touch, give the true slope:
    queries, keys and navigator must follow it (descend), critic and discriminator oppose it. It is
    so in the paper's form; by default queries and keys have a loss of their own, and the adversary
    a penalty (`test_games.py`)."""
    module, variables, query, key = setup(method, paper=True, discriminator=discriminator)

    @jax.jit
    def value(params, query, key):
        return alignment_loss(
            module.apply({"params": params}, query, key, mutable=["alignment"])[1]
        )

    arguments = (variables["params"], query, key)
    gradients = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*arguments)
    leaves, structure = jax.tree.flatten_with_path(arguments)
    checked = set()
    for number, (path, leaf) in enumerate(leaves):
        gradient = np.asarray(jax.tree.leaves(gradients)[number])
        rng = np.random.default_rng(number)
        direction = rng.normal(size=leaf.shape).astype(np.float32)
        direction += np.sign(gradient) * np.abs(direction)  # away from orthogonal

        def moved(step, number=number, leaf=leaf, direction=direction):
            changed = [x for _, x in leaves]
            changed[number] = leaf + step * direction
            return float(value(*jax.tree.unflatten(structure, changed)))

        slope = (moved(1e-3) - moved(-1e-3)) / 2e-3
        pushed = float(np.sum(gradient * direction))
        name = jax.tree_util.keystr(path)
        group = next(
            (g for g in ("critic", "discriminator", "navigator") if g in name), "projections"
        )
        sign = -1.0 if group in ("critic", "discriminator") else 1.0
        np.testing.assert_allclose(sign * pushed, slope, rtol=0.1, atol=2e-3, err_msg=name)
        if abs(slope) > 1e-2:
            checked.add(group)
    expected = {"critic", "navigator"} if method == "ct" else {"discriminator"}
    assert checked == expected | {"projections"}


# As many queries in each sample, so that what is written down below is compiled once.
GAME_MASK = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 0, 1, 0]], bool)
GAME_WEIGHTS = np.random.default_rng(5).uniform(0.5, 1.5, size=(B, H)).astype(np.float32)


@functools.cache
def game(method, **options):
    """The values of each sample and head and, of their weighed sum, the gradients for parameters,
    queries and keys, as a function of these."""
    module = Alignment(AlignmentConfig(method, **options))

    def measure(params, query, key):
        sown = module.apply(
            {"params": params}, query, key, query_mask=GAME_MASK, mutable=["alignment"]
        )[1]
        values = sown["alignment"]["divergence"][0]
        return jnp.sum(GAME_WEIGHTS * values), values

    return jax.jit(jax.value_and_grad(measure, argnums=(0, 1, 2), has_aux=True))


@functools.partial(jax.jit, static_argnames="method")
def written_down(params, query, key, method, saturating, constant):
    """The game of one sample and head, of these queries `[N, D]` and keys `[M, D]`: its value with
    the gradient for the parameters; the gradients that queries and keys descend; and the penalty
    with its gradient for the parameters."""
    name, network = {
        "gan": ("discriminator", networks.Discriminator()), "ct": ("critic", networks.Critic(10)),
    }[method]  # fmt: skip

    def at_unit_scale(query, key):
        root = jnp.sqrt(0.5 * (jnp.mean(query**2) + jnp.mean(key**2)))
        return (x / jax.lax.stop_gradient(root) for x in (query, key))

    def outputs(params, query, key):
        clouds = at_unit_scale(query, key)
        return [network.apply({"params": params[name]}, x) for x in clouds]

    def value(params, query, key):
        found = outputs(params, query, key)
        if method == "gan":
            return -jnp.mean(jax.nn.softplus(-found[0])) - jnp.mean(jax.nn.softplus(found[1]))
        found = [jnp.append(x, jnp.full((len(x), 1), constant), axis=1) for x in found]
        navigate = functools.partial(networks.Navigator(10).apply, {"params": params["navigator"]})
        plans = [navigate(x) for x in at_unit_scale(query, key)]
        found += [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in plans]
        return divergences.conditional_transport(*(x[None, :, None] for x in found))[0, 0]

    def steeper(query, key):
        logits = outputs(params, query, key)
        return jnp.mean(jax.nn.softplus(logits[0])) + jnp.mean(jax.nn.softplus(-logits[1]))

    def penalty(params):
        slopes = [  # the first token stands for all of these few
            jnp.sum(jax.jacobian(lambda x: network.apply({"params": params[name]}, x))(x[0]) ** 2)
            for x in at_unit_scale(query, key)
        ]
        mean = 0.5 * (slopes[0] + slopes[1])
        return jnp.maximum(mean - 1.0, 0.0) if method == "ct" else mean

    worth, (own, *of_clouds) = jax.value_and_grad(value, argnums=(0, 1, 2))(params, query, key)
    if method == "gan":
        others = jax.grad(steeper, argnums=(0, 1))(query, key)
        of_clouds = [jnp.where(saturating, *x) for x in zip(of_clouds, others, strict=True)]
    return (worth, own), of_clouds, jax.value_and_grad(penalty)(params)


def close(actual, expected, rtol=1e-4):
    """In units of the largest entry of each array."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max()),
        actual, expected,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gan", {}),
        ("gan", {"gradient_penalty": 0.3, "saturating": True}),
        ("ct", {}),
        ("ct", {"gradient_penalty": 0.3, "constant_feature": 3.0}),
    ],
)
def test_every_player_has_a_loss_of_its_own(method, options):
    """Networks for each head see clouds of unit scale, a constant beside the critic's features. The
    value is the divergence. Queries and keys descend it ("ct", saturating), or the losses of
    Goodfellow et al. that have a slope where the discriminator is sure. The adversary ascends it,
    less the penalty on its slope, of which a critic's is free up to 1."""
    _, variables, query, key = setup(method)
    params = jax.tree.map(np.copy, variables["params"])
    adversary = "discriminator" if method == "gan" else "critic"
    # Of which the first head's slope is small, and the second's is not.
    params[adversary]["output"]["kernel"] *= np.float32([0.1, 2.0])[:, None, None]
    (_, values), (of_params, of_query, of_key) = jax.device_get(
        game(method, **options)(params, query, key)
    )
    weight, penalties = options.get("gradient_penalty", 1.0), np.zeros((B, H))
    settings = options.get("saturating", False), options.get("constant_feature", 1.0)
    expected = jax.tree.map(np.zeros_like, params)
    for b, h in np.ndindex(B, H):
        valid, share = GAME_MASK[b], GAME_WEIGHTS[b, h]
        (value, own), clouds, (penalties[b, h], slope) = jax.device_get(
            written_down(
                jax.tree.map(lambda leaf, h=h: leaf[h], params),
                query[b, valid, h], key[b, :, h], method, *settings,
            )
        )  # fmt: skip
        np.testing.assert_allclose(values[b, h], value, rtol=1e-4)
        close((of_query[b, valid, h], of_key[b, :, h]), (share * clouds[0], share * clouds[1]))
        own[adversary] = jax.tree.map(lambda a, b: weight * b - a, own[adversary], slope[adversary])
        for total, part in zip(jax.tree.leaves(expected), jax.tree.leaves(own), strict=True):
            total[h] += share * part
    close(of_params, expected)
    assert (penalties > 0.0).tolist() == [[method == "gan", True]] * B
    assert not of_query[~GAME_MASK].any()


@pytest.mark.parametrize("logit", [-100.0, -20.0, 0.0, 20.0, 100.0])
def test_a_discriminator_however_sure_leaves_all_gradients_finite(logit):
    """Queries and keys have the slope of Eq. 2 times the exponential of their logit or its
    negative, as long as that leaves room to spare in float32."""
    _, variables, query, key = setup("gan")
    params = jax.tree.map(np.copy, variables["params"])
    params["discriminator"]["output"]["kernel"] *= 1e-3  # so that the bias is the logit
    params["discriminator"]["output"]["bias"] = np.full((H, 1), logit, np.float32)
    gradients = game("gan")(params, query, key)[1]
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
    if abs(logit) <= 20.0:
        saturating = game("gan", gradient_penalty=0.3, saturating=True)(params, query, key)[1]
        close(gradients[1], np.exp(logit) * saturating[1], rtol=0.01)
        close(gradients[2], np.exp(-logit) * saturating[2], rtol=0.01)


@pytest.mark.parametrize("method", ["ot", "mmd", "energy"])
def test_descending_brings_the_clouds_together(method):
    module, _, query, key = setup(method)

    @jax.jit
    @jax.value_and_grad
    def value(query):
        return alignment_loss(module.apply({}, query, key, mutable=["alignment"])[1])

    before, gradient = value(query)
    assert value(query - 0.1 * gradient / np.linalg.norm(gradient))[0] < before


def test_without_mutable_collections_it_needs_no_parameters():
    module, _, query, key = setup("ct")
    assert module.apply({}, query, key) is None


def test_samples_without_tokens_are_left_out_of_the_mean():
    module, variables, query, key = setup("ct")
    sown = sow(module, variables, query, key, query_mask=lengths(N, 0, N), key_mask=None)
    per_sample = np.asarray(sown["alignment"]["divergence"][0])
    assert per_sample[1].tolist() == [0.0] * H
    np.testing.assert_allclose(
        alignment_loss(sown), np.mean(np.asarray(per_sample)[[0, 2]]), rtol=1e-6
    )
    sums = alignment_sums(sown, sample_mask=jnp.array([False, True, True]))
    assert sums.count.tolist() == [1.0]
    np.testing.assert_allclose(sums.total, [np.mean(per_sample[2])], rtol=1e-6)
    np.testing.assert_allclose(
        alignment_table(sown)[""], np.mean(np.asarray(per_sample)[[0, 2]], axis=0), rtol=1e-6
    )


def test_layers_without_samples_are_left_out_of_the_mean():
    sums = AlignmentSums(total=jnp.array([6.0, 0.0]), count=jnp.array([3.0, 0.0]))
    assert float(sums.mean()) == 2.0
    assert float(AlignmentSums(total=jnp.zeros(2), count=jnp.zeros(2)).mean()) == 0.0


def test_nan_in_padding_reaches_no_parameter():
    module, variables, query, key = setup("ct")
    mask = lengths(5, 3, 1)
    query = np.where(mask[..., None, None], query, np.nan)

    def loss(params):
        state = {"params": params}
        return alignment_loss(
            module.apply(state, query, key, query_mask=mask, mutable=["alignment"])[1]
        )

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"])):
        assert np.all(np.isfinite(leaf))


# Clouds of logits, and of features and navigation.
@pytest.mark.parametrize("method", thorough_but("gan", "ct"))
def test_over_heads_compares_the_heads_at_each_token(method):
    """With tokens and heads exchanged in the input, "heads" is "tokens" averaged over tokens, where
    all heads have the same networks."""
    module, variables, query, key = setup(method, keys=N, paper=True)
    swapped = [np.swapaxes(x, 1, 2) for x in (query, key)]
    tokens = sow(module, variables, *swapped)["alignment"]
    mask = lengths(5, 3, 1)
    poisoned = np.where(mask[..., None, None], query, np.nan)
    values = {}
    for over in ("tokens", "heads", "both"):
        other = Alignment(AlignmentConfig.paper(method, over=over))
        state = sow(other, variables, poisoned, key, query_mask=mask, key_mask=mask)
        values[over] = np.asarray(state["alignment"]["divergence"][0])
    per_token = np.asarray(tokens["divergence"][0])
    expected = [per_token[b, np.asarray(mask[b])].mean() for b in range(B)]
    close = {"rtol": 1e-4 if method == "ot" else 1e-5}
    np.testing.assert_allclose(values["heads"], np.tile(np.array(expected)[:, None], H), **close)
    np.testing.assert_allclose(values["both"], values["tokens"] + values["heads"], **close)


def test_over_heads_needs_as_many_queries_as_keys():
    with pytest.raises(ValueError, match="as many queries as keys, got 5 and 7"):
        setup("ct", over="heads")


@pytest.mark.parametrize("tokens", [0, 2])
@pytest.mark.parametrize("over", ["heads", "both"])
def test_over_heads_a_token_must_be_query_and_key(over, tokens):
    query, key = clouds(keys=N)
    query_mask, key_mask = (
        np.array([mask] * B, bool) for mask in ([1, 1, 1, 0, 0], [0, 1, 1, 1, 1])
    )
    module = Alignment(AlignmentConfig("mmd", over=over, tokens=tokens))

    def value(**masks):
        rngs = {"alignment": jax.random.key(3)}
        sown = sow(module, {}, query, key, **masks, rngs=rngs)
        return sown["alignment"]["divergence"][0], sown["alignment"]["valid"][0]

    both = query_mask & key_mask
    expected, _ = value(query_mask=both, key_mask=both)
    actual, valid = value(query_mask=query_mask, key_mask=key_mask)
    np.testing.assert_array_equal(actual, expected)
    assert valid.all()
    _, valid = value(query_mask=query_mask, key_mask=~query_mask)
    assert not valid.any()  # and so no 0 enters the mean


def test_normalized_navigator():
    module, variables, query, key = setup("ct", paper=True, normalize_navigator=True)
    sown = sow(module, variables, query, key)
    navigator, critic = networks.Navigator(10), networks.Critic(10)
    navigation, features = [], []
    for x in (query, key):
        y = np.asarray(jitted(navigator.apply, {"params": variables["params"]["navigator"]}, x))
        navigation.append(y / np.linalg.norm(y, axis=-1, keepdims=True))
        features.append(jitted(critic.apply, {"params": variables["params"]["critic"]}, x))
    expected = jitted(divergences.conditional_transport, *features, *navigation)
    np.testing.assert_allclose(sown["alignment"]["divergence"][0], expected, rtol=1e-5)


def test_clouds_are_measured_for_every_method():
    module, variables, query, key = setup("none")
    assert not variables
    state = sow(module, {}, query, key, mutable="alignment_clouds")
    per_sample = np.asarray(jitted(divergences.maximum_mean_discrepancy, query, key))
    np.testing.assert_allclose(jax.jit(cloud_mmd)(state)[""], per_sample.mean(0), rtol=1e-6)
    found = jax.jit(cloud_mmd)(state, sample_mask=np.array([True, False, True]))
    np.testing.assert_allclose(found[""], per_sample[[0, 2]].mean(0), rtol=1e-6)


def test_clouds_come_in_the_order_of_the_layers_and_of_the_calls():
    """As jax hands them out: sorted by the letters of their names."""

    def sown(number):
        query, mask = np.full((2, 3, 1, 4), float(number)), np.ones((2, 3), bool)
        cloud = {"query": query, "key": -query, "query_mask": mask, "key_mask": ~mask}
        return {"attention": {"alignment": {name: (x,) for name, x in cloud.items()}}}

    layers = {f"layer_{number}": sown(number) for number in range(11)}
    scanned = jax.tree.map(lambda *x: np.stack(x), sown(20), sown(21))
    state = jax.tree.map(jnp.asarray, {"alignment_clouds": {"stack": scanned, **layers}})
    assert list(state["alignment_clouds"])[1:3] == ["layer_1", "layer_10"]
    found = alignment_clouds(state)
    names = [f"layer_{number}/attention" for number in range(11)]
    assert list(found) == [*names, "stack/attention#0", "stack/attention#1"]
    numbers = [*range(11), 20, 21]
    assert [int(clouds.query[0, 0, 0, 0]) for clouds in found.values()] == numbers
    for clouds in found.values():
        np.testing.assert_array_equal(clouds.key, -clouds.query)
        assert clouds.query_mask.all()
        assert not clouds.key_mask.any()
    measured = []
    jax.eval_shape(lambda state: measured.extend(cloud_mmd(state)), state)
    assert measured == list(found)


def test_a_missing_collection_is_an_error():
    for variables in ({}, {"params": {}}, {"alignment": {}}, {"alignment": {"a": {}}}):
        with pytest.raises(ValueError, match=r"No 'alignment' collection.*mutable=\['alignment'\]"):
            alignment_loss(variables)
    with pytest.raises(ValueError, match="No 'alignment_clouds' collection"):
        cloud_mmd({})
    with pytest.raises(ValueError, match="No 'alignment_clouds' collection"):
        alignment_clouds({})


class Repeated(nn.Module):
    """An attention that is called twice, under a transformation or none."""

    lift: Callable = staticmethod(lambda cls: cls)

    @nn.compact
    def __call__(self, x):
        cls = self.lift(MultiHeadDotProductAttention)
        attention = cls(num_heads=2, alignment=AlignmentConfig("mmd"))
        return attention(attention(x))


class Scanned(nn.Module):
    """Two layers of one scan, each an attention that is computed again backwards."""

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return Repeated(nn.remat)(x), None

        axes = {"params": 0, "alignment": 0, "alignment_clouds": 0}
        scan = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=2)
        return scan()(x, None)[0]


@pytest.mark.fault(
    "The collection that the last step sowed is passed back in", "Refused, with what to do"
)
@pytest.mark.parametrize("collection", ["alignment", "alignment_clouds"])
@pytest.mark.parametrize(
    ("model", "calls"), [(Repeated(), 2), (Repeated(nn.remat), 2), (Scanned(), 4)]
)
def test_what_was_sown_before_is_never_counted(model, calls, collection):
    """Sowing appends. What a shared layer sowed in the same call it finds there rightly."""
    x = np.ones((2, 3, 4), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def apply(variables):
        return model.apply(variables, x, mutable=[collection])[1]

    shapes = jax.eval_shape(apply, variables)
    read = alignment_table if collection == "alignment" else alignment_clouds
    sown = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    assert len(read(sown)) == calls
    fed_back = {**variables, **sown}
    with pytest.raises(ValueError, match=f"an earlier call.*updates.pop..{collection}"):
        jax.eval_shape(apply, fed_back)
    assert jax.eval_shape(model.apply, fed_back, x).shape == x.shape  # read by nobody
    assert jax.eval_shape(apply, variables) == shapes


def test_a_sample_mask_of_the_wrong_shape_is_an_error():
    sown = sow(*setup("mmd"))
    with pytest.raises(ValueError, match=r"sample_mask must have shape \(3,\).* got \(4,\)"):
        alignment_loss(sown, jnp.ones(4, bool))


def test_strip_alignment_leaves_other_trees_of_that_name():
    params = {
        "alignment": {"kernel": 1},
        "layer": {"alignment": {"critic": {}, "navigator": {}}, "out": 2},
    }
    assert strip_alignment(params) == {"alignment": {"kernel": 1}, "layer": {"out": 2}}


class Both(NamedTuple):
    own: Any
    networks: Any


def test_networks_inside_other_trees_are_found():
    own, networks = {"query": 1}, {"layer": {"alignment": {"critic": {"kernel": 2}}}}
    expected = {"query": "model"}, {"layer": {"alignment": {"critic": {"kernel": "alignment"}}}}
    for tree in (own, networks), [own, networks], Both(own, networks):
        labels, stripped = label_parameters(tree), strip_alignment(tree)
        assert type(labels) is type(stripped) is type(tree)
        assert tuple(labels) == expected
        assert list(stripped) == [own, {"layer": {}}]
    assert label_parameters({"layers": [own | networks]}) == {"layers": [expected[0] | expected[1]]}


class TestTokens:
    """A sample of the tokens in place of all of them."""

    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 12, 3, 4)).astype(np.float32)
    key = query + rng.normal(size=query.shape).astype(np.float32)
    mask = np.arange(12) < np.array([[12], [5]])

    @staticmethod
    @functools.cache
    def initial(method):
        """What the networks start from."""
        module = Alignment(AlignmentConfig(method))
        return jax.jit(module.init)(jax.random.key(1), TestTokens.query, TestTokens.key)

    def divergence(self, method, tokens, stream="alignment", seed=0, masked=True):
        module = Alignment(AlignmentConfig(method, tokens=tokens))
        mask = self.mask if masked else None
        rngs = {stream: jax.random.key(seed)} if stream else None
        sown = sow(
            module, self.initial(method), self.query, self.key,
            query_mask=mask, key_mask=mask, rngs=rngs,
        )  # fmt: skip
        return np.asarray(sown["alignment"]["divergence"][0])

    @pytest.mark.parametrize("method", thorough_but("ct", "mmd"))
    def test_padding_is_drawn_last(self, method):
        """As many as there are, in another order."""
        whole, sampled = (self.divergence(method, tokens) for tokens in (0, 5))
        np.testing.assert_allclose(sampled[1], whole[1], rtol=1e-4)
        assert np.abs(sampled[0] - whole[0]).min() > 1e-4

    @pytest.mark.parametrize("stream", ["alignment", "dropout"])
    def test_draws_anew_and_needs_a_stream(self, stream):
        draws = [self.divergence("mmd", 4, stream, seed) for seed in (0, 0, 1)]
        np.testing.assert_array_equal(draws[0], draws[1])
        assert (draws[0][0] != draws[2][0]).all()
        whole = self.divergence("mmd", 0)
        np.testing.assert_array_equal(self.divergence("mmd", 4, stream=None), whole)
        np.testing.assert_array_equal(self.divergence("mmd", 12), whole)

    @pytest.mark.parametrize(("method", "biased"), [("gan", False), ("ct", True), ("mmd", True)])
    def test_the_mean_over_draws_is_that_of_all_tokens_for_gan_alone(self, method, biased):
        whole = self.divergence(method, 0, masked=False).mean()
        module = Alignment(AlignmentConfig(method, tokens=4))

        def draw(rng):
            _, sown = module.apply(
                self.initial(method), self.query, self.key,
                rngs={"alignment": rng}, mutable=["alignment"],
            )  # fmt: skip
            return sown["alignment"]["divergence"][0].mean()

        draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 100))
        error = np.std(draws) / np.sqrt(len(draws))
        assert (abs(np.mean(draws) - whole) > 4 * error) == biased


class TestSubsample:
    """Some of the samples in place of all of them: one of each group of neighbours."""

    rng = np.random.default_rng(0)
    query = rng.normal(size=(8, 6, 3, 4)).astype(np.float32)
    key = query * rng.uniform(0.5, 2.0, size=(8, 1, 1, 1)) + rng.normal(size=query.shape)
    key = key.astype(np.float32)
    mask = np.arange(6) < np.array([6, 6, 4, 6, 5, 6, 0, 6])[:, None]

    def sown(self, method, subsample, seed=0, count=8, stream="alignment", **options):
        module = Alignment(AlignmentConfig(method, subsample=subsample, **options))
        query, key, mask = self.query[:count], self.key[:count], self.mask[:count]
        rngs = {stream: jax.random.key(seed)} if stream else None
        variables = random_variables(Alignment(AlignmentConfig(method)), query, key)
        sown = sow(
            module, variables, query, key, query_mask=mask, key_mask=mask, rngs=rngs
        )["alignment"]  # fmt: skip
        return {name: np.asarray(value[0]) for name, value in sown.items()}

    @pytest.mark.parametrize("method", thorough_but("ct"))
    def test_the_drawn_count_for_their_groups(self, method):
        whole, sampled = (self.sown(method, subsample) for subsample in (1, 4))
        drawn = (sampled["divergence"] != 0).all(axis=1)
        assert drawn.reshape(2, 4).sum(axis=1).tolist() == [1, 1]
        assert self.mask.any(axis=1)[drawn].all()  # the empty one is never drawn
        np.testing.assert_array_equal(sampled["valid"], self.mask.any(axis=1))
        values = np.array([[4.0], [3.0]]) * whole["divergence"][drawn]
        np.testing.assert_allclose(sampled["divergence"][drawn], values, rtol=1e-4, atol=1e-6)
        assert (sampled["divergence"][~drawn] == 0).all()

    def test_the_report_of_a_solver_is_that_of_the_drawn(self):
        whole, sampled = (self.sown("ot", subsample, count=4) for subsample in (1, 4))
        (drawn,) = np.flatnonzero(sampled["divergence"][:, 0])
        for name in ("sinkhorn_residual", "sinkhorn_unconverged", "sinkhorn_iterations"):
            assert sampled[name].shape == (4, 3)
            assert np.isclose(sampled[name], sampled[name][:1]).all()
        np.testing.assert_allclose(  # a plan alone may stop sooner than among others
            sampled["sinkhorn_unconverged"][0], whole["sinkhorn_unconverged"][drawn]
        )

    @pytest.mark.parametrize(
        ("count", "subsample", "groups"),
        [(8, 2, 4), (6, 4, 2), (5, 4, 5), (7, 8, 1), (8, 10**9, 1)],
    )
    def test_a_batch_is_cut_into_the_largest_groups_that_it_can(self, count, subsample, groups):
        query, key = self.query[:count], self.key[:count]
        module = Alignment(AlignmentConfig("energy", subsample=subsample))
        value = sow(module, {}, query, key, rngs={"alignment": jax.random.key(0)})["alignment"]
        drawn = np.asarray(value["divergence"][0] > 0).all(axis=1).reshape(groups, -1)
        assert (drawn.sum(axis=1) == 1).all()

    @pytest.mark.parametrize("stream", ["alignment", "dropout"])
    def test_the_mean_over_draws_is_that_of_all_samples(self, stream):
        """Whatever samples are empty, and whatever `sample_mask` leaves out."""
        module, counted = Alignment(AlignmentConfig("energy", subsample=4)), np.arange(8) != 3
        masks = {"query_mask": self.mask, "key_mask": self.mask}

        def draw(rng):
            _, sown = module.apply(
                {}, self.query, self.key, **masks, rngs={stream: rng}, mutable=["alignment"]
            )
            return alignment_loss(sown), alignment_loss(sown, counted), sown["alignment"]

        rngs = jax.random.split(jax.random.key(0), 1000)
        *losses, sown = jax.jit(jax.vmap(draw))(rngs)
        whole = {name: (x,) for name, x in self.sown("energy", 4, stream=None).items()}
        assert np.count_nonzero(whole["divergence"][0][:, 0]) == 7  # without a stream: all
        for found, mask in zip(losses, (None, counted), strict=True):
            error = np.std(found) / np.sqrt(len(found))
            assert abs(np.mean(found) - alignment_loss({"alignment": whole}, mask)) < 4 * error
        often = np.count_nonzero(sown["divergence"][0][..., 0], axis=0)
        expected = np.array([250, 250, 250, 250, 333, 333, 0, 333])
        assert (np.abs(often - expected) < 60).all()

    def test_nan_of_a_sample_that_does_not_count_stays_there(self):
        query = self.query.copy()
        query[1] = np.nan
        module, counted = Alignment(AlignmentConfig("energy", subsample=2)), np.arange(8) != 1

        def draw(rng):
            rngs = {"alignment": rng}
            _, sown = module.apply({}, query, self.key, rngs=rngs, mutable=["alignment"])
            return alignment_loss(sown, counted), sown["alignment"]["divergence"][0][1]

        losses, values = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 20))
        assert np.isnan(values).any()  # it was drawn
        assert np.isfinite(losses).all()

    def test_gradients_reach_the_drawn_alone(self):
        """As many times theirs as they stand for, of as many tokens as are drawn."""
        rngs = {"alignment": jax.random.key(3)}

        @functools.partial(jax.jit, static_argnums=1)
        def slope(query, tokens, rngs):
            def loss(query):
                module = Alignment(AlignmentConfig("energy", subsample=4, tokens=tokens))
                _, sown = module.apply({}, query, self.key, rngs=rngs, mutable=["alignment"])
                return alignment_loss(sown), sown["alignment"]["divergence"][0][:, 0] != 0

            return jax.grad(loss, has_aux=True)(query)

        found, drawn = slope(self.query, 4, rngs)
        assert not drawn[::4].any()  # no group's first
        tokens = (np.abs(found) > 0).all(axis=(2, 3)).sum(axis=1)
        np.testing.assert_array_equal(tokens, np.where(drawn, 4, 0))
        (found, drawn), (whole, _) = slope(self.query, 0, rngs), slope(self.query, 0, None)
        expected = np.where(drawn[:, None, None, None], 4 * whole, 0.0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.thorough
    def test_every_kind_of_model_draws(self):
        config = AlignmentConfig("energy", subsample=4)
        query, key = jnp.asarray(self.query), jnp.asarray(self.key)
        rng = jax.random.key(0)
        sown = [
            aligned_function(lambda _, q, k: nn.dot_product_attention(q, k, k), config).apply(
                {}, {}, query, key, rng=rng
            )[1],
            aligned(DotProduct(), config).apply(
                {}, query, key, mutable=["alignment"], rngs={"alignment": rng}
            )[1],
            aligned(NNXDotProduct(), config, query, key).measure(query, key)[1],
        ]  # fmt: skip
        for one in sown:
            (value,) = (
                x
                for path, x in jax.tree.leaves_with_path(one)
                if "divergence" in jax.tree_util.keystr(path)
            )
            assert (np.count_nonzero(np.asarray(value).reshape(-1, 4), axis=1) == 1).all()


class DotProduct(nn.Module):
    @nn.compact
    def __call__(self, query, key):
        return nn.dot_product_attention(query, key, key)


class NNXDotProduct(nnx.Module):
    def __call__(self, query, key):
        return nnx.dot_product_attention(query, key, key)


def test_layers_select_by_path():
    config = AlignmentConfig(layers=["layer_(0|11)/"])
    assert config.selects(("encoder", "layer_0", "attention"))
    assert config.selects(("encoder", "layer_11"))
    assert not config.selects(("encoder", "layer_1", "attention"))
    assert AlignmentConfig().selects(())
    hash(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cta"}, "method must be one of .* got 'cta'. Did you mean 'ct'"),
        ({"cost": "cosin"}, "cost must be one of .* got 'cosin'"),
        ({"implementation": "block"}, "implementation must be one of .* Did you mean 'blockwise'"),
        ({"implementation": "fused"}, "one of auto, dense, blockwise, got 'fused'"),
        ({"over": "token"}, "Did you mean 'tokens'"),
        ({"discriminator": "hiway"}, "Did you mean 'highway'"),
        ({"rho": 1.5}, r"rho must lie in \[0, 1\], got 1.5"),
        ({"epsilon": 0.0}, "epsilon must be above 0 and finite, got 0.0"),
        ({"epsilon": float("inf")}, "epsilon must be above 0 and finite, got inf"),
        ({"epsilon": "0.1"}, "epsilon must be above 0 and finite, got '0.1'"),
        (
            {"sinkhorn_threshold": 1e39},
            r"sinkhorn_threshold must be above 0 and finite, got 1e\+39",
        ),
        ({"bandwidth": -1.0}, "bandwidth must be at least 0 and finite, got -1.0"),
        (
            {"gradient_penalty": float("inf")},
            "gradient_penalty must be at least 0 and finite, got inf",
        ),
        ({"constant_feature": float("nan")}, "constant_feature must be at least 0 .* got nan"),
        ({"shared_networks": "False"}, "shared_networks must be True or False, got 'False'"),
        (
            {"method": "ct", "cost": "squared_euclidean"},
            "'ct' learns the features .* Use cost='cosine', or method 'ot'",
        ),
        ({"features": 0}, "features must be a whole number of at least 1, got 0"),
        ({"hidden_features": 2.5}, "hidden_features must be a whole number"),
        ({"subsample": 0}, "subsample must be a whole number of at least 1, got 0"),
        ({"tokens": -1}, "tokens must be a whole number of at least 0, got -1"),
        ({"layers": "layer_0"}, "layers must be a tuple of regular expressions, got 'layer_0'"),
        ({"layers": 5}, "layers must be a tuple of regular expressions, got 5"),
        ({"layers": ("(",)}, r"layers holds '\(', no regular expression"),
    ],
)
def test_bad_configurations_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AlignmentConfig(**options)


def test_bad_shapes_are_named_as_they_were_given():
    with pytest.raises(ValueError, match=r"query must have shape \[..., N, H, D\], got \(5, 8\)"):
        Alignment(AlignmentConfig("mmd")).init(
            jax.random.key(0), jnp.ones((5, 8)), jnp.ones((5, 8))
        )
    query, key = clouds()
    with pytest.raises(TypeError, match="key_mask must be a bool array .*got list"):
        divergences.maximum_mean_discrepancy(query, key, key_mask=[True])


def test_over_heads_minds_no_attention_that_is_left_out():
    """Neither as many queries as keys, nor the clouds' masks, depend on what is not aligned."""
    query, key = clouds()
    config = AlignmentConfig("ct", over="heads", layers=("elsewhere",))
    variables = Alignment(config).init(jax.random.key(0), query, key)
    assert not variables
    query, key = clouds(keys=N)
    masks = {"query_mask": lengths(5, 3, 1), "key_mask": None}
    for config in (AlignmentConfig("none"), AlignmentConfig("ct", over="heads")):
        sown = sow(Alignment(config), {}, query, key, **masks, mutable="alignment_clouds")
        seen = sown["alignment_clouds"]
        np.testing.assert_array_equal(seen["query_mask"][0], masks["query_mask"])
        assert seen["key_mask"][0].all()


@pytest.mark.parametrize("method", ["gan", "ct"])
def test_networks_of_bfloat16_measure_almost_the_same(method):
    module, variables, query, key = setup(method)
    values = [
        alignment_loss(sow(Alignment(module.config, dtype=dtype), variables, query, key))
        for dtype in (None, jnp.bfloat16)
    ]
    assert values[1].dtype == jnp.float32
    np.testing.assert_allclose(values[1], values[0], rtol=0.02)


def test_the_control_is_the_mean_squared_logit_of_the_tokens_that_take_part():
    module, variables, query, key = setup("logits")
    valid, taken = lengths(5, 3, 1), np.arange(M)[None] < np.array([7, 2, 4])[:, None]
    sown = sow(module, variables, query, key, query_mask=valid, key_mask=taken)
    logits = np.einsum("bnhd,bmhd->bhnm", query, key, dtype=np.float64) / np.sqrt(D)
    pairs = np.broadcast_to((valid[:, :, None] & taken[:, None])[:, None], logits.shape)
    expected = np.mean(np.square(logits), axis=(2, 3), where=pairs)
    np.testing.assert_allclose(sown["alignment"]["divergence"][0], expected, rtol=1e-5)
