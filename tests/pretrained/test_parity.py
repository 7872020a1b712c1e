"""Against PyTorch: hidden states, logits and gradients, on real and on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from align_jax import pretrained
from align_jax.models.heads import text_encoder
from align_jax.pretrained.convert import canonical_name, to_tensors
from tests.cases import kinds_and_heads, thorough
from tests.pretrained import checkpoints

torch = pytest.importorskip("torch", reason="parity is measured against PyTorch")
transformers = pytest.importorskip("transformers", reason="parity is measured against it")

BASE = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "initializer_range": 0.02,
}  # fmt: skip
BASES = {
    "bert": {**BASE, "vocab_size": 30522, "max_position_embeddings": 512},
    "roberta": {**BASE, "vocab_size": 50265, "max_position_embeddings": 514},
    "albert": {
        **BASE, "vocab_size": 30000, "max_position_embeddings": 512, "embedding_size": 128,
        "num_hidden_groups": 1, "inner_group_num": 1,
    },
}  # fmt: skip


def random_batch(config, shape=(4, 23), seed=0):
    """Tokens with padding at the end, and a second segment."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, shape[-1] + 1, shape[:-1])
    lengths.flat[0] = shape[-1]
    mask = np.arange(shape[-1]) < lengths[..., None]
    # Neither 0 nor 1: the padding token must be nowhere but in the padding.
    ids = np.where(mask, rng.integers(2, config.vocab_size, shape), config.pad_token_id)
    second = (np.arange(shape[-1]) >= lengths[..., None] // 2) & mask
    types = second * (config.token_types > 1)
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: x.astype(np.int32) for name, x in arrays.items()}


def to_torch(batch):
    return {name: torch.tensor(x).long() for name, x in batch.items()}


def assert_hidden_states_agree(model, loaded, batch, report) -> None:
    with torch.no_grad():
        expected = model(**to_torch(batch))
    hidden, pooled = jax.jit(loaded.model.apply)({"params": loaded.params}, **batch)
    tokens = batch["attention_mask"].astype(bool)
    error = np.abs(np.asarray(hidden) - expected.last_hidden_state.numpy())[tokens].max()
    if expected.pooler_output is None:  # RoBERTa's, where a head has its own
        assert pooled is None
        pooled_error = 0.0
    else:
        pooled_error = np.abs(np.asarray(pooled) - expected.pooler_output.numpy()).max()
    report("max_abs_error", f"hidden {error:.1e}, pooled {pooled_error:.1e}")
    assert error < 1e-4
    assert pooled_error < 1e-4


def assert_logits_and_gradients_agree(model, loaded, batch, report) -> None:
    """Cross-entropy of the logits, and its gradient in every parameter."""
    head = type(model).__name__
    tokens = batch["attention_mask"].astype(bool)

    def loss(params):
        outputs = loaded.model.apply({"params": params}, **batch)
        if "QuestionAnswering" in head:
            outputs = jnp.stack(outputs)
            logits = jnp.where(tokens, outputs, -1e9)
            labels = jnp.array([jnp.ones(len(tokens), int), tokens.sum(1) - 1])
        else:
            logits, labels = outputs, jnp.arange(len(outputs)) % outputs.shape[-1]
        per_example = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return per_example.mean(), outputs

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(loaded.params)

    outputs = model(**to_torch(batch))
    if "QuestionAnswering" in head:
        expected = torch.stack([outputs.start_logits, outputs.end_logits])
        masked = torch.where(torch.tensor(tokens), expected, -1e9)
        labels = torch.tensor(np.stack([np.ones(len(tokens), int), tokens.sum(1) - 1]))
    else:
        masked = expected = outputs.logits
        labels = torch.arange(len(expected)) % expected.shape[-1]
    torch_loss = torch.nn.functional.cross_entropy(
        masked.reshape(-1, masked.shape[-1]), labels.reshape(-1)
    )
    torch_loss.backward()

    difference = np.abs(np.asarray(logits) - expected.detach().numpy())
    error = (difference if "QuestionAnswering" not in head else difference[:, tokens]).max()
    assert float(value) == pytest.approx(torch_loss.item(), abs=1e-4)
    assert error < 1e-4
    worst = worst_relative_error(model, loaded, gradient)
    report("max_abs_error", f"logits {error:.1e}; gradients, relative: {worst:.1e}")
    assert worst < 1e-3


