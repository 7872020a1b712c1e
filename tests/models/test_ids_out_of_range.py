"""Ids that have no embedding, edges of nodes that do not exist: PyTorch raises, and so do we."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.divergences.edge_conditional_transport import edge_conditional_transport
from align_jax.models import (
    GAT,
    MCAN,
    AlbertConfig,
    AlbertEncoder,
    BertConfig,
    BertEncoder,
    GATConfig,
    MCANConfig,
)
from align_jax.models.embedding import Embed
from align_jax.models.graph import SparseFeatures
from align_jax.segments import segment_softmax

SIZES = {"vocab_size": 9, "hidden_size": 8, "layers": 1, "heads": 2, "mlp_size": 8}
ENCODERS = {
    "bert": BertEncoder(BertConfig(**SIZES), pooler=False),
    "albert": AlbertEncoder(AlbertConfig(**SIZES, embedding_size=4), pooler=False),
    "roberta": BertEncoder(
        BertConfig(**SIZES, family="roberta", pad_token_id=1, token_types=1), pooler=False
    ),
}
IDS, MASK, TYPES = np.array([[2, 8, 3]]), np.array([[1, 1, 0]]), np.array([[0, 0, 0]])


def applied(model, *inputs):
    """Its shapes alone; the inputs are numbers and no tracers."""
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), *inputs)[0])


@pytest.mark.fault(
    "Ids without an embedding, invalid masks, edges of nodes that do not exist, in any model",
    "Refused by name and place; under `jit` ids give NaN",
)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoders_refuse_ids_without_an_embedding(encoder):
    model = ENCODERS[encoder]
    types = model.config.token_types
    assert applied(model, IDS, MASK, TYPES)[0].shape == (1, 3, 8)
    assert applied(model, IDS, MASK > 0, TYPES)[0].shape == (1, 3, 8)
    for inputs, error, message in (
        (
            (IDS - 3, MASK, TYPES),
            ValueError,
            r"input_ids hold -1 at \[0, 0\].*9 embeddings, 0 to 8",
        ),
        ((IDS + 1, MASK, TYPES), ValueError, r"input_ids hold 9 at \[0, 1\].*vocab_size"),
        ((IDS, MASK, TYPES - 1), ValueError, r"token_type_ids hold -1 at \[0, 0\]"),
        (
            (IDS, MASK, TYPES + types),
            ValueError,
            rf"{types} types, 0 to .*leave token_type_ids out",
        ),
        ((IDS, -1e4 * (1 - MASK), TYPES), ValueError, "attention_mask holds -10000.0; expected 1"),
        ((IDS / 2, MASK, TYPES), TypeError, "input_ids must be integers, got float32"),
        ((IDS[:, :0],), ValueError, r"N above 0, got shape \(1, 0\)"),
    ):
        with pytest.raises(error, match=message):
            applied(model, *inputs)


def test_a_mask_that_is_known_while_a_function_is_traced_is_shown():
    model, mask = ENCODERS["bert"], jnp.asarray(-5 * MASK)
    with pytest.raises(ValueError, match="attention_mask holds -5; expected 1"):
        jax.jit(lambda ids: model.init(jax.random.key(0), ids, mask))(IDS)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_traced_id_without_an_embedding_gives_nan(rows):
    """Also with one row alone, which flax gives for any id, and counted from the end."""
    ids = jnp.array([0, rows - 1, rows, -1, -rows])
    found, _ = jax.jit(Embed(rows, 2).init_with_output)(jax.random.key(0), ids)
    assert np.isnan(found).all(axis=1).tolist() == [False, False, True, True, True]


def test_mcan_refuses_words_without_an_embedding():
    model = MCAN(MCANConfig(9, 3, 5, hidden_size=8, layers=1, heads=2, mlp_size=8))
    regions = np.ones((1, 4, 5), np.float32)
    for bad in (-1, 9):
        with pytest.raises(ValueError, match=rf"question hold {bad} at \[0, 1\].*9 words, 0 to 8"):
            applied(model, np.array([[1, bad, 0]]), regions)
    for words, regions in ((0, 4), (3, 0)):
        with pytest.raises(ValueError, match=r"above 0, got shape \(1, 0"):
            applied(model, np.ones((1, words), int), np.ones((1, regions, 5), np.float32))


def test_graphs_refuse_edges_of_nodes_that_do_not_exist():
    features = np.ones((3, 2), np.float32)
    model = GAT(GATConfig(num_classes=2, num_layers=1))
    sparse = SparseFeatures.from_dense(features)
    clouds = [np.ones((3, 1, 2), np.float32)] * 4
    logits = np.ones((2, 1), np.float32)
    calls = {
        "gat": lambda *edges: applied(model, features, *edges),
        "sparse": lambda *edges: applied(model, sparse, *edges),
        "transport": lambda *edges: jax.eval_shape(
            lambda: edge_conditional_transport(*clouds, *edges)
        ),
        "softmax": lambda _, receivers: jax.eval_shape(
            lambda: segment_softmax(logits, receivers, 3, indices_are_sorted=True)
        ),
    }
    for name, call in calls.items():
        call(np.array([0, 1]), np.array([0, 2]))
        for bad in (-1, 3):
            with pytest.raises(ValueError, match=rf"hold {bad} at \[1\].*3 nodes"):
                call(np.array([0, 1]), np.array([0, bad]))
            if name != "softmax":
                with pytest.raises(ValueError, match=rf"senders hold {bad} at \[0\].*3 nodes"):
                    call(np.array([bad, 1]), np.array([0, 2]))
        with pytest.raises(ValueError, match="not sorted: entry 1 is 0, after 2"):
            call(np.array([0, 1]), np.array([2, 0]))
    with pytest.raises(ValueError, match="columns that hold 2; expected 0 to 1"):
        applied(model, sparse.replace(columns=sparse.columns + 1), *np.array([[0, 1], [0, 2]]))
