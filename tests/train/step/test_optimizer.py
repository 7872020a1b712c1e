"""The optimiser against hand calculation and against Adam written in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.registry import ConfigError
from train.step.optimizer import OptimizerConfig, learning_rate, make_optimizer

PARAMS = {
    "layer_0": {
        "attention": {
            "query": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2, 2), 2.0)},
            "alignment": {"critic": {"kernel": jnp.full((2, 2), 2.0)}},
        },
        "norm": {"scale": jnp.full((2,), 2.0)},
    }
}


def update(config: OptimizerConfig, gradients, steps: int = 1, params=PARAMS):
    tx = make_optimizer(config, steps=100)
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def kernel(params):
    return params["layer_0"]["attention"]["query"]["kernel"]


# Of GLUE and SQuAD, with the steps of the whole run.
WARMUPS = ((320, 5336), (214, 3598), (1256, 20935), (1986, 33112), (200, 800), (365, 3649))


def critic(params):
    return params["layer_0"]["attention"]["alignment"]["critic"]["kernel"]


def like(value: float):
    return jax.tree.map(lambda x: jnp.full_like(x, value), PARAMS)


def test_the_rate_rises_and_falls_linearly() -> None:
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=4), steps=12)
    np.testing.assert_allclose(
        [rate(step) for step in (0, 1, 4, 8, 12, 20)], [0, 0.25, 1.0, 0.5, 0.0, 0.0]
    )


def test_a_share_of_the_steps_is_their_warm_up() -> None:
    """It fits runs of any length; a number of steps, if there is one, counts instead."""
    share = OptimizerConfig(learning_rate=1.0, warmup_share=1 / 6)
    assert [share.warmup(steps) for steps in (600, 60, 5, 0)] == [100, 10, 0, 0]
    rate = learning_rate(share, steps=12)
    np.testing.assert_allclose([rate(step) for step in (0, 1, 2, 7, 12)], [0, 0.5, 1, 0.5, 0])
    assert OptimizerConfig(warmup_share=0.5, warmup_steps=0).warmup(600) == 0
    # The paper's numbers of steps come back from their shares.
    shares = [OptimizerConfig(warmup_share=few / all_).warmup(all_) for few, all_ in WARMUPS]
    assert shares == [few for few, _ in WARMUPS]


def test_a_constant_rate_stays() -> None:
    rate = learning_rate(OptimizerConfig(learning_rate=0.5, decay="constant"), steps=10)
    np.testing.assert_allclose([rate(0), rate(9), rate(99)], 0.5)


def test_a_rate_of_steps_falls_at_each_of_them() -> None:
    config = OptimizerConfig(
        learning_rate=1.0, warmup_steps=4, decay="steps", decay_at=(8, 10), decay_factor=0.2
    )
    rate = learning_rate(config, steps=12)
    np.testing.assert_allclose(
        [rate(step) for step in (2, 4, 7, 8, 9, 10, 99)], [0.5, 1, 1, 0.2, 0.2, 0.04, 0.04]
    )


def test_three_steps_are_adamw_by_hand() -> None:
    config = OptimizerConfig(learning_rate=0.1, decay="constant", weight_decay=0.2, clip_norm=0.0)
    weight, m, v, gradient = 2.0, 0.0, 0.0, 0.3
    for t in range(1, 4):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        weight -= 0.1 * (step + 0.2 * weight)
    np.testing.assert_allclose(kernel(update(config, like(0.3), 3)), weight, rtol=1e-5)


def test_adam_adds_the_decay_to_the_gradient() -> None:
    config = OptimizerConfig(
        name="adam", learning_rate=0.1, decay="constant", weight_decay=0.2, clip_norm=0.0
    )
    # The gradient is 0, so Adam sees 0.2 * weight alone, and its first step is the rate itself.
    np.testing.assert_allclose(kernel(update(config, like(0.0))), 2.0 - 0.1, rtol=1e-5)


def test_only_kernels_outside_the_alignment_are_decayed_by_default() -> None:
    config = OptimizerConfig(learning_rate=0.1, decay="constant", weight_decay=0.5)
    after = update(config, like(0.0))
    np.testing.assert_allclose(kernel(after), 2.0 * (1 - 0.1 * 0.5), rtol=1e-6)
    rest = jax.tree.map(lambda x: x, after)
    rest["layer_0"]["attention"]["query"]["kernel"] = kernel(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, rest, PARAMS)


def test_what_is_not_decayed_can_be_said() -> None:
    config = OptimizerConfig(learning_rate=0.1, decay="constant", weight_decay=0.5)
    but_queries = dataclasses.replace(config, not_decayed="query/kernel$")
    assert but_queries.not_decayed == ("query/kernel$",)
    np.testing.assert_array_equal(kernel(update(but_queries, like(0.0))), kernel(PARAMS))
    for wrong in ("kernl$", r"\bbiass$"):
        with pytest.raises(ConfigError, match="not_decayed names .* fits no parameter; did"):
            update(dataclasses.replace(config, not_decayed=("query", wrong)), like(0.0))
    everything = dataclasses.replace(config, not_decayed=())
    scale = update(everything, like(0.0))["layer_0"]["norm"]["scale"]
    np.testing.assert_allclose(scale, PARAMS["layer_0"]["norm"]["scale"] * 0.95, rtol=1e-6)


def test_decay_alignment_decays_the_critic_too() -> None:
    config = OptimizerConfig(
        decay="constant", weight_decay=0.5, decay_alignment=True, alignment_learning_rate=0.1
    )
    np.testing.assert_allclose(critic(update(config, like(0.0))), 1.9, rtol=1e-6)


def test_the_alignment_networks_have_a_constant_rate_of_their_own() -> None:
    """An absolute one: neither the model's rate nor its warm-up or decay touches it."""
    gradients, decayed_to_0 = like(0.01), {"learning_rate": 0.1, "weight_decay": 0.0}
    for settings in ({"decay": "linear"}, {"decay": "constant"}, {"warmup_steps": 100}):
        config = OptimizerConfig(**decayed_to_0, **settings)
        # Under a gradient that stays, each of Adam's steps is as long as the rate.
        for steps in (1, 60):
            after = update(config, gradients, steps)
            np.testing.assert_allclose(critic(PARAMS) - critic(after), 0.01 * steps, rtol=1e-3)
        rates = [float(learning_rate(config, steps=100)(step)) for step in range(60)]
        np.testing.assert_allclose(kernel(PARAMS) - kernel(after), sum(rates), rtol=1e-3)
    assert kernel(PARAMS)[0, 0] - kernel(update(config, gradients))[0, 0] == 0.0  # warming up
    config = OptimizerConfig(alignment_learning_rate=0.3, **decayed_to_0, decay="constant")
    after = update(config, gradients)
    np.testing.assert_allclose(critic(PARAMS) - critic(after), 0.3, rtol=1e-3)
    np.testing.assert_allclose(kernel(PARAMS) - kernel(after), 0.1, rtol=1e-3)


