"""Reading what the alignment modules sowed, and taking their parameters out again."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.core
import flax.struct
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Bool, Float

from align_jax import divergences, numerics
from align_jax.alignment import CLOUDS, NAME

_NETWORKS = {"critic", "discriminator", "navigator"}


@flax.struct.dataclass
class AlignmentSums:
    """The alignment of one batch as sums and counts, to be added over devices.

    Attributes:
      total: per attention, the sum over samples of the mean divergence of its heads.
      count: per attention, the number of samples in that sum.

    Example:
      >>> AlignmentSums(total=jnp.array([6.0, 0.0]), count=jnp.array([3.0, 0.0])).mean().item()
      2.0
    """

    total: Float[Array, "L"]
    count: Float[Array, "L"]

    def mean(self) -> Float[Array, ""]:
        """Mean over samples, heads and layers; 0 where no sample counted at all."""
        per_layer = self.total / jnp.maximum(self.count, 1.0)
        return numerics.masked_mean(per_layer, self.count > 0, axis=0)


def alignment_sums(
    variables: Mapping[str, Any], sample_mask: Bool[Array, "B"] | None = None
) -> AlignmentSums:
    """Per attention, the sum over samples of the divergence (mean over heads), and their count.

    Add both over devices (`jax.lax.psum`) before `AlignmentSums.mean`, and several devices give
    the number that one would.

    Args:
      variables: what `model.apply(..., mutable=["alignment"])` returned beside the outputs.
      sample_mask: bool `[B]`, False for rows that only fill up the batch; None counts all.

    Returns:
      Sums and counts, each `[L]`, one entry per attention call in the order of their paths.

    Raises:
      ValueError: when nothing was sown, or the mask's shape is not `[B]`.

    Example:
      >>> mean, valid = jnp.array([[0.5, 1.5], [2.0, 4.0]]), jnp.array([True, True])
      >>> sown = {"alignment": {"layer_0": {"divergence": (mean,), "valid": (valid,)}}}
      >>> sums = alignment_sums(sown, sample_mask=jnp.array([True, False]))
      >>> sums.total.tolist(), sums.count.tolist()
      ([1.0], [1.0])
    """
    totals, counts = [], []
    for _, divergence, valid in _sown(variables, sample_mask):
        totals.append(jnp.sum(jnp.where(valid, jnp.mean(divergence, axis=-1), 0.0), axis=-1))
        counts.append(jnp.sum(valid, axis=-1).astype(jnp.float32))
    return AlignmentSums(jnp.concatenate(totals), jnp.concatenate(counts))


def alignment_loss(
    variables: Mapping[str, Any], sample_mask: Bool[Array, "B"] | None = None
) -> Float[Array, ""]:
    """The alignment to be added to the task loss: its mean over samples, heads and layers.

    The paper adds `0.01` times this (Zhang et al. 2021, Eq. 2; means instead of sums, as in its
    released code). Samples without queries or keys are left out of the mean.

    Args:
      variables: as of `alignment_sums`, and so are the errors.
      sample_mask: as of `alignment_sums`.

    Returns:
      A scalar, in the divergence's units.

    Example:
      >>> import jax
      >>> from align_jax import AlignmentConfig, MultiHeadDotProductAttention
      >>> model = MultiHeadDotProductAttention(num_heads=2, alignment=AlignmentConfig("mmd"))
      >>> x = jnp.ones((3, 5, 8))
      >>> variables = jax.jit(model.init)(jax.random.key(0), x)
      >>> outputs, sown = model.apply(variables, x, mutable=["alignment"])
      >>> loss = jnp.mean(outputs**2) + 0.01 * alignment_loss(sown)
      >>> loss.shape
      ()
    """
    return alignment_sums(variables, sample_mask).mean()


def alignment_table(
    variables: Mapping[str, Any], sample_mask: Bool[Array, "B"] | None = None
) -> dict[str, Float[Array, "H"]]:
    """Per attention, the divergence of each head: its mean over samples. For logging.

    Args:
      variables: as of `alignment_sums`, and so are the errors.
      sample_mask: as of `alignment_sums`.

    Returns:
      `{"layer_0/attention": [H], ...}`. A module that is called or scanned several times has one
      entry per call, with the call's number appended: `"layer/attention#0"`.

    Example:
      >>> mean, valid = jnp.array([[0.5, 1.5], [2.0, 4.0]]), jnp.array([True, True])
      >>> sown = {"alignment": {"layer_0": {"divergence": (mean,), "valid": (valid,)}}}
      >>> {name: heads.tolist() for name, heads in alignment_table(sown).items()}
      {'layer_0': [1.25, 2.75]}
    """
    return {
        name: per_head
        for path, divergence, valid in _sown(variables, sample_mask)
        for name, per_head in _named(
            path, numerics.masked_mean(divergence, valid[..., None], axis=1)
        )
    }


class Clouds(NamedTuple):
    """The queries and keys that one attention call compared.

    Attributes:
      query: `[B, N, H, D]`.
      key: `[B, M, H, D]`.
      query_mask: bool `[B, N]`, which queries are no padding.
      key_mask: bool `[B, M]`, the same of the keys.

    Example:
      See `alignment_clouds`.
    """

    query: Float[Array, "B N H D"]
    key: Float[Array, "B M H D"]
    query_mask: Bool[Array, "B N"]
    key_mask: Bool[Array, "B M"]


def alignment_clouds(variables: Mapping[str, Any]) -> dict[str, Clouds]:
    """The queries and keys of every attention, to be measured or drawn.

    Args:
      variables: what `model.apply(..., mutable=["alignment_clouds"])` returned beside the outputs.

    Returns:
      In the order of the layers, named as in `alignment_table`.

    Raises:
      ValueError: when nothing was sown.

    Example:
      >>> import jax, flax.linen as nn
      >>> from align_jax import AlignmentConfig, aligned
      >>> model = aligned(nn.SelfAttention(num_heads=2), AlignmentConfig(method="none"))
      >>> x = jnp.ones((3, 5, 8))
      >>> variables = jax.jit(model.init)(jax.random.key(0), x)
      >>> _, sown = model.apply(variables, x, mutable=["alignment_clouds"])
      >>> {name: clouds.query.shape for name, clouds in alignment_clouds(sown).items()}
      {'': (3, 5, 2, 4)}
    """
    found: dict[str, Clouds] = {}
    for path, sown in _leaves(variables, CLOUDS, "query"):
        axes = {"query": 4, "key": 4, "query_mask": 2, "key_mask": 2}
        clouds = [[one for x in sown[name] for one in _stack(x, n)] for name, n in axes.items()]
        found.update(_named(path, [Clouds(*call) for call in zip(*clouds, strict=True)]))
    return found


def cloud_mmd(
    variables: Mapping[str, Any],
    *,
    bandwidth: float = 1.0,
    sample_mask: Bool[Array, "B"] | None = None,
) -> dict[str, Float[Array, "H"]]:
    """MMD between queries and keys of every attention and head: the paper's yardstick.

    It measures any model, also one that was trained without alignment (`method="none"`).

    Args:
      variables: as of `alignment_clouds`.
      bandwidth: of the Gaussian kernel.
      sample_mask: bool `[B]`, False for rows that only fill up the batch; None counts all.

    Returns:
      As `alignment_table`: squared MMD (see `divergences.maximum_mean_discrepancy`), mean over
      samples. The paper's figure is the sum of all entries.

    Raises:
      ValueError: when nothing was sown, or the mask's shape is not `[B]`.

    Example:
      >>> x, mask = jnp.ones((3, 5, 2, 4)), jnp.ones((3, 5), bool)
      >>> call = {"query": (x,), "key": (x,), "query_mask": (mask,), "key_mask": (mask,)}
      >>> sown = {"alignment_clouds": {"layer_0": call}}
      >>> {name: heads.shape for name, heads in cloud_mmd(sown).items()}
      {'layer_0': (2,)}
    """
    result = {}
    for name, (query, key, query_mask, key_mask) in alignment_clouds(variables).items():
        value = divergences.maximum_mean_discrepancy(
            query, key, query_mask=query_mask, key_mask=key_mask, bandwidth=bandwidth
        )
        valid = jnp.any(query_mask, axis=1) & jnp.any(key_mask, axis=1)
        valid = of_samples(valid, sample_mask)
        result[name] = numerics.masked_mean(value, valid[:, None], axis=0)
    return result


def strip_alignment(params: Any) -> Any:
    """The parameters of the plain model: the alignment networks left out, all else untouched.

    Args:
      params: the "params" collection of a model with alignment, or a list or tuple of such trees.

    Returns:
      A new tree without the alignment networks. Trees without any come back as they are.

    Example:
      >>> strip_alignment({"query": 1, "alignment": {"critic": 2}})
      {'query': 1}
    """
    if hasattr(params, "sown"):
        raise TypeError("strip_alignment() takes a tree; of an NNX model, `model` is the original.")
    if isinstance(params, list | tuple):
        stripped = [strip_alignment(child) for child in params]
        return type(params)(*stripped) if hasattr(params, "_fields") else type(params)(stripped)
    if not isinstance(params, Mapping):
        return params
    return {
        name: strip_alignment(child)
        for name, child in params.items()
        if not _holds_networks(name, child)
    }


def merge_parameters(initialised: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that you have, over those that the `init` of an aligned model makes.

    What is kept of the initialised ones are the alignment networks, unless yours have some too.

    Args:
      initialised: the "params" collection, or all variables, of an aligned model.
      own: the same of the model without alignment, such as trained or pretrained ones.

    Returns:
      A new tree of the first one's shape.

    Raises:
      ValueError: if a parameter is missing in one of them, beside the alignment networks, or has
        another shape there; names it.

    Example:
      >>> merge_parameters({"query": 0, "alignment": {"critic": 2}}, {"query": 1})
      {'query': 1, 'alignment': {'critic': 2}}
    """
    into, given, needed = (
        traverse_util.flatten_dict(flax.core.unfreeze(dict(tree)))
        for tree in (initialised, own, strip_alignment(initialised))
    )
    missing, unknown = needed.keys() - given.keys(), given.keys() - into.keys()
    for paths, what in ((missing, "lack"), (unknown, "hold, and the model does not,")):
        if paths:
            names = sorted("/".join(map(str, path)) for path in paths)
            shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
            raise ValueError(
                f"Your parameters {what} {shown}: they are not this model's. Pass both as "
                "trees of the same kind, either the collections 'params' or all variables."
            )
    for path, value in given.items():
        if jnp.shape(value) != jnp.shape(into[path]):
            raise ValueError(
                f"Your parameter {'/'.join(map(str, path))} has shape {jnp.shape(value)}, the "
                f"model's {jnp.shape(into[path])}."
            )
    return traverse_util.unflatten_dict(into | given)


