"""JAX's switches under which flax works: 64-bit numbers, no implied axes or dtypes, checks.

Traced alone, where that shows it; so are derivatives, which promote ranks of their own. All
switches are on at once: an error says which of them it comes from, and dtypes that agree with 64
bits also agree with 32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import AlignmentConfig, alignment_loss, calibration, divergences, yardstick
from align_jax.alignment import Alignment
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
    VisionTransformer,
    ViTConfig,
)

SWITCHES = {
    "jax_enable_x64": True,
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_debug_key_reuse": True,
    "jax_enable_checks": True,
    "jax_debug_nans": True,
}
NANS = ("jax_debug_nans",)
WITHOUT_CHECKS = tuple(name for name in SWITCHES if name not in ("jax_enable_checks", *NANS))
CHECKS = ("jax_enable_checks",)
ALL = WITHOUT_CHECKS + CHECKS
B, N, M, H, D = 2, 5, 7, 2, 4
rng = np.random.default_rng(0)
QUERY, KEY = (rng.normal(size=(B, n, H, D)).astype(np.float32) for n in (N, M))
MASKS = {
    "query_mask": np.arange(N) < np.array([[5], [3]]),
    "key_mask": np.arange(M) < np.array([[2], [7]]),
}
EDGES = np.array([[0, 1, 2], [0, 1, 1]], np.int32)
DIVERGENCES = {
    "gan": (divergences.adversarial, (QUERY[..., 0], KEY[..., 0])),
    "mmd": (divergences.maximum_mean_discrepancy, (QUERY, KEY)),
    "energy": (divergences.energy_distance, (QUERY, KEY)),
    **{
        f"ct-{name}": (
            lambda *x, name=name, **masks: divergences.conditional_transport(
                *x, implementation=name, **masks
            ),
            (QUERY, KEY) * 2,
        )
        for name in ("dense", "blockwise")
    },
    "edges": (
        lambda *x, **_: edge_conditional_transport(*x, *EDGES),
        (QUERY[0, :3],) * 4,
    ),
    "scale-free": (lambda q, k, **_: yardstick.scale_free_mmd(q[0], k[0]), (QUERY, KEY)),
    "ot": (divergences.optimal_transport, (QUERY, KEY)),
}
SIZES = {"hidden_size": 8, "layers": 1, "heads": 2, "mlp_size": 8}
IDS, CT, MMD = np.ones((2, 4), np.int32), AlignmentConfig("ct"), AlignmentConfig("mmd")
MODELS = {
    **{
        f"alignment-{method}": (Alignment(AlignmentConfig(method)), (QUERY, KEY))
        for method in ("gan", "ct")
    },
    "shared": (Alignment(AlignmentConfig.paper("gan", tokens=3, subsample=2)), (QUERY, KEY)),
    "both": (Alignment(AlignmentConfig("ct", over="both", tokens=3)), (QUERY, QUERY)),
    "bert": (BertEncoder(BertConfig(vocab_size=9, **SIZES, alignment=CT)), (IDS, IDS, 0 * IDS)),
    "albert": (
        AlbertEncoder(AlbertConfig(vocab_size=9, **SIZES, embedding_size=4, alignment=CT)),
        (IDS, IDS),
    ),
    "mcan": (
        MCAN(MCANConfig(9, 3, 5, **SIZES, alignment=MMD)),
        (IDS, QUERY[:, :, 0, :1] + np.zeros(5, np.float32)),
    ),
    "gat": (GAT(GATConfig(num_classes=2, alignment=CT)), (np.ones((3, 2), np.float32), *EDGES)),
    "vit": (
        VisionTransformer(
            ViTConfig(image_size=4, patch_size=2, num_classes=3, **SIZES, alignment=MMD)
        ),
        (np.ones((2, 4, 4, 1), np.float32),),
    ),
    "alignment-ot": (Alignment(AlignmentConfig("ot")), (QUERY, KEY)),
}
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
LABELS = np.array([0, 1, 1], np.int32)


def measures():
    """All of `calibration`."""
    both = PROBABILITIES, LABELS
    logits = np.log(PROBABILITIES)
    passes = np.stack([PROBABILITIES, PROBABILITIES[::-1]])
    return [
        calibration.calibration_bins(*both),
        calibration.adaptive_calibration_error(*both, where=LABELS > 0),
        calibration.brier_score(*both),
        calibration.negative_log_likelihood(logits, LABELS),
        calibration.fit_temperature(logits, LABELS),
        calibration.equal_means_p_value(PROBABILITIES, PROBABILITIES[::-1]),
        calibration.certain_predictions(passes),
    ]


@pytest.fixture(scope="module")
def switches(request):
    """Those on which a test runs; tests in a row that share them share what JAX has traced."""
    before = {name: getattr(jax.config, name) for name in request.param}
    for name in request.param:
        jax.config.update(name, SWITCHES[name])
    yield request.param
    for name, value in before.items():
        jax.config.update(name, value)
    if "jax_enable_x64" in request.param:
        jax.clear_caches()  # JAX may take a program of 64 bits for one of 32


def under(*switches):
    """A test under each of these groups of switches."""
    return pytest.mark.parametrize("switches", switches, indirect=True, ids="-".join)


def under_all(names, thorough=()):
    """A test of each name under all switches, but for ott without JAX's checks."""
    pairs = [
        pytest.param(
            name,
            WITHOUT_CHECKS if "ot" in name.split("-") else ALL,
            marks=[pytest.mark.thorough] * (name in thorough),
        )
        for name in names
    ]
    return pytest.mark.parametrize(
        ("name", "switches"), pairs, indirect=["switches"], ids=list(names)
    )


