"""The graph attention network: against a dense reference, its invariances, and its alignment."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from align_jax import AlignmentConfig, alignment_loss, alignment_table, strip_alignment
from align_jax.models.gat import GAT, GATConfig
from align_jax.models.graph import SparseFeatures
from tests.models.parameters import inference_program, initial_program, random_parameters

NODES, FEATURES, CLASSES = 7, 5, 3
CONFIG = GATConfig(num_classes=CLASSES, hidden_features=4, num_heads=2)


def graph():
    """Features, senders and receivers; node 6 is isolated but for its self-loop."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(NODES, FEATURES)) * (rng.random((NODES, FEATURES)) < 0.7)
    adjacency = rng.random((NODES, NODES)) < 0.4
    adjacency[6], adjacency[:, 6] = False, False
    adjacency |= np.eye(NODES, dtype=bool)
    receivers, senders = np.nonzero(adjacency)
    return features.astype(np.float32), senders.astype(np.int32), receivers.astype(np.int32)


@functools.cache
def initialise(config):
    model = GAT(config)
    return model, random_parameters(model, *graph(), scale=0.5)


@functools.cache
def program(config, **options):
    """What a model computes, compiled once for all tests: to compile takes the most time."""
    return jax.jit(functools.partial(GAT(config).apply, **options))


def outputs(config, *inputs, **options):
    """With the parameters of `initialise`."""
    return program(config, **options)({"params": initialise(config)[1]}, *inputs)


def leaky_relu(x):
    return np.where(x > 0, x, 0.2 * x)


def reference(params, config):
    """The network with dense [N, N] attention, in float64."""
    features, senders, receivers = graph()
    edges = np.zeros((NODES, NODES), bool)
    edges[receivers, senders] = True
    hidden = features.astype(np.float64)
    for layer in range(config.num_layers):
        p = {name: np.asarray(x, np.float64) for name, x in params[f"layer_{layer}"].items()}
        outputs = []
        for head in range(p["kernel"].shape[1]):
            key = hidden @ p["kernel"][:, head]
            if config.score == "gat":
                query_term = key @ p["attention_query"][head, :, 0]
                key_term = key @ p["attention_key"][head, :, 0]
                logits = leaky_relu(query_term[:, None] + key_term[None, :])
            else:
                query = hidden @ p["query_kernel"][:, head]
                logits = leaky_relu(query[:, None] + key[None, :]) @ p["attention"][head, :, 0]
            logits = np.where(edges, logits, -np.inf)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            outputs.append(weights / weights.sum(1, keepdims=True) @ key)
        if layer < config.num_layers - 1:
            hidden = np.concatenate(outputs, axis=1) + p["bias"]
            hidden = np.where(hidden > 0, hidden, np.expm1(hidden))
        else:
            hidden = np.mean(outputs, axis=0) + p["bias"]
    return hidden