def label_parameters(params: Any) -> Any:
    """Names each parameter's group, for `optax.multi_transform`.

    Args:
      params: the "params" collection of a model with alignment, or the state of an NNX model; also
        inside other trees, such as the pair of a function's parameters and its networks.

    Returns:
      A tree of the same shape: "alignment" for the parameters of alignment networks, "model" for
      those that a plain model has as well.

    Example:
      >>> label_parameters(({"query": 1}, {"alignment": {"critic": 2}}))
      ({'query': 'model'}, {'alignment': {'critic': 'alignment'}})
    """
    if hasattr(params, "sown"):
        raise TypeError("label_parameters() takes a tree; of an NNX model, nnx.state(model).")

    def label_of(path: tuple[Any, ...], _: Any) -> str:
        names = [str(getattr(key, "key", "")) for key in path]
        owned = any(_is_owned(a) and b in _NETWORKS for a, b in itertools.pairwise(names))
        return "alignment" if owned else "model"

    return jax.tree_util.tree_map_with_path(label_of, params)


def _holds_networks(name: str, child: Any) -> bool:
    """Whether this entry of a parameter tree holds alignment networks, and nothing else."""
    return _is_owned(name) and isinstance(child, Mapping) and set(child) <= _NETWORKS


def _collections(variables: Any) -> Mapping[str, Any]:
    """The collections of a Linen call; or those that an NNX model, or its popped state, holds."""
    if hasattr(variables, "sown"):
        variables = {"sown": variables.sown}
    if not isinstance(variables, Mapping):
        return _collections_within(variables)
    sown = variables.get("sown")
    if sown is None:
        return variables
    value = sown.get_value() if hasattr(sown, "get_value") else sown.value
    return value if isinstance(value, Mapping) else {}