def worst_relative_error(model, loaded, gradient) -> float:
    """Of each tensor's gradient: norm of the difference by norm; every tensor must be there.

    Keys' biases have no gradient but rounding, for they shift all of a query's logits alike: norms
    below a ten-thousandth of the whole gradient's count as that.
    """
    ours = {
        canonical_name(name, loaded.config): x
        for name, x in to_tensors(loaded.model, loaded.config, gradient).items()
    }
    theirs = {
        canonical_name(name, loaded.config): x.grad.numpy()
        for name, x in model.named_parameters()
        if x.grad is not None
    }
    assert set(ours) == set(theirs)
    whole = np.sqrt(sum((x**2).sum() for x in theirs.values()))
    return max(
        np.linalg.norm(ours[name] - x) / max(np.linalg.norm(x), 1e-4 * whole)
        for name, x in theirs.items()
    )


@pytest.fixture
def report(record_property, capsys):
    """Notes a figure in the test's record, and shows it with -s."""

    def note(name, value):
        record_property(name, value)
        with capsys.disabled():
            print(f" [{value}]", end="")

    return note


@pytest.mark.parametrize(
    ("kind", "head"),
    kinds_and_heads(
        ("bert", "roberta", "albert"), ("encoder", "classification", "multiple_choice", "span")
    ),
)
def test_random_weights(kind, head, tmp_path, report) -> None:
    """Two layers, one where only the head is another."""
    other_head = head in ("multiple_choice", "span")
    sizes = {"num_hidden_layers": 1, "num_hidden_groups": 1} if other_head else {}
    check_random_weights(kind, head, sizes, tmp_path, report)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["bert", "roberta", "albert"])
def test_random_weights_of_the_base_sizes(kind, tmp_path, report) -> None:
    """In a scan over the layers, which takes a fraction of the time to compile; the classifier's
    encoder is compared by itself too."""
    model, loaded, batch = check_random_weights(
        kind, "classification", BASES[kind], tmp_path, report, scan_layers=True
    )
    params = loaded.params["encoder"]
    encoder = dataclasses.replace(
        loaded, model=text_encoder(loaded.config, pooler="pooler" in params), params=params
    )
    assert_hidden_states_agree(model.base_model, encoder, batch, report)


def check_random_weights(kind, head, sizes, tmp_path, report, **options):
    """Returns both models and the batch on which they agree; `options` are those of loading."""
    labels = {"num_labels": 3} if head == "classification" else {}
    model = checkpoints.torch_model(checkpoints.torch_config(kind, **sizes, **labels), head)
    model.save_pretrained(tmp_path)
    loaded = pretrained.load(tmp_path, head=head, **options)
    assert loaded.report.unused == ()
    assert loaded.report.fresh == ()
    assert loaded.tokenizer is None
    batch = random_batch(loaded.config, (4, 2, 23) if head == "multiple_choice" else (4, 23))
    if head == "encoder":
        assert_hidden_states_agree(model, loaded, batch, report)
    else:
        assert_logits_and_gradients_agree(model, loaded, batch, report)
    return model, loaded, batch


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh"])
def test_activations(activation, tmp_path, report) -> None:
    config = checkpoints.torch_config("bert", hidden_act=activation, num_hidden_layers=1)
    model = checkpoints.torch_model(config, "encoder")
    model.save_pretrained(tmp_path)
    loaded = pretrained.load(tmp_path, head="encoder")
    assert_hidden_states_agree(model, loaded, random_batch(loaded.config), report)


def test_albert_groups_of_several_layers(tmp_path, report) -> None:
    sizes = {"num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2}
    check_random_weights("albert", "encoder", sizes, tmp_path, report)


def test_real_minilm(report) -> None:
    folder = checkpoints.minilm()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    loaded = pretrained.load(folder, head="encoder")
    assert loaded.report.unused == ("embeddings.position_ids",)
    assert loaded.report.fresh == ()
    batch = loaded.tokenizer.encode(checkpoints.TEXTS, checkpoints.PAIRS)
    assert batch["token_type_ids"].any()
    assert not batch["attention_mask"].all()
    assert_hidden_states_agree(model, loaded, batch, report)


def test_real_albert_out_of_a_bin_file(report) -> None:
    folder = checkpoints.rxnmapper()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    loaded = pretrained.load(folder, head="encoder")
    assert {name.split(".")[0] for name in loaded.report.unused} == {"predictions"}
    assert loaded.report.fresh == ()
    assert_hidden_states_agree(model, loaded, random_batch(loaded.config, (3, 70)), report)


@pytest.mark.parametrize(
    "folder", thorough((checkpoints.minilm, checkpoints.rxnmapper), checkpoints.rxnmapper)
)
def test_logits_and_gradients_on_real_weights(folder, tmp_path, report) -> None:
    """In a scan over the layers, which takes a fraction of the time to compile."""
    loaded = pretrained.load(folder(), num_labels=3, scan_layers=True)
    assert loaded.report.fresh == ("classifier/bias", "classifier/kernel")
    pretrained.save(tmp_path, loaded.model, loaded.params)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = random_batch(loaded.config, (3, 40))
    assert_logits_and_gradients_agree(model, loaded, batch, report)