@pytest.mark.parametrize("score", ["gat", "gatv2"])
@pytest.mark.parametrize(("layers", "output_heads"), [(1, 1), (3, 2)])
def test_equals_a_dense_reference(score, layers, output_heads):
    config = dataclasses.replace(
        CONFIG, score=score, num_layers=layers, num_output_heads=output_heads
    )
    _, params = initialise(config)
    logits = outputs(config, *graph())
    np.testing.assert_allclose(logits, reference(params, config), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("score", ["gat", "gatv2"])
def test_sparse_features_give_the_logits_of_dense_ones(score):
    config = dataclasses.replace(CONFIG, score=score)
    features, *edges = graph()
    np.testing.assert_allclose(
        outputs(config, SparseFeatures.from_dense(features), *edges),
        outputs(config, features, *edges),
        rtol=1e-5,
        atol=1e-5,
    )


def test_sparse_and_dense_features_start_from_the_same_parameters():
    features, *edges = graph()
    init = jax.jit(functools.partial(GAT(CONFIG).init, mutable=["params"]))
    dense = init(jax.random.key(0), features, *edges)
    sparse = init(jax.random.key(0), SparseFeatures.from_dense(features), *edges)
    jax.tree.map(np.testing.assert_array_equal, dense, sparse)


def test_renumbering_the_nodes_renumbers_the_logits():
    features, senders, receivers = graph()
    new = np.random.default_rng(3).permutation(NODES)
    order = np.argsort(new[receivers], kind="stable")
    moved = outputs(CONFIG, features[np.argsort(new)], new[senders][order], new[receivers][order])
    logits = outputs(CONFIG, features, senders, receivers)
    np.testing.assert_allclose(moved[new], logits, rtol=1e-4, atol=1e-5)


def test_a_node_without_any_edge_gets_the_bias_and_finite_gradients():
    config = dataclasses.replace(CONFIG, num_layers=1)
    model, params = initialise(config)
    features, senders, receivers = graph()
    kept = receivers != 6

    def loss(params):
        logits = model.apply({"params": params}, features, senders[kept], receivers[kept])
        return jnp.sum(logits**2), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits[6], params["layer_0"]["bias"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


class TestDropout:
    def config(self, **rates):
        rates = {"input_dropout": 0.0, "attention_dropout": 0.0, "message_dropout": 0.0} | rates
        return dataclasses.replace(CONFIG, num_layers=1, **rates)

    @pytest.mark.parametrize(
        ("rate", "sparse"),
        [("input_dropout", False), ("input_dropout", True),
         ("attention_dropout", False), ("message_dropout", False)],
    )  # fmt: skip
    def test_each_is_random_and_unbiased_in_one_layer(self, rate, sparse):
        features, *edges = graph()
        if sparse:
            features = SparseFeatures.from_dense(features)
        if rate == "input_dropout":
            # A single edge per node, so that the weights are 1 and the layer is linear.
            edges = [np.arange(NODES, dtype=np.int32)] * 2
        config = self.config(**{rate: 0.6})
        model, params = initialise(config)

        def draw(key):
            rngs = {"dropout": key}
            return model.apply({"params": params}, features, *edges, deterministic=False, rngs=rngs)

        draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000)))
        clean = outputs(config, features, *edges)
        assert draws.std(0).max() > 0.1
        error = draws.std(0) / np.sqrt(len(draws))
        np.testing.assert_array_less(np.abs(draws.mean(0) - clean), 5 * error + 1e-5)

    def test_equal_keys_give_equal_outputs(self):
        config = self.config(input_dropout=0.5)
        apply = functools.partial(program(config, deterministic=False), *self.arguments(config))
        first, second, third = (apply(rngs={"dropout": jax.random.key(k)}) for k in (0, 0, 1))
        np.testing.assert_array_equal(first, second)
        assert np.abs(first - third).max() > 0.01

    def arguments(self, config):
        return {"params": initialise(config)[1]}, *graph()

    def test_off_by_default(self):
        """Without a key, which dropout would need."""
        np.testing.assert_array_equal(*(outputs(CONFIG, *graph()) for _ in "12"))