def _collections_within(node: Any) -> dict[str, Any]:
    """The collections of the converted NNX models that another NNX model holds."""
    from flax import nnx

    children: Iterable[tuple[Any, Any]] = ()
    lists = (list, tuple, nnx.List) if hasattr(nnx, "List") else (list, tuple)
    if isinstance(node, lists):
        children = enumerate(node)
    elif isinstance(node, nnx.Module):
        children = vars(node).items()
    found: dict[str, Any] = {}
    for name, child in children:
        if not isinstance(child, Mapping):
            for collection, tree in _collections(child).items():
                found.setdefault(collection, {})[str(name)] = tree
    return found


def _is_owned(name: str) -> bool:
    """Whether an alignment module has this name inside its attention."""
    return name == NAME or bool(re.fullmatch(rf"{NAME}_\d+", name))


def _leaves(
    variables: Mapping[str, Any], collection: str, leaf: str
) -> list[tuple[str, Mapping[str, tuple[Array, ...]]]]:
    """The path of every attention that sowed, and what its alignment module sowed."""

    def walk(node: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Any]:
        if isinstance(node.get(leaf), tuple):
            owner = path[:-1] if path and _is_owned(path[-1]) else path
            # A module with several attentions numbers them: alignment, alignment_1, ...
            number = path[-1][len(NAME) + 1 :] if path and owner != path else ""
            yield "/".join(owner) + (f":{number}" if number else ""), node
            return
        for name in sorted(node, key=natural):
            if isinstance(node[name], Mapping):
                yield from walk(node[name], (*path, name))

    sown = _collections(variables)
    found = list(walk(sown.get(collection, {}), ()))
    if not found and isinstance(variables, tuple):
        raise TypeError(
            f"Expected what was sown, got a tuple of {len(variables)}. model.apply(..., "
            f"mutable=[{collection!r}]) returns two things: outputs, sown = model.apply(...); pass "
            "the second."
        )
    if not found:
        raise ValueError(
            f"No {collection!r} collection, so nothing to read. Pass what model.apply(..., "
            f"mutable=[{collection!r}]) returns, or an NNX model after a call in train mode. If it "
            "is empty: is there alignment in the model, is its method 'none', do the patterns of "
            "layers fit, and do nn.scan and nn.vmap name the collection in variable_axes?"
        )
    return found