def test_the_alignment_networks_forget_the_last_gradient_and_the_model_does_not() -> None:
    """After a gradient of 1 comes one of 0, then the next of 1, as Adam by hand takes them."""

    def moved(beta1: float) -> list[float]:
        m = v = 0.0
        steps = []
        for t, gradient in enumerate((0.1, 0.0, 0.1), start=1):
            m, v = beta1 * m + (1 - beta1) * gradient, 0.999 * v + 0.001 * gradient**2
            steps.append((m / (1 - beta1**t)) / np.sqrt(v / (1 - 0.999**t)))
        return steps

    config = OptimizerConfig(learning_rate=0.1, decay="constant", weight_decay=0.0)
    tx = make_optimizer(config, steps=100)
    state, found = tx.init(PARAMS), []
    for value in (0.1, 0.0, 0.1):
        updates, state = tx.update(like(value), state, PARAMS)
        found.append((critic(updates)[0, 0], kernel(updates)[0, 0]))
    of_critic, of_model = np.transpose(found)
    assert of_critic[1] == 0.0
    np.testing.assert_allclose(of_critic, -0.01 * np.array(moved(0.0)), rtol=1e-4)
    np.testing.assert_allclose(of_model, -0.1 * np.array(moved(0.9)), rtol=1e-4)
    assert of_model[1] < 0.0