def no_float64(tree):
    return all(x.dtype != np.float64 for x in jax.tree.leaves(tree))


@pytest.mark.fault(
    "64-bit mode, ranks and dtypes that must not be promoted, JAX's checks, `jax_debug_nans`",
    'All works, but for "ot" under `jax_enable_checks`, which is refused; parameters stay float32',
)
@under_all(DIVERGENCES)
def test_divergences_under_all_switches(name, switches):
    function, arrays = DIVERGENCES[name]

    def loss(arrays):
        return function(*arrays, **MASKS).sum()

    assert no_float64(jax.eval_shape(jax.value_and_grad(loss), arrays))


@under(CHECKS)
def test_transport_refuses_jaxs_checks(switches):
    with pytest.raises(ValueError, match="ott-jax takes an axis for"):
        divergences.optimal_transport(QUERY, KEY)


@under_all(MODELS, thorough=("both", "alignment-gan", "albert", "mcan", "gat"))
def test_models_under_all_switches(name, switches):
    model, inputs = MODELS[name]
    rngs = {"alignment": jax.random.key(0)}
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))
    assert no_float64(variables)

    def loss(variables):
        out, sown = model.apply(variables, *inputs, mutable=["alignment"], rngs=rngs)
        return alignment_loss(sown) + sum(jnp.sum(x) for x in jax.tree.leaves(out))

    if "params" in variables:
        assert no_float64(jax.eval_shape(jax.value_and_grad(loss), variables))
    else:
        jax.eval_shape(loss, variables)


@under(*((name,) for name in ALL))
def test_calibration_under_each_switch(switches):
    assert no_float64(jax.eval_shape(measures))


@under(NANS)
@pytest.mark.parametrize("name", ["mmd", "energy", "ct-dense"])
def test_nothing_makes_nan_on_its_way(name, switches):
    """Where what is masked or singular would, it is replaced before."""
    function, arrays = DIVERGENCES[name]
    masks = MASKS | {"query_mask": MASKS["query_mask"] & np.array([[True], [False]])}
    sides = ("query_mask", "key_mask") * 2
    padded = [
        np.where(masks[side][..., None, None], x, np.nan)
        for side, x in zip(sides, arrays, strict=False)
    ]

    def loss(arrays):
        return function(*arrays, **masks).sum()

    jax.jit(jax.grad(loss))(padded)


@under(NANS)
def test_no_measure_makes_nan_on_its_way(switches):
    measures()
