"""Alignment of the attentions that the finder finds, whatever library the model is written in."""

import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from align_jax import finder, numerics
from align_jax.alignment import CLOUDS, NAME, Alignment
from align_jax.config import PLAIN, AlignmentConfig
from align_jax.finder import Part, Steps

# The names of parameters in a tree, without the wrappers that frameworks put around arrays.
Path = tuple[str, ...]

ROOT = "(the model)"  # the name, for people, of an attention of the outermost module


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function of arrays, traced for arguments of certain shapes, and its attentions."""

    jaxpr: Any
    found: finder.Found  # its attentions, and what cannot be aligned
    # For each attention, where its alignment stands in trees: the path of its module, and
    # "alignment", or "alignment_1" and so on where a module has several attentions.
    places: tuple[Path, ...]
    unflatten: Callable[[Sequence[Array]], Any]  # makes the function's outputs of the program's


def trace(
    function: Callable[..., Any], arguments: Sequence[Any], parameters: Sequence[int | None]
) -> Traced:
    """Traces a function, for trees of arrays or of their shapes, and finds its attentions.

    Of each argument `parameters` has None if it is data; if it holds parameters, other state or
    random keys, how many of the first names of their paths belong to no module.
    """
    structure: list[Callable[[Sequence[Array]], Any]] = []

    def flat(*arguments: Any) -> list[Array]:
        arrays, put_back = split_arrays(function(*arguments), "returns")
        structure[:] = [put_back]
        return arrays

    jaxpr = jax.make_jaxpr(flat)(*arguments)
    inputs = [
        finder.Input(skipped is None, () if skipped is None else path_names(path)[skipped:])
        for argument, skipped in zip(arguments, parameters, strict=True)
        for path, _ in jax.tree_util.tree_flatten_with_path(argument)[0]
    ]
    try:
        found = finder.find(jaxpr, inputs)
    except ZeroDivisionError:  # axes are told apart by their sizes
        given = [x.shape for x, of in zip(jaxpr.in_avals, inputs, strict=True) if of.data]
        raise ValueError(f"No axis may be empty; the inputs have the shapes {given}.") from None
    return Traced(jaxpr, found, _places(found.sites), structure[0])


def split_arrays(
    tree: Any, verb: str = "is given"
) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The arrays of a tree, and a function that puts others in their place.

    Raises:
      TypeError: for an object that hides arrays from JAX, which the model `verb`.
    """
    leaves, structure = jax.tree.flatten(tree)
    for leaf in leaves:
        if any(isinstance(value, jax.Array) for value in getattr(leaf, "__dict__", {}).values()):
            raise TypeError(
                f"The model {verb} a {type(leaf).__name__}, whose arrays JAX cannot see. Make it a "
                "pytree, as with flax.struct.dataclass or jax.tree_util.register_dataclass."
            )
    own = [hasattr(leaf, "dtype") and hasattr(leaf, "shape") for leaf in leaves]
    others = [None if mine else leaf for leaf, mine in zip(leaves, own, strict=True)]

    def put_back(arrays: Sequence[Any]) -> Any:
        waiting = iter(arrays)
        filled = [next(waiting) if mine else x for x, mine in zip(others, own, strict=True)]
        return jax.tree.unflatten(structure, filled)

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