def test_a_head_on_an_encoder_has_a_rate_of_its_own() -> None:
    head = {"classifier": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 2.0)}}
    params = {"encoder": PARAMS, **head}
    config = OptimizerConfig(
        learning_rate=0.1, decay="constant", weight_decay=0.0, head_rate_multiplier=5.0,
        alignment_learning_rate=0.2,
    )  # fmt: skip
    after = update(config, jax.tree.map(lambda x: jnp.full_like(x, 0.01), params), params=params)
    moved = jax.tree.map(lambda x: 2.0 - x, after)
    for values in jax.tree.leaves(moved["classifier"]):
        np.testing.assert_allclose(values, 0.5, rtol=1e-3)
    # The critic's is its own as well, though it lies in the encoder.
    np.testing.assert_allclose(2.0 - critic(after["encoder"]), 0.2, rtol=1e-3)
    moved["encoder"]["layer_0"]["attention"].pop("alignment")
    for values in jax.tree.leaves(moved["encoder"]):
        np.testing.assert_allclose(values, 0.1, rtol=1e-3)


def test_a_head_without_an_encoder_is_refused() -> None:
    tx = make_optimizer(OptimizerConfig(head_rate_multiplier=5.0), steps=10)
    with pytest.raises(ConfigError, match="head on an encoder; this model has layer_0"):
        tx.init(PARAMS)


def test_a_gradient_is_clipped_by_its_norm() -> None:
    """With an epsilon of 1, Adam's first step shows how long the gradient was."""
    config = OptimizerConfig(learning_rate=1.0, decay="constant", weight_decay=0.0, epsilon=1.0)
    gradients = {"kernel": jnp.array([3.0, 4.0])}
    moved = update(config, gradients, params={"kernel": jnp.zeros(2)})
    clipped = np.array([0.6, 0.8])
    np.testing.assert_allclose(moved["kernel"], -clipped / (clipped + 1.0), rtol=1e-5)


def test_a_huge_critic_gradient_does_not_shrink_the_models_step() -> None:
    gradients = like(1e-6)  # so small that Adam's epsilon shows whether it was scaled
    gradients["layer_0"]["attention"]["alignment"]["critic"]["kernel"] *= 1e12
    config = OptimizerConfig(learning_rate=0.1, decay="constant", weight_decay=0.0)
    calm, wild = update(config, like(1e-6)), update(config, gradients)
    np.testing.assert_array_equal(kernel(calm), kernel(wild))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamm"}, "optimizer.name is 'adamm'; did you mean \"adam\""),
        ({"decay": "linaer"}, 'did you mean "linear"'),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"alignment_learning_rate": -1.0}, "alignment_learning_rate is -1.0"),
        ({"head_rate_multiplier": -1.0}, "head_rate_multiplier is -1.0"),
        ({"decay": "steps"}, "decay 'steps' needs steps"),
        ({"decay_at": (5,)}, "no other takes any"),
        ({"warmup_share": 1.5}, "warmup_share is 1.5; expected 0 to 1"),
        ({"warmup_steps": -1}, "warmup_steps is -1; expected 0 or more"),
        ({"beta1": 1.0}, "optimizer.beta1 is 1.0; expected at least 0, below 1"),
        ({"alignment_beta1": float("nan")}, "optimizer.alignment_beta1 is nan"),
        ({"decay": "steps", "decay_at": (5, 4)}, r"decay_at is \(5, 4\); expected rising"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**settings)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup_steps is 11, longer than train.steps 10"):
        make_optimizer(OptimizerConfig(warmup_steps=11), steps=10)
    within = OptimizerConfig(warmup_steps=6, decay="steps", decay_at=(5,))
    with pytest.raises(ConfigError, match="begins at 5, within the warm-up of 6"):
        make_optimizer(within, steps=10)
