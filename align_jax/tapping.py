"""Alignment of the attentions that the finder finds, whatever library the model is written in."""

import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from align_jax import finder
from align_jax.alignment import CLOUDS, NAME, Alignment
from align_jax.config import PLAIN, AlignmentConfig
from align_jax.finder import Part, Steps

# The names of parameters in a tree, without the wrappers that frameworks put around arrays.
Path = tuple[str, ...]

ROOT = "(the model)"  # the name, for people, of an attention of the outermost module


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function of arrays, traced for arguments of certain shapes, and its attentions.

    Attributes:
      jaxpr: the program.
      found: its attentions, and what cannot be aligned.
      places: for each attention, where its alignment stands in trees: the path of its module, and
        "alignment", or "alignment_1" and so on where a module has several attentions.
      unflatten: makes the function's outputs of the program's.
    """

    jaxpr: Any
    found: finder.Found
    places: tuple[Path, ...]
    unflatten: Callable[[Sequence[Array]], Any]


def trace(
    function: Callable[..., Any], arguments: Sequence[Any], parameters: Sequence[int | None]
) -> Traced:
    """Traces a function and finds its attentions.

    Args:
      function: takes the arguments; may return anything.
      arguments: trees of arrays, or of their shapes.
      parameters: for each argument None if it is data; if it holds parameters, other state or
        random keys, how many of the first names of their paths belong to no module.
    """
    structure: list[Any] = []

    def flat(*arguments: Any) -> list[Array]:
        leaves, tree = jax.tree.flatten(function(*arguments))
        _check_leaves(leaves, "returns")
        arrays = [leaf for leaf in leaves if _is_array(leaf)]
        fixed = [None if _is_array(leaf) else leaf for leaf in leaves]
        structure[:] = [tree, fixed, [_is_array(leaf) for leaf in leaves]]
        return arrays

    jaxpr = jax.make_jaxpr(flat)(*arguments)
    tree, fixed, is_array = structure

    def unflatten(results: Sequence[Array]) -> Any:
        arrays = iter(results)
        leaves = [next(arrays) if own else x for own, x in zip(is_array, fixed, strict=True)]
        return jax.tree.unflatten(tree, leaves)

    inputs = [
        finder.Input(skipped is None, () if skipped is None else path_names(path)[skipped:])
        for argument, skipped in zip(arguments, parameters, strict=True)
        for path, _ in jax.tree_util.tree_flatten_with_path(argument)[0]
    ]
    found = finder.find(jaxpr, inputs)
    return Traced(jaxpr, found, _places(found.sites), unflatten)


def split_arrays(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The arrays among the arguments of a call, and a function that puts others in their place."""
    leaves, tree = jax.tree.flatten((tuple(args), dict(kwargs)))
    _check_leaves(leaves, "is given")
    own = [_is_array(leaf) for leaf in leaves]

    def put_back(arrays: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        waiting = iter(arrays)
        return jax.tree.unflatten(
            tree, [next(waiting) if mine else x for mine, x in zip(own, leaves, strict=True)]
        )

    return [leaf for leaf, mine in zip(leaves, own, strict=True) if mine], put_back


def path_names(path: Sequence[Any]) -> Path:
    """The names along a path in a tree: keys and numbers, split where a key is a path itself."""
    names = []
    for key in path:
        name = getattr(key, "key", getattr(key, "idx", None))
        if name is None:
            name = getattr(key, "name", "")
            if name in ("value", "raw_value", "names", ""):
                continue  # of a box around the array
        names += [part for part in str(name).split("/") if part not in ("", "~")]
    return tuple(names)


def check(
    traced: Traced,
    config: AlignmentConfig,
    allow_missing: bool | Sequence[str],
    what: str,
) -> None:
    """Raises if an attention is left out that nobody has said may be."""
    missed = [
        one
        for one in traced.found.missed
        if _selected(config, one.name) and not _allowed(allow_missing, one.name)
    ]
    if missed:
        lines = "\n".join(f"  {one.name or ROOT}: {one.reason}" for one in missed)
        raise ValueError(
            f"{what} has attentions that cannot be aligned, {len(missed)} beside "
            f"{len(traced.found.sites)} that can:\n"
            f"{lines}\nTo leave them out, name the others in AlignmentConfig.layers, or these in "
            "allow_missing=(...); allow_missing=True leaves out whatever cannot be aligned. "
            "`attention_report` lists all."
        )
    names = [site.name for site in traced.found.sites]
    if not names and traced.found.missed:
        reasons = ", ".join(f"{one.name or ROOT}: {one.reason}" for one in traced.found.missed)
        raise ValueError(f"{what} has no attention that can be aligned ({reasons}).")
    if names and not any(_selected(config, name) for name in names):
        raise ValueError(
            f"AlignmentConfig.layers {config.layers} matches no attention of {_lower(what)}. Their "
            f"names, as the patterns see them: {', '.join(f'{n}/' for n in dict.fromkeys(names))}."
        )
    if not traced.found.sites:
        raise ValueError(
            f"{what} has no attention: no softmax of a product of queries and keys that weighs "
            "values. For attention of another kind, call align_jax.Alignment on its queries and "
            "keys inside the attention module."
        )


def init_networks(traced: Traced, config: AlignmentConfig, rng: Array) -> dict[str, Any]:
    """Parameters of the networks of all attentions, as one tree; empty where there are none.

    Args:
      traced: the program.
      config: what to align, and how.
      rng: the same key gives each attention the same parameters, whatever others there are.
    """
    tree: dict[str, Any] = {}
    made = set()
    for site, place in zip(traced.found.sites, traced.places, strict=True):
        if place in made or not _selected(config, site.name):
            continue
        made.add(place)
        heads, features = site.sizes[Part.HEAD], site.sizes[Part.FEATURE]
        module = Alignment(dataclasses.replace(config, layers=None))
        vectors = jnp.zeros((1, 1, heads, features))

        init: Callable[[Array], Any] = functools.partial(_init, module, vectors)
        key = jax.random.fold_in(rng, zlib.crc32("/".join(place).encode()) % 2**31)
        for length, steps in reversed(site.scans):
            if steps == Steps.LAYERS:
                init = _stacked(init, length)
        params = init(key)
        if params:
            _put(tree, place, params)
    return tree


def run(
    traced: Traced,
    config: AlignmentConfig,
    arguments: Sequence[Any],
    networks: Mapping[str, Any],
    collections: Sequence[str],
    rng: Array | None,
) -> tuple[Any, dict[str, Any]]:
    """Runs the program, and what `Alignment` sows for each of its attentions.

    Args:
      traced: the program.
      config: what to align, and how.
      arguments: as `trace` got them.
      networks: of `init_networks`; may be a larger tree.
      collections: which of "alignment" and "alignment_clouds" to sow.
      rng: for `AlignmentConfig.tokens`; None for all tokens.

    Returns:
      The function's outputs, and the collections.
    """
    sites = traced.found.sites
    leaves_in = jax.tree.leaves(list(arguments))
    modules = [
        Alignment(
            dataclasses.replace(config, layers=None)
            if _selected(config, site.name)
            else AlignmentConfig(PLAIN)
        )
        for site in sites
    ]
    given = []
    for number, (site, place) in enumerate(zip(sites, traced.places, strict=True)):
        params = _get(networks, place)
        key = None if rng is None else jax.random.fold_in(rng, number)
        lengths = tuple(length for length, _ in site.scans)
        if key is not None and lengths:
            key = jax.random.split(key, lengths)
        for axis, (length, steps) in enumerate(site.scans):
            if steps != Steps.LAYERS:
                params = jax.tree.map(_repeated(axis, length), params)
        given.append((params, key))

    def visit(number: int, given: Any, values: Mapping[Any, Array]) -> Any:
        params, key = given
        query, key_vectors, query_mask, key_mask = sites[number].arranged(values)
        _, sown = modules[number].apply(
            {"params": params},
            query,
            key_vectors,
            query_mask=query_mask,
            key_mask=key_mask,
            mutable=list(collections),
            rngs=None if key is None else {NAME: key},
        )
        return sown

    results, visited = finder.run(traced.jaxpr, leaves_in, sites, visit, given)
    tree: dict[str, Any] = {}
    for number, (site, place) in enumerate(zip(sites, traced.places, strict=True)):
        for collection, leaves in visited[number].items():
            merged = jax.tree.map(_merge_samples(site.scans), dict(leaves))
            target = tree.setdefault(collection, {})
            before = _get(target, place)
            _put(target, place, {n: (*before.get(n, ()), *x) for n, x in merged.items()})
    return traced.unflatten(results), tree


def wanted(names: Sequence[str] | str) -> tuple[str, ...]:
    """Checks the names of collections to sow."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in (NAME, CLOUDS):
            raise ValueError(f"collections holds {name!r}; expected {NAME!r} or {CLOUDS!r}.")
    return names


def _places(sites: Sequence[finder.Site]) -> tuple[Path, ...]:
    taken: dict[Path, list[Any]] = {}
    places = []
    for number, site in enumerate(sites):
        path = tuple(site.name.split("/")) if site.name else ()
        # Calls of one attention share its networks; what has no parameters is told by its place.
        same = site.calls if site.calls != (None, None) else number
        attention = same, site.sizes[Part.HEAD], site.sizes[Part.FEATURE]
        others = taken.setdefault(path, [])
        if attention not in others:
            others.append(attention)
        index = others.index(attention)
        places.append((*path, f"{NAME}_{index}" if index else NAME))
    return tuple(places)


def _selected(config: AlignmentConfig, name: str) -> bool:
    return config.selects(tuple(name.split("/")))


def names_of_missing(allow_missing: bool | Sequence[str]) -> bool | tuple[str, ...]:
    """Checks what may be left out."""
    if isinstance(allow_missing, bool):
        return allow_missing
    if isinstance(allow_missing, str):
        raise ValueError(
            f"allow_missing must be True, False or a tuple of patterns, got the string "
            f"{allow_missing!r}."
        )
    return tuple(allow_missing)


def _allowed(allow_missing: bool | Sequence[str], name: str) -> bool:
    if isinstance(allow_missing, bool):
        return allow_missing
    return any(re.search(pattern, name or ROOT) for pattern in allow_missing)


def _lower(what: str) -> str:
    return what[0].lower() + what[1:]


def _init(module: Alignment, vectors: Array, key: Array) -> Any:
    return module.init(key, vectors, vectors).get("params", {})


def _stacked(init: Callable[[Array], Any], length: int) -> Callable[[Array], Any]:
    """One set of parameters for each of so many layers."""
    return lambda key: jax.vmap(init)(jax.random.split(key, length))


def _repeated(axis: int, length: int) -> Callable[[Array], Array]:
    def repeat(x: Array) -> Array:
        x = jnp.expand_dims(x, axis)
        return jnp.broadcast_to(x, (*x.shape[:axis], length, *x.shape[axis + 1 :]))

    return repeat


def _merge_samples(scans: Sequence[tuple[int, Steps]]) -> Callable[[Array], Array]:
    """Where the steps of a scan are samples, they come before those of a step, as one axis."""
    mine = [i for i, (_, steps) in enumerate(scans) if steps == Steps.SAMPLES]
    others = [i for i in range(len(scans)) if i not in mine]

    def merge(x: Array) -> Array:
        if not mine:
            return x
        depth = len(scans)
        x = x.transpose(*others, *mine, *range(depth, x.ndim))
        shape = x.shape
        samples = math.prod(shape[len(others) : depth + 1])
        return x.reshape(*shape[: len(others)], samples, *shape[depth + 1 :])

    return merge


def _put(tree: dict[str, Any], place: Path, value: Any) -> None:
    for name in place[:-1]:
        tree = tree.setdefault(name, {})
    tree[place[-1]] = value


def _get(tree: Mapping[str, Any], place: Path) -> Any:
    for name in place:
        if not isinstance(tree, Mapping) or name not in tree:
            return {}
        tree = tree[name]
    return tree


def _check_leaves(leaves: Sequence[Any], verb: str) -> None:
    """Raises for an object that hides arrays from JAX."""
    for leaf in leaves:
        if any(isinstance(value, jax.Array) for value in getattr(leaf, "__dict__", {}).values()):
            raise TypeError(
                f"The model {verb} a {type(leaf).__name__}, whose arrays JAX cannot see. Make it a "
                "pytree, as with flax.struct.dataclass or jax.tree_util.register_dataclass."
            )


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")