def natural(name: str) -> list[tuple[str, int]]:
    """Sorts layer_2 before layer_10."""
    return [(text, int(number or -1)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _sown(
    variables: Mapping[str, Any], sample_mask: Array | None
) -> Iterator[tuple[str, Float[Array, "L B H"], Bool[Array, "L B"]]]:
    """Per attention: its path, and divergence and validity stacked over its calls."""
    for path, calls in _leaves(variables, NAME, "divergence"):
        divergence = jnp.concatenate([_stack(x, 2) for x in calls["divergence"]])
        valid = jnp.concatenate([_stack(x, 1) for x in calls["valid"]])
        yield path, divergence, of_samples(valid, sample_mask)


def _stack(x: Array, axes: int) -> Array:
    """One leading axis in front of the last `axes`: nn.scan and nn.vmap may have put several."""
    return x.reshape(-1, *x.shape[x.ndim - axes :])


def of_samples(valid: Bool[Array, "*L B"], sample_mask: Any) -> Bool[Array, "*L B"]:
    """What is valid of the samples that the mask `[B]` counts, of all if it is None.

    Raises:
      ValueError: the mask's shape is not `[B]`.
      TypeError: it holds fractions, as weights would be.
    """
    if sample_mask is None:
        return valid
    sample_mask = jnp.asarray(sample_mask)
    if jnp.issubdtype(sample_mask.dtype, jnp.inexact):
        raise TypeError(f"sample_mask must be bool (True = counts), got {sample_mask.dtype}.")
    if sample_mask.shape != valid.shape[-1:]:
        raise ValueError(
            f"sample_mask must have shape {valid.shape[-1:]}, one entry per sample, "
            f"got {sample_mask.shape}."
        )
    return valid & sample_mask.astype(bool)


def _named(path: str, per_call: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    per_call = list(per_call)
    for number, value in enumerate(per_call):
        yield path if len(per_call) == 1 else f"{path}#{number}", value