def check(traced: Traced, config: AlignmentConfig, allow_missing: Sequence[str], what: str) -> None:
    """Raises if an attention is left out that nobody has said may be."""
    missed = [
        one
        for one in traced.found.missed
        if _selected(config, one.name)
        and not any(re.search(pattern, one.name or ROOT) for pattern in allow_missing)
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
    if not names:
        raise ValueError(
            f"{what} has no attention: no softmax of a product of queries and keys that weighs "
            "values. For attention of another kind, call align_jax.Alignment on its queries and "
            "keys inside the attention module."
        )
    if not any(_selected(config, name) for name in names):
        raise ValueError(
            f"AlignmentConfig.layers {config.layers} matches no attention of "
            f"{what.replace('The', 'the', 1)}. Their names, as the patterns see them: "
            f"{', '.join(f'{n}/' for n in dict.fromkeys(names))}."
        )


def init_networks(traced: Traced, config: AlignmentConfig, rng: Array) -> dict[str, Any]:
    """Parameters of the networks of all attentions, as one tree; empty where there are none.

    The same key gives each attention the same parameters, whatever others there are.
    """
    tree: dict[Path, Any] = {}
    for site, place in zip(traced.found.sites, traced.places, strict=True):
        if place in tree or not _selected(config, site.name):
            continue
        module = Alignment(dataclasses.replace(config, layers=None))
        vectors = jnp.zeros((1, 1, site.sizes[Part.HEAD], site.sizes[Part.FEATURE]))

        def init(key: Array, module: Any = module, vectors: Array = vectors) -> Any:
            return module.init(key, vectors, vectors).get("params", {})

        key = jax.random.fold_in(rng, zlib.crc32("/".join(place).encode()) % 2**31)
        for length, steps in reversed(site.scans):
            if steps == Steps.LAYERS:
                init = _stacked(init, length)  # type: ignore[assignment]
        tree[place] = init(key)
    return traverse_util.unflatten_dict({place: params for place, params in tree.items() if params})


def run(
    traced: Traced,
    config: AlignmentConfig,
    arguments: Sequence[Any],
    networks: Mapping[str, Any],
    collections: Sequence[str],
    rng: Array | None,
) -> tuple[Any, dict[str, Any]]:
    """Runs the program, and what `Alignment` sows for each of its attentions.

    The networks, of `init_networks`, may be part of a larger tree; without an `rng`, all tokens are
    compared. Returns the function's outputs, and the collections that were asked for.
    """
    names = (collections,) if isinstance(collections, str) else tuple(collections)
    for name in set(names) - {NAME, CLOUDS}:
        raise ValueError(f"collections holds {name!r}; expected {NAME!r} or {CLOUDS!r}.")
    sites = traced.found.sites
    whole, plain = dataclasses.replace(config, layers=None), AlignmentConfig(PLAIN)
    modules = [Alignment(whole if _selected(config, x.name) else plain) for x in sites]
    given = []
    for number, (site, place) in enumerate(zip(sites, traced.places, strict=True)):
        params = _get(networks, place)
        key = None if rng is None else jax.random.fold_in(rng, number)
        lengths = tuple(length for length, _ in site.scans)
        if key is not None and lengths:
            key = jax.random.split(key, lengths)
        for axis, (length, steps) in enumerate(site.scans):
            if steps != Steps.LAYERS:
                params = jax.tree.map(functools.partial(_repeated, axis, length), params)
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
            mutable=list(names),
            rngs=None if key is None else {NAME: key},
        )
        return sown

    results, visited = finder.run(
        traced.jaxpr, jax.tree.leaves(list(arguments)), sites, visit, given
    )
    tree: dict[Path, Any] = {}
    for number, (site, place) in enumerate(zip(sites, traced.places, strict=True)):
        for collection, leaves in visited[number].items():
            merged = jax.tree.map(functools.partial(_samples_merged, site.scans), dict(leaves))
            for leaf, sown in merged.items():
                path = (collection, *place, leaf)
                tree[path] = (*tree.get(path, ()), *sown)
    return traced.unflatten(results), traverse_util.unflatten_dict(tree)


def _places(sites: Sequence[finder.Site]) -> tuple[Path, ...]:
    taken: dict[Path, dict[Any, int]] = {}
    places = []
    for number, site in enumerate(sites):
        path = tuple(site.name.split("/")) if site.name else ()
        # Calls of one attention share its networks; what has no parameters is told by its place.
        same = site.calls if site.calls != (None, None) else number
        attention = same, site.sizes[Part.HEAD], site.sizes[Part.FEATURE]
        others = taken.setdefault(path, {})
        index = others.setdefault(attention, len(others))
        places.append((*path, f"{NAME}_{index}" if index else NAME))
    return tuple(places)


def _selected(config: AlignmentConfig, name: str) -> bool:
    return config.selects(tuple(name.split("/")))


def patterns_of_missing(allow_missing: bool | Sequence[str]) -> tuple[str, ...]:
    """Patterns of the names of what may be left out; True is one that fits any name."""
    if isinstance(allow_missing, bool):
        return ("",) if allow_missing else ()
    numerics.check_patterns("allow_missing", allow_missing)
    return tuple(allow_missing)


def _stacked(init: Callable[[Array], Any], length: int) -> Callable[[Array], Any]:
    """One set of parameters for each of so many layers."""
    return lambda key: jax.vmap(init)(jax.random.split(key, length))


def _repeated(axis: int, length: int, x: Array) -> Array:
    x = jnp.expand_dims(x, axis)
    return jnp.broadcast_to(x, (*x.shape[:axis], length, *x.shape[axis + 1 :]))


def _samples_merged(scans: Sequence[tuple[int, Steps]], x: Array) -> Array:
    """Where the steps of a scan are samples, they come before those of a step, as one axis."""
    mine = [i for i, (_, steps) in enumerate(scans) if steps == Steps.SAMPLES]
    others = [i for i in range(len(scans)) if i not in mine]
    depth = len(scans)
    x = x.transpose(*others, *mine, *range(depth, x.ndim))
    return x.reshape(*x.shape[: len(others)], -1, *x.shape[depth + 1 :]) if mine else x


def _get(tree: Any, place: Path) -> Any:
    for name in place:
        tree = tree.get(name, {}) if isinstance(tree, Mapping) else {}
    return tree
