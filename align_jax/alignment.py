"""The module that measures how far keys and queries lie apart, and sows it for the loss."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.module import _context
from jaxtyping import Array, Bool, Float

from align_jax import divergences, gradient_reversal, networks, numerics, placement
from align_jax.config import CONTROL, PLAIN, AlignmentConfig

# The collections' names. The module itself is called NAME inside its attention, so that its
# parameters form one sub-tree of that name.
NAME = "alignment"
CLOUDS = "alignment_clouds"

# One cloud: whatever the networks made of its tokens, each [B, N, H, ...].
Cloud = tuple[Array, ...]
Measured = tuple[Array, dict[str, Array]]

GAMES = ("gan", "ct")  # the methods that have networks
FREE_SLOPE = 1.0  # mean squared slope of a critic that costs nothing
LARGEST = 30.0  # logit whose exponential still counts in full, see `_logits`


class Alignment(nn.Module):
    """Sows the divergence between an attention's queries and keys.

    Call it inside an attention module, named "alignment". It changes no output. What it does
    depends on which collections are mutable in `apply`:

    * "alignment" (training): sows `divergence` `[B, H]` (under `AlignmentConfig.subsample` that of
      the sample drawn, times how many it stands for; 0 for the others), `valid` `[B]` (False for a
      sample without queries or keys, which counts in no mean), and for "ot" `sinkhorn_iterations`,
      `sinkhorn_residual` and `sinkhorn_unconverged` (1 for a plan whose residual exceeds the
      threshold), each `[B, H]` (over heads, their mean over tokens; over both, those over tokens).
      Its networks' parameters are already adversarial through gradient reversal: minimise task
      loss plus weight times `alignment_loss(...)`.
    * "alignment_clouds": sows `query`, `key` and their masks, for MMD and pictures.
    * neither: computes nothing, and needs no parameters.

    Attributes:
      config: what to align, and how.
      dtype: computation dtype of the networks; None takes it from inputs and parameters. The
        divergence itself is always float32.

    Example:
      >>> import jax
      >>> q, k = jnp.ones((2, 5, 4, 8)), jnp.zeros((2, 7, 4, 8))
      >>> module = Alignment(AlignmentConfig("ct"))
      >>> variables = jax.jit(module.init)(jax.random.key(0), q, k)
      >>> apply = jax.jit(module.apply, static_argnames="mutable")
      >>> _, sown = apply(variables, q, k, mutable="alignment")
      >>> sown["alignment"]["divergence"][0].shape
      (2, 4)
    """

    config: AlignmentConfig
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "*batch N H D"],
        key: Float[Array, "*batch M H D"],
        *,
        query_mask: Bool[Array, "*batch N"] | None = None,
        key_mask: Bool[Array, "*batch M"] | None = None,
    ) -> None:
        """Sows; returns nothing.

        Args:
          query: the attention's projected queries. Several batch axes are flattened into one.
          key: its projected keys.
          query_mask: True for the queries that take part; None for all.
          key_mask: True for the keys that take part; None for all.

        Raises:
          ValueError: for shapes that do not fit together, or if the variables given to `apply` hold
            what an earlier call sowed or lack the networks of "gan" and "ct".
          TypeError: for masks that are not bool.
        """
        training = self.is_mutable_collection(NAME) and not self.is_initializing()
        measuring = self.is_mutable_collection(CLOUDS) and not self.is_initializing()
        if not (training or measuring or self.is_initializing()):
            return
        refuse_what_was_sown_before(self)
        for name, x in (("query", query), ("key", key)):
            if x.ndim < 3:
                raise ValueError(f"{name} must have shape [..., N, H, D], got {x.shape}.")
        query, key = (x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]) for x in (query, key))
        query_mask, key_mask = (
            x if x is None else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
            for x in (query_mask, key_mask)
        )
        numerics.check_clouds(query, key, query_mask, key_mask)
        if measuring:
            self.sow(CLOUDS, "query", query)
            self.sow(CLOUDS, "key", key)
            self.sow(CLOUDS, "query_mask", numerics.explicit_mask(query, query_mask))
            self.sow(CLOUDS, "key_mask", numerics.explicit_mask(key, key_mask))
        selected = self.config.selects(self.path[:-1])
        if self.config.method == PLAIN or not selected or not (training or self.is_initializing()):
            return
        if training and self.config.method in GAMES and not self.variables.get("params"):
            raise ValueError(
                f"The parameters given to apply hold no networks for {self.config.method!r}: "
                "they are those of the model without alignment. Put them over those that init() of "
                "this model makes: align_jax.merge_parameters(initialised, yours)."
            )

        if self.config.over != "tokens":
            query_mask = key_mask = self._same_tokens(query, key, query_mask, key_mask)
        valid = jnp.any(numerics.explicit_mask(query, query_mask), axis=1)
        valid &= jnp.any(numerics.explicit_mask(key, key_mask), axis=1)
        # NaN in padding would reach the networks' parameters as 0 * NaN.
        query, key = numerics.zero_padding(query, query_mask), numerics.zero_padding(key, key_mask)
        drawn = None
        if not self.is_initializing():
            query, key, query_mask, key_mask, drawn = self._sampled(
                query, key, query_mask, key_mask, valid
            )
        query_cloud, key_cloud, penalty = self._clouds(query, key, query_mask, key_mask)
        value, report = self._measure(query_cloud, key_cloud, query_mask, key_mask)
        if training:
            # It changes what the adversary strives for, not what the divergence is.
            value -= penalty - jax.lax.stop_gradient(penalty)
            measured = {"divergence": value, **report}
            if drawn is not None:
                measured = {k: jnp.repeat(x, drawn.shape[1], axis=0) for k, x in measured.items()}
                # It counts for all it was drawn from: no bias, whatever `sample_mask` leaves out.
                counts = valid.reshape(drawn.shape).sum(axis=1, keepdims=True)
                times = jnp.where(drawn, counts, 0).reshape(-1, 1).astype(jnp.float32)
                measured["divergence"] = jnp.where(times > 0, times * measured["divergence"], 0.0)
            for name, sown in {**measured, "valid": valid}.items():
                self.sow(NAME, name, sown)

    def _same_tokens(
        self, query: Array, key: Array, query_mask: Array | None, key_mask: Array | None
    ) -> Array | None:
        """The tokens whose heads can be compared: those that are both query and key."""
        if query.shape[1] != key.shape[1]:
            raise ValueError(
                f"over={self.config.over!r} compares the heads at each token, so there must be as "
                f"many queries as keys, got {query.shape[1]} and {key.shape[1]}. Use over='tokens'."
            )
        if query_mask is None or key_mask is None:
            return key_mask if query_mask is None else query_mask
        return query_mask & key_mask

    def _sampled(
        self, query: Array, key: Array, query_mask: Any, key_mask: Any, valid: Array
    ) -> tuple[Array, Array, Array | None, Array | None, Array | None]:
        """Some of the samples, and some of their tokens, if the config says so.

        Where N = M and the masks agree, queries and keys of the same tokens. The last array says
        which samples they are, `[groups, samples of a group]`; None for all.
        """
        streams = [name for name in (NAME, "dropout") if self.has_rng(name)]
        # Neighbours form a group, so that a device draws among its own samples.
        sizes = range(min(self.config.subsample, len(query) or 1), 0, -1)
        group, drawn = next(size for size in sizes if len(query) % size == 0), None
        if not (self.config.tokens or group > 1) or not streams:
            return query, key, query_mask, key_mask, None
        rng = self.make_rng(streams[0])
        if group > 1:
            of_samples = jax.random.fold_in(jax.random.clone(rng), 1)
            order = jax.random.uniform(of_samples, (len(query) // group, group))
            order = jnp.where(valid.reshape(order.shape), order, -1.0)
            chosen = jnp.argmax(order, axis=1)
            drawn = chosen[:, None] == jnp.arange(group)[None]

        def sampled(x: Array, mask: Array | None) -> tuple[Array, Array | None]:
            if group > 1:
                x = _one_of_each(x, chosen, group)
                mask = mask if mask is None else _one_of_each(mask, chosen, group)
            if not self.config.tokens or x.shape[1] <= self.config.tokens:
                return x, mask
            # The same draw on purpose, which JAX's check of used keys is told.
            order = jax.random.uniform(jax.random.clone(rng), x.shape[:2])
            if mask is not None:  # padding comes last
                order = jnp.where(mask, order, -1.0)
            if placement.spread_by_compiler():  # the devices would gather what top_k takes
                tokens = jnp.argsort(-order, axis=1)[:, : self.config.tokens]
            else:
                tokens = jax.lax.top_k(order, self.config.tokens)[1]
            x = jnp.take_along_axis(x, tokens[..., None, None], axis=1)
            return x, mask if mask is None else jnp.take_along_axis(mask, tokens, axis=1)

        (query, query_mask), (key, key_mask) = sampled(query, query_mask), sampled(key, key_mask)
        return query, key, query_mask, key_mask, drawn

    def _clouds(
        self, query: Array, key: Array, query_mask: Array | None, key_mask: Array | None
    ) -> tuple[Cloud, Cloud, Array | float]:
        """What the method's networks make of queries and keys, and the penalty on their slope."""
        config = self.config
        if config.method not in GAMES:
            return (query,), (key,), 0.0
        if config.unit_scale:
            axes = (1, 3) if config.over == "tokens" else (1, 2, 3)  # else heads are compared
            query, key = numerics.at_unit_scale(query, key, query_mask, key_mask, axes=axes)
        # Queries and keys go through the networks together, in half as many operations.
        both, number = jnp.concatenate([query, key], axis=1), query.shape[1]
        highway = config.discriminator == "highway"
        apply = networks.in_chunks if config.shared_networks else networks.for_each_head
        adversary: networks.Critic
        if config.method == "gan":
            adversary = networks.Discriminator(
                config.hidden_features, highway, self.dtype, adversarial=True, name="discriminator"
            )
            made: Cloud = (self._logits(functools.partial(apply, adversary), both, number),)
        else:
            sizes = config.features, config.hidden_features
            adversary = networks.Critic(
                *sizes, highway, self.dtype, adversarial=True, name="critic"
            )
            navigator = networks.Navigator(*sizes, self.dtype, name="navigator")
            features, navigation = apply(
                networks.CriticAndNavigator(adversary, navigator, name="critic_and_navigator"), both
            )
            if config.constant_feature:
                constant = jnp.full((*features.shape[:-1], 1), config.constant_feature)
                features = jnp.concatenate([features, constant.astype(features.dtype)], -1)
            if config.normalize_navigator:
                navigation = numerics.unit_vectors(navigation)
            made = features, navigation
        clouds = tuple(x[:, :number] for x in made), tuple(x[:, number:] for x in made)
        if not config.gradient_penalty or self.is_initializing():
            return *clouds, 0.0
        slope = networks.gradient_penalty(
            adversary.clone(parent=None),
            self.variables["params"][str(adversary.name)],
            [(query, query_mask), (key, key_mask)],
            each_head=not config.shared_networks,
        )
        if config.method == "ct":
            # Under a cosine the critic would sooner switch off all features than pay for a slope.
            slope = jnp.maximum(slope - FREE_SLOPE, 0.0)
        return *clouds, config.gradient_penalty * slope

    def _logits(self, discriminate: Callable[[Array], Array], both: Array, number: int) -> Array:
        """The discriminator's, by which its own parameters and the clouds have losses of their own.

        The value is `log D(q) + log(1 - D(k))` for both. A query that the discriminator is sure of,
        D(q) near 1, has no slope there; that of `-log(1 - D(q))`, which has the same sign, is
        larger by D / (1 - D), the exponential of the logit. The first `number` are queries.
        """
        if self.config.saturating:
            return discriminate(both)
        vectors, handle = gradient_reversal.weighed_gradient(both)
        logits = discriminate(vectors)
        sign = jnp.where(jnp.arange(both.shape[1]) < number, 1.0, -1.0)[:, None]
        signed = numerics.with_leading_axes(sign, logits) * logits.astype(jnp.float32)
        factors = jnp.exp(jnp.clip(signed, -LARGEST, LARGEST))
        return gradient_reversal.weigh(logits, handle, factors)

    def _measure(
        self, query: Cloud, key: Cloud, query_mask: Array | None, key_mask: Array | None
    ) -> Measured:
        """The divergence over tokens, over heads, or both, as `config.over` says."""
        over = self.config.over
        if over == "tokens":
            return self._divergence(query, key, query_mask, key_mask)
        # The heads at one token play the part of the tokens in one head: swap the two axes.
        queries, keys = (tuple(jnp.swapaxes(x, 1, 2) for x in cloud) for cloud in (query, key))
        per_token, report = self._divergence(queries, keys, None, None, whole_heads=True)
        shape = query[0].shape[:3:2]
        mask = jnp.ones(per_token.shape, bool) if query_mask is None else query_mask

        def per_sample(x: Array) -> Array:
            mean = numerics.masked_mean(x.astype(jnp.float32), mask, axis=1)
            return jnp.broadcast_to(mean[:, None], shape)

        value, report = per_sample(per_token), {k: per_sample(x) for k, x in report.items()}
        if over == "heads":
            return value, report
        per_head, report = self._divergence(query, key, query_mask, key_mask)
        return per_head + value, report

    def _divergence(
        self,
        query: Cloud,
        key: Cloud,
        query_mask: Array | None,
        key_mask: Array | None,
        whole_heads: bool = False,
    ) -> Measured:
        function = functools.partial(_divergence, self.config)
        clouds = query, key, query_mask, key_mask
        return placement.on_each_device(function, *clouds, whole_heads=whole_heads)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _one_of_each(x: Array, chosen: Array, group: int) -> Array:
    """Of samples `[B, ...]`, in groups of so many, those that `chosen`, `[B / group]`, names."""
    index = chosen.reshape(-1, *[1] * x.ndim)
    return jnp.take_along_axis(x.reshape(-1, group, *x.shape[1:]), index, axis=1)[:, 0]