class TestAlignment:
    def config(self, method, over="nodes", **options):
        alignment = AlignmentConfig(method=method, **options)
        return dataclasses.replace(CONFIG, alignment=alignment, alignment_over=over)

    def sown(self, config, params=None):
        if params is None:
            _, params = initialise(config)
        apply = program(config, deterministic=False, mutable=("alignment",))
        return apply({"params": params}, *graph(), rngs={"dropout": jax.random.key(1)})

    @pytest.mark.parametrize(("method", "over"), [("gan", "nodes"), ("ct", "edges")])
    def test_starts_from_the_plain_models_parameters(self, method, over):
        aligned, params = initialise(self.config(method, over))
        assert "alignment" in params["layer_0"]
        assert initial_program(aligned, *graph()) == initial_program(GAT(CONFIG), *graph())

    @pytest.mark.parametrize(
        ("method", "over"),
        [
            ("gan", "nodes"),
            ("ct", "edges"),
            # The nodes' clouds, as of "gan".
            *(pytest.param(x, "nodes", marks=pytest.mark.thorough) for x in ("ct", "ot", "mmd")),
        ],
    )
    def test_adds_a_divergence_per_layer_and_head_and_changes_nothing_else(self, method, over):
        config = self.config(method, over)
        model, aligned = initialise(config)
        plain = strip_alignment(aligned)
        logits, collections = self.sown(config, aligned)
        table = alignment_table(collections)
        assert [np.shape(heads) for heads in table.values()] == [(2,), (1,)]
        assert np.isfinite(alignment_loss(collections))

        expected, nothing = self.sown(CONFIG, plain)
        assert not nothing
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        # At inference the networks' parameters are not needed.
        infer = [inference_program(x, plain, *graph()) for x in (model, GAT(CONFIG))]
        assert infer[0] == infer[1]

    @pytest.mark.parametrize(
        ("method", "over"),
        [
            ("gan", "nodes"),
            ("ct", "edges"),
            pytest.param("ct", "nodes", marks=pytest.mark.thorough),  # both are tried already
        ],
    )
    def test_a_small_step_moves_every_group_in_its_direction(self, method, over):
        """In the paper's form, whose adversary has no penalty, the critic or discriminator
        maximises; the projections and the navigator minimise."""
        config = dataclasses.replace(
            self.config(method, over), alignment=AlignmentConfig.paper(method), num_layers=1
        )
        model, params = initialise(config)

        @jax.jit
        @jax.value_and_grad
        def divergence(params):
            _, collections = model.apply({"params": params}, *graph(), mutable=["alignment"])
            return alignment_loss(collections)

        before, gradients = divergence(params)

        def change_along(*group):
            """By a step of one length, so that a small gradient does not drown in rounding."""

            def belongs(path):
                return path[: len(group)] == group or (len(group) == 1 and group[0] in path)

            flat, slopes = map(traverse_util.flatten_dict, (params, gradients))
            length = np.sqrt(sum(np.sum(g**2) for path, g in slopes.items() if belongs(path)))
            moved = {
                path: x - 1e-2 * slopes[path] / length if belongs(path) else x
                for path, x in flat.items()
            }
            return divergence(traverse_util.unflatten_dict(moved))[0] - before

        assert change_along("discriminator" if method == "gan" else "critic") > 0
        for minimiser in ("kernel", "attention_query", "attention_key"):
            assert change_along("layer_0", minimiser) < 0
        if method == "ct":
            assert change_along("navigator") < 0

    @pytest.mark.parametrize(("method", "over"), [("ct", "edges"), ("gan", "nodes")])
    def test_auto_takes_the_edges_where_it_can(self, method, over):
        expected, found, other = (
            str(jax.make_jaxpr(lambda choice=choice: self.sown(self.config(method, choice)))())
            for choice in (over, "auto", "nodes")
        )
        assert found == expected
        assert (found == other) is (over == "nodes")
        assert self.config("ct", "auto", tokens=3).along_edges

    @pytest.mark.parametrize("over", ["nodes", "edges"])
    def test_layers_selects_by_the_module_path(self, over):
        config = self.config("ct", over, layers=("layer_1",))
        _, collections = jax.eval_shape(lambda: self.sown(config))
        assert list(jax.eval_shape(alignment_table, collections)) == ["layer_1"]
        _, params = initialise(config)
        assert "alignment" not in params["layer_0"]

    def test_a_sample_as_large_as_the_graph_is_the_whole_and_a_smaller_one_is_random(self):
        config = dataclasses.replace(
            self.config("mmd"),
            input_dropout=0.0,
            attention_dropout=0.0,
            message_dropout=0.0,
            num_layers=1,
        )

        def value(sample, key):
            sampled = dataclasses.replace(config, alignment=AlignmentConfig("mmd", tokens=sample))
            apply = program(sampled, deterministic=False, mutable=("alignment",))
            rngs = {"dropout": jax.random.key(key)}
            _, collections = apply({"params": initialise(config)[1]}, *graph(), rngs=rngs)
            return alignment_loss(collections)

        assert value(NODES, 0) == value(0, 0) == value(0, 1)
        assert value(3, 0) != value(3, 1)

    @pytest.mark.parametrize("score", ["gat", "gatv2"])
    def test_what_is_aligned_is_the_two_sides_of_the_score(self, score):
        config = dataclasses.replace(CONFIG, score=score, num_layers=1)
        _, params = initialise(config)
        features, *edges = graph()
        _, collections = outputs(
            config, features, *edges, mutable=("alignment_clouds", "intermediates")
        )
        clouds = collections["alignment_clouds"]["layer_0"]["alignment"]
        query, key = (np.asarray(clouds[name][0])[0] for name in ("query", "key"))
        senders, receivers = edges
        if score == "gat":
            logits = leaky_relu(query.sum(-1)[receivers] + key.sum(-1)[senders])
        else:
            vector = params["layer_0"]["attention"][..., 0]
            logits = (leaky_relu(query[receivers] + key[senders]) * vector).sum(-1)
        weights = np.exp(logits)
        sums = np.zeros((NODES, weights.shape[1]))
        np.add.at(sums, receivers, weights)
        weights = weights / sums[receivers]
        sown = collections["intermediates"]["layer_0"]["attention_weights"][0]
        np.testing.assert_allclose(sown, weights, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_layers": 1.5}, "num_layers is 1.5"),
        ({"num_classes": True}, "num_classes is True"),
        ({"input_dropout": 1.0}, "input_dropout is 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"score": "gatv3"}, "Did you mean 'gatv2'"),
        ({"alignment_over": "edge"}, "Did you mean 'edges'"),
        ({"alignment_over": "edges", "alignment": AlignmentConfig(method="gan")}, "works with.*ct"),
    ],
)
def test_a_bad_configuration_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_arguments_of_wrong_shape_are_errors():
    features, senders, receivers = graph()
    model = GAT(CONFIG)
    with pytest.raises(ValueError, match=r"features of shape \(7,\)"):
        model.init(jax.random.key(0), features[:, 0], senders, receivers)
    with pytest.raises(ValueError, match="one entry per edge"):
        model.init(jax.random.key(0), features, senders[1:], receivers)


