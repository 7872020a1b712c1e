"""An optimiser for a model and the alignment networks that play against it."""

from typing import TYPE_CHECKING

from align_jax.collection import label_parameters

if TYPE_CHECKING:
    import optax

LEARNING_RATE = 1e-2
BETA1 = 0.0


def game_optimizer(
    model: "optax.GradientTransformation",
    *,
    learning_rate: float = LEARNING_RATE,
    beta1: float = BETA1,
) -> "optax.GradientTransformation":
    """An optimiser for the model's parameters, and Adam without momentum for the networks.

    Discriminator, critic and navigator start from nothing and have to keep ahead of the model,
    whatever rate suits the model: they have a rate of their own (Heusel et al. 2017). With momentum
    they go on in their old direction, and the game circles around its solution. Methods without
    networks ("ot", "mmd", "energy") have no need of this.

    Args:
      model: of all parameters that a plain model has.
      learning_rate: of the alignment networks.
      beta1: their momentum.

    Returns:
      A transformation of all parameters together.

    Raises:
      TypeError: `model` is no transformation, such as a learning rate.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = game_optimizer(optax.adamw(1e-4))
      >>> critic = {"kernel": jnp.ones(2)}
      >>> params = {"query": {"kernel": jnp.ones(2)}, "alignment": {"critic": critic}}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> [round(float(abs(x).max()), 4) for x in (updates["alignment"]["critic"]["kernel"],
      ...                                          updates["query"]["kernel"])]
      [0.01, 0.0001]
    """
    if not hasattr(model, "update"):
        raise TypeError(f"game_optimizer() takes an optimiser: optax.adamw(1e-4); got {model!r}.")
    import optax  # nothing else in the library needs it

    groups = {"model": model, "alignment": optax.adam(learning_rate, b1=beta1)}
    return optax.multi_transform(groups, label_parameters)