@_one_of_each.defjvp
def _one_of_each_jvp(group: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # Backward, a sum over what is chosen becomes a choice, which XLA fuses with what adds it to
    # the other gradients; a gather would become zeros of all samples' size, to be filled.
    (x, chosen), (tangent, _) = primals, tangents
    drawn = (chosen[:, None] == jnp.arange(group)[None]).reshape(-1, group, *[1] * (x.ndim - 1))
    grouped = tangent.reshape(-1, group, *x.shape[1:])
    chosen_alone = jnp.where(drawn, grouped, jnp.zeros((), grouped.dtype))
    return _one_of_each(x, chosen, group), chosen_alone.sum(axis=1)


def _divergence(
    config: AlignmentConfig,
    query: Cloud,
    key: Cloud,
    query_mask: Array | None,
    key_mask: Array | None,
) -> Measured:
    masks: dict[str, Any] = {"query_mask": query_mask, "key_mask": key_mask}
    if config.method == "gan":
        return divergences.adversarial(*query, *key, **masks), {}
    if config.method == "mmd":
        value = divergences.maximum_mean_discrepancy(
            *query, *key, **masks, bandwidth=config.bandwidth or None
        )
        return value, {}
    if config.method == "energy":
        return divergences.energy_distance(*query, *key, **masks), {}
    if config.method == CONTROL:
        return _squared_logits(*query, *key, **masks), {}
    if config.method == "ct":
        features, navigation = zip(query, key, strict=True)
        value = divergences.conditional_transport(
            *features,
            *navigation,
            **masks,
            rho=config.rho,
            cost=config.cost,
            implementation=config.implementation,
        )
        return value, {}
    value, report = divergences.optimal_transport(
        *query,
        *key,
        **masks,
        epsilon=config.epsilon,
        cost=config.cost,
        threshold=config.sinkhorn_threshold,
        max_iterations=config.sinkhorn_iterations,
        with_report=True,
    )
    return value, {
        "sinkhorn_iterations": report.iterations.astype(jnp.float32),
        "sinkhorn_residual": report.residual,
        "sinkhorn_unconverged": 1.0 - report.converged.astype(jnp.float32),
    }


def _squared_logits(
    query: Float[Array, "B N H D"],
    key: Float[Array, "B M H D"],
    *,
    query_mask: Bool[Array, "B N"] | None,
    key_mask: Bool[Array, "B M"] | None,
) -> Float[Array, "B H"]:
    """The mean of `(q.k)^2 / D` over all pairs: that of `q.k`'s is the product of two moments."""

    def moments(x: Array, mask: Array | None) -> Array:
        weights = numerics.token_weights(numerics.explicit_mask(x, mask))
        x = x.astype(jnp.float32)
        return jnp.einsum("bn,bnhd,bnhe->bhde", weights, x, x)

    product = moments(query, query_mask) * moments(key, key_mask)
    return product.sum(axis=(-2, -1)) / query.shape[-1]


def refuse_what_was_sown_before(module: nn.Module) -> None:
    """Sowing appends: a collection that is passed back in would be averaged into the loss."""
    # The scope that `apply` made, not one that nn.remat or nn.scan made inside of it: there, a
    # shared layer rightly finds what it sowed in an earlier call.
    modules = [*_context.module_stack, module]
    scopes = [one.scope.root for one in modules if one and one.scope]
    root = next((x for x in reversed(scopes) if not x.path), scopes[-1])
    if getattr(root, "_alignment_is_fresh", False):
        return
    root._alignment_is_fresh = True  # type: ignore[attr-defined]
    for collection in (NAME, CLOUDS):
        if module.is_mutable_collection(collection) and jax.tree.leaves(
            root.variables().get(collection, {})
        ):
            raise ValueError(
                f"The variables given to apply hold the collection {collection!r} of an "
                f"earlier call, which would count once more. Take it out of what apply "
                f"returned before you pass that back in: updates.pop({collection!r})."
            )