def test_equals_pytorch_geometric():
    torch = pytest.importorskip("torch")
    convolutions = pytest.importorskip("torch_geometric.nn")
    features, senders, receivers = graph()
    for score, name in (("gat", "GATConv"), ("gatv2", "GATv2Conv")):
        config = dataclasses.replace(CONFIG, num_layers=1, num_output_heads=3, score=score)
        _, params = initialise(config)
        p = {name: np.asarray(x) for name, x in params["layer_0"].items()}
        layer = getattr(convolutions, name)(
            FEATURES, CLASSES, heads=3, concat=False, add_self_loops=False
        )
        flat = {key: torch.tensor(p[key].reshape(FEATURES, -1).T) for key in p if "kernel" in key}
        vector = {key: torch.tensor(p[key][None, ..., 0]) for key in p if "attention" in key}
        state = layer.state_dict() | {"bias": torch.tensor(p["bias"])}
        if score == "gat":
            state |= {"lin.weight": flat["kernel"], "att_src": vector["attention_key"],
                      "att_dst": vector["attention_query"]}  # fmt: skip
        else:
            state |= {"lin_l.weight": flat["kernel"], "lin_r.weight": flat["query_kernel"],
                      "att": vector["attention"]}  # fmt: skip
            state |= {key: torch.zeros_like(state[key]) for key in ("lin_l.bias", "lin_r.bias")}
        layer.load_state_dict(state)
        edges = torch.tensor(np.stack([senders, receivers]).astype(np.int64))
        expected = layer(torch.tensor(features), edges).detach().numpy()
        logits = outputs(config, features, senders, receivers)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
