"""Small programs, with and without attention, as people write them.

Each is a function of parameters and data that returns its outputs and, for every attention in it in
turn, the clouds that are to be found: queries `[B, N, H, D]`, keys `[B, M, H, D]`, and masks.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

B, N, M, H, D = 2, 6, 7, 3, 4
E = H * D
VALID = np.arange(N) < np.array([[N], [4]])
ALL = np.ones((B, N), bool)


class Clouds(typing.NamedTuple):
    """What is to be found; masks are None where all tokens take part."""

    query: jax.Array
    key: jax.Array
    query_mask: np.ndarray | None = None
    key_mask: np.ndarray | None = None


def parameters():
    """Projections of queries, keys and values, and of the outputs."""
    rng = np.random.default_rng(0)
    shapes = {"query": (E, H, D), "key": (E, H, D), "value": (E, H, D), "out": (H, D, E)}
    return {
        name: {"kernel": jnp.asarray(rng.normal(size=shape) / E**0.5, jnp.float32)}
        for name, shape in shapes.items()
    }


def data():
    """Tokens, and a memory of other tokens."""
    rng = np.random.default_rng(1)
    shapes = (B, N, E), (B, M, E)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def project(p, name, x):
    """Projected tokens, [..., N, H, D]."""
    return jnp.einsum("...ne,ehd->...nhd", x, p[name]["kernel"])


def projections(p, x):
    """Queries, keys and values of the same tokens."""
    return (project(p, name, x) for name in ("query", "key", "value"))


def attend(q, k, v, mask=None, bias=None):
    """Attention as flax writes it."""
    logits = jnp.einsum("...nhd,...mhd->...hnm", q / jnp.sqrt(D), k)
    if bias is not None:
        logits += bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    return jnp.einsum("...hnm,...mhd->...nhd", jax.nn.softmax(logits), v)


ATTENTIONS = {}
OTHERS = {}
REFUSED = {}


def attention(function):
    """Notes a program with attention."""
    ATTENTIONS[function.__name__] = function
    return function


def other(function):
    """Notes a program without attention."""
    OTHERS[function.__name__] = function
    return function


def refused(reason):
    """Notes a program with an attention that cannot be aligned."""

    def note(function):
        REFUSED[function.__name__] = function, reason
        return function

    return note


@attention
def plain(p, x, _):
    q, k, v = projections(p, x)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def cross(p, x, memory):
    q, k, v = project(p, "query", x), project(p, "key", memory), project(p, "value", memory)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def keys_times_queries(p, x, _):
    q, k, v = projections(p, x)
    weights = jax.nn.softmax(jnp.einsum("bmhd,bnhd->bhmn", k, q), axis=2)
    return jnp.einsum("bhmn,bmhd->bnhd", weights, v), [Clouds(q, k)]


@attention
def heads_before_tokens(p, x, _):
    q, k, v = (
        (x @ p[name]["kernel"].reshape(E, E)).reshape(B, N, H, D).transpose(0, 2, 1, 3)
        for name in ("query", "key", "value")
    )
    outputs = jax.nn.softmax((q * D**-0.5) @ k.swapaxes(-1, -2)) @ v
    return outputs, [Clouds(q.swapaxes(1, 2), k.swapaxes(1, 2))]


@attention
def heads_merged_with_samples(p, x, _):
    q, k, v = (a.transpose(0, 2, 1, 3).reshape(B * H, N, D) for a in projections(p, x))
    outputs = jax.nn.softmax(q @ k.mT) @ v
    back = (a.reshape(B, H, N, D).swapaxes(1, 2) for a in (q, k))
    return outputs, [Clouds(*back)]


@attention
def time_first(p, x, _):
    q, k, v = projections(p, x.swapaxes(0, 1).swapaxes(0, 1))
    q, k, v = (a.swapaxes(0, 1) for a in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("nbhd,mbhd->bhnm", q, k))
    outputs = jnp.einsum("bhnm,mbhd->nbhd", weights, v)
    return outputs, [Clouds(q.swapaxes(0, 1), k.swapaxes(0, 1))]


@attention
def mask_of_keys(p, x, _):
    q, k, v = projections(p, x)
    return attend(q, k, v, VALID[:, None, None]), [Clouds(q, k, VALID, VALID)]


@attention
def mask_of_keys_across(p, x, memory):
    q, k, v = project(p, "query", memory), project(p, "key", x), project(p, "value", x)
    clouds = Clouds(q, k, np.ones((B, M), bool), VALID)
    return attend(q, k, v, VALID[:, None, None]), [clouds]


@attention
def mask_added(p, x, _):
    q, k, v = projections(p, x)
    bias = (1.0 - jnp.asarray(VALID[:, None, None], x.dtype)) * -10000.0
    return attend(q, k, v, bias=bias), [Clouds(q, k, VALID, VALID)]


@attention
def mask_of_infinity(p, x, _):
    q, k, v = projections(p, x)
    bias = jnp.where(VALID, 0.0, -jnp.inf)[:, None, None]
    return attend(q, k, v, bias=bias), [Clouds(q, k, VALID, VALID)]


@attention
def mask_in_the_softmax(p, x, _):
    q, k, v = projections(p, x)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k)
    weights = jax.nn.softmax(logits, where=VALID[:, None, None])
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v), [Clouds(q, k, VALID, VALID)]


@attention
def mask_times_exponentials(p, x, _):
    q, k, v = projections(p, x)
    weights = jnp.exp(jnp.einsum("bnhd,bmhd->bhnm", q, k)) * VALID[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v), [Clouds(q, k, VALID, VALID)]


@attention
def mask_with_a_learnt_bias(p, x, _):
    q, k, v = projections(p, x)
    bias = p["out"]["kernel"][None, :, :1, :N] + jnp.where(VALID[:, None, None], 0.0, -1e9)
    return attend(q, k, v, bias=bias), [Clouds(q, k, VALID, VALID)]


@attention
def causal_and_padded(p, x, _):
    q, k, v = projections(p, x)
    mask = np.tril(np.ones((N, N), bool)) & VALID[:, None, None]
    return attend(q, k, v, mask), [Clouds(q, k, VALID, VALID)]


@attention
def sliding(p, x, _):
    q, k, v = projections(p, x)
    places = jnp.arange(N)
    near = abs(places[:, None] - places) < 2
    return attend(q, k, v, near[None, None]), [Clouds(q, k, ALL, ALL)]


@attention
def dropout_is_no_mask(p, x, _):
    q, k, v = projections(p, x)
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k))
    keep = jax.random.bernoulli(jax.random.key(0), 0.1, weights.shape)
    weights = jnp.where(keep, weights / 0.1, 0.0)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v), [Clouds(q, k)]


@attention
def soft_cap(p, x, _):
    q, k, v = projections(p, x)
    logits = jnp.tanh(jnp.einsum("bnhd,bmhd->bhnm", q, k) / 5.0) * 5.0
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v), [Clouds(q, k)]


@attention
def sigmoid(p, x, _):
    q, k, v = projections(p, x)
    weights = jax.nn.sigmoid(jnp.einsum("bnhd,bmhd->bhnm", q, k) - np.log(N))
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v), [Clouds(q, k)]


@attention
def talking_heads(p, x, _):
    q, k, v = projections(p, x)
    mix = p["query"]["kernel"][:H, :, 0]
    logits = jnp.einsum("bhnm,hk->bknm", jnp.einsum("bnhd,bmhd->bhnm", q, k), mix)
    weights = jnp.einsum("bknm,kh->bhnm", jax.nn.softmax(logits), mix)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v), [Clouds(q, k)]


@attention
def grouped_heads(p, x, _):
    q = project(p, "query", x).reshape(B, N, 1, H, D)
    k, v = project(p, "key", x)[:, :, :1], project(p, "value", x)[:, :, :1]
    weights = jax.nn.softmax(jnp.einsum("bnkgd,bmkd->bkgnm", q, k))
    outputs = jnp.einsum("bkgnm,bmkd->bnkgd", weights, v)
    return outputs, [Clouds(q[:, :, 0], jnp.repeat(k, H, axis=2))]


@attention
def as_many_groups_as_tokens(p, x, _):
    # Four tokens, four groups of two heads, four features.
    x = x[:, :4]
    kernel = jnp.tile(p["query"]["kernel"].reshape(E, E), 3)[:, : 8 * D]
    q = (x @ kernel).reshape(B, 4, 2, 4, D)
    k, v = project(p, "key", x)[:, :, :2], project(p, "value", x)[:, :, :2]
    weights = jax.nn.softmax(jnp.einsum("bnkgd,bmkd->bkgnm", q, k))
    outputs = jnp.einsum("bkgnm,bmkd->bnkgd", weights, v)
    return outputs, [Clouds(q.reshape(B, 4, 8, D), jnp.repeat(k, 4, axis=2))]


@attention
def as_many_heads_as_samples(p, x, _):
    q, k, v = (a[:, :, :B] for a in projections(p, x))
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->hbnm", q, k))
    return jnp.einsum("hbnm,bmhd->bnhd", weights, v), [Clouds(q, k)]


@attention
def keys_repeated(p, x, _):
    q = project(p, "query", x)
    k, v = (jnp.repeat(project(p, n, x)[:, :, :1], H, axis=2) for n in ("key", "value"))
    return attend(q, k, v), [Clouds(q, k)]


@attention
def one_head_of_keys(p, x, _):
    q = project(p, "query", x)
    k, v = project(p, "key", x)[:, :, 0], project(p, "value", x)[:, :, 0]
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmd->bhnm", q, k))
    outputs = jnp.einsum("bhnm,bmd->bnhd", weights, v)
    return outputs, [Clouds(q, jnp.repeat(k[:, :, None], H, axis=2))]


def rotated(x):
    """Rotary positions."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 100.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


@attention
def rotary(p, x, _):
    q, k, v = projections(p, x)
    q, k = rotated(q), rotated(k)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def rotary_interleaved(p, x, _):
    q, k, v = projections(p, x)

    def interleaved(a):
        angles = jnp.arange(N)[:, None] * 100.0 ** (-jnp.arange(D // 2))
        cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
        even, odd = a[..., ::2], a[..., 1::2]
        pairs = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
        return pairs.reshape(a.shape)

    q, k = interleaved(q), interleaved(k)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def samples_tiled(p, x, _):
    q, k, v = projections(p, jnp.tile(x, (2, 1, 1)))
    return attend(q, k, v), [Clouds(q, k)]


@attention
def unstacked(p, x, _):
    kernels = jnp.stack([p[name]["kernel"] for name in ("query", "key", "value")], axis=1)
    q, k, v = jnp.unstack(jnp.einsum("bne,eshd->bnshd", x, kernels), axis=2)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def taken_one_by_one(p, x, _):
    kernels = jnp.stack([p[name]["kernel"] for name in ("query", "key", "value")])
    q, k, v = jnp.einsum("bne,sehd->sbnhd", x, kernels)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def kinds_between(p, x, _):
    # As a decision transformer has returns, states and actions of each time.
    tokens = jnp.stack([x, 2 * x, -x], axis=1).transpose(0, 2, 1, 3).reshape(B, 3 * N, E)
    q, k, v = projections(p, tokens)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def tokens_repeated(p, x, _):
    q, k, v = projections(p, jnp.repeat(x, 2, axis=1))
    return attend(q, k, v), [Clouds(q, k)]


@attention
def windows_by_number(p, x, _):
    places = np.arange(0, 4, 2)[:, None] + np.arange(4)
    q, k, v = projections(p, x[:, places])
    return attend(q, k, v), [Clouds(*(a.reshape(B * 2, 4, H, D) for a in (q, k)))]


@attention
def windows_of_an_order(p, x, _):
    ordered = x[:, np.array([3, 1, 2, 0, 5, 4])].reshape(B, 2, 3, E)
    q, k, v = projections(p, ordered)
    return attend(q, k, v), [Clouds(*(a.reshape(B * 2, 3, H, D) for a in (q, k)))]


@attention
def one_query_for_shared_keys(p, x, _):
    q = project(p, "query", x[:, :1])
    k, v = project(p, "key", x)[:, :, 0], project(p, "value", x)[:, :, 0]
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmd->bnhm", q, k))
    outputs = jnp.einsum("bnhm,bmd->bnhd", weights, v)
    return outputs, [Clouds(q, jnp.repeat(k[:, :, None], H, axis=2))]


@attention
def learnt_grid_of_queries(p, x, _):
    rows, columns = p["out"]["kernel"].reshape(E, E)[:2], p["value"]["kernel"].reshape(E, E)[:3]
    grid = (rows[:, None] + columns[None]).reshape(1, 6, E)
    q = project(p, "query", jnp.broadcast_to(grid, (B, 6, E)))
    k, v = project(p, "key", x), project(p, "value", x)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def weighed_entry_by_entry(p, x, _):
    q, k, v = projections(p, x)
    edges = 1.0 + x[:, :, None, :1, None] * x[:, None, :, :1, None]
    weights = jax.nn.softmax((q[:, :, None] * k[:, None] / 2 * edges).sum(-1), axis=2)
    return (weights[..., None] * v[:, None]).sum(2), [Clouds(q, k)]


@attention
def queries_updated(p, x, _):
    # As slots are, by keys that are computed once.
    k, v = project(p, "key", x), project(p, "value", x)
    slots, clouds = x[:, :2], []
    for _ in range(2):
        q = project(p, "query", slots)
        clouds.append(Clouds(q, k))
        slots = slots + jnp.einsum("bnhd,hde->bne", attend(q, k, v), p["out"]["kernel"])
    return slots, clouds


@attention
def logits_handed_on(p, x, _):
    logits, clouds = 0.0, []
    for _ in range(1):
        q, k, v = projections(p, x)
        logits = logits + jnp.einsum("bnhd,bmhd->bhnm", q, k)
        clouds.append(Clouds(q, k))
        x = x + jnp.einsum("bhnm,bmhd,hde->bne", jax.nn.softmax(logits), v, p["out"]["kernel"])
    return x, clouds


@attention
def normalised(p, x, _):
    q, k, v = projections(p, x)
    q, k = (a * jax.lax.rsqrt(jnp.mean(a**2, -1, keepdims=True)) for a in (q, k))
    return attend(q, k, v), [Clouds(q, k)]


@attention
def one_product_for_all(p, x, _):
    kernel = jnp.concatenate(
        [p[name]["kernel"].reshape(E, E) for name in ("query", "key", "value")], axis=1
    )
    q, k, v = (a.reshape(B, N, H, D) for a in jnp.split(x @ kernel, 3, axis=-1))
    return attend(q, k, v), [Clouds(q, k)]


@attention
def without_samples(p, x, _):
    q, k, v = projections(p, x[0])
    return attend(q, k, v), [Clouds(q[None], k[None])]


@attention
def mapped_over_samples(p, x, _):
    q, k, v = projections(p, x)
    return jax.vmap(attend)(q, k, v), [Clouds(q, k)]


@attention
def mapped_over_heads(p, x, _):
    def head(query, key, value):
        return jax.nn.softmax((x @ query) @ (x @ key).mT) @ (x @ value)

    kernels = (p[name]["kernel"] for name in ("query", "key", "value"))
    q, k, _ = projections(p, x)
    return jax.vmap(head, in_axes=1, out_axes=2)(*kernels), [Clouds(q, k)]


@attention
def mapped_one_by_one(p, x, _):
    def one(x):
        q, k, v = projections(p, x)
        return attend(q, k, v)

    q, k, _ = projections(p, x)
    return jax.lax.map(one, x), [Clouds(q, k)]


@attention
def windows(p, x, _):
    q, k, v = projections(p, x.reshape(B * 2, N // 2, E))
    return attend(q, k, v), [Clouds(q, k)]


@attention
def shifted_windows(p, x, _):
    q, k, v = projections(p, jnp.roll(x, 1, axis=1).reshape(B * 2, N // 2, E))
    return attend(q, k, v), [Clouds(q, k)]


@attention
def rolled_many_times(p, x, _):
    for _ in range(40):
        x = jnp.roll(x, 2, axis=1)
    q, k, v = projections(p, x)
    return attend(q, k, v, VALID[:, None, None]), [Clouds(q, k, VALID, VALID)]


@attention
def windows_first(p, x, _):
    q, k, v = projections(p, x.reshape(B, 2, N // 2, E).swapaxes(0, 1))
    clouds = (a.swapaxes(0, 1).reshape(B * 2, N // 2, H, D) for a in (q, k))
    return attend(q, k, v), [Clouds(*clouds)]


@attention
def rows_of_an_image(p, x, _):
    q, k, v = projections(p, x.reshape(B, 2, N // 2, E))
    return attend(q, k, v), [Clouds(*(a.reshape(B * 2, N // 2, H, D) for a in (q, k)))]


@attention
def pixels_of_an_image(p, x, _):
    q, k, v = projections(p, x.reshape(B, 2, N // 2, E))
    logits = jnp.einsum("byxhd,bvwhd->bhyxvw", q, k)
    weights = jax.nn.softmax(logits, axis=(-2, -1))
    outputs = jnp.einsum("bhyxvw,bvwhd->byxhd", weights, v)
    return outputs, [Clouds(*(a.reshape(B, N, H, D) for a in (q, k)))]


@attention
def patches(p, x, _):
    image = x.reshape(B, 2, N // 2, E)
    kernel = p["out"]["kernel"].reshape(1, 1, E, E)
    numbers = ("NHWC", "HWIO", "NHWC")
    tokens = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    tokens = tokens.reshape(B, N, E)
    first = jnp.broadcast_to(p["query"]["kernel"][:, 0, 0], (B, 1, E))
    tokens = jnp.concatenate([first, tokens], axis=1)
    q, k, v = projections(p, tokens)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def embedded(p, x, _):
    ids = (jnp.abs(x[:, :, 0]) * 5).astype(jnp.int32) % E
    tokens = p["query"]["kernel"].reshape(E, E)[ids] + p["key"]["kernel"].reshape(E, E)[:N]
    q, k, v = projections(p, tokens)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def learnt_queries(p, x, _):
    q = jnp.broadcast_to(project(p, "query", p["out"]["kernel"].reshape(E, E)[:4]), (B, 4, H, D))
    k, v = project(p, "key", x), project(p, "value", x)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def one_query(p, x, _):
    q = project(p, "query", x[:, :1])[:, 0]
    k, v = project(p, "key", x), project(p, "value", x)
    weights = jax.nn.softmax(jnp.einsum("bhd,bmhd->bhm", q, k))
    return jnp.einsum("bhm,bmhd->bhd", weights, v), [Clouds(q[:, None], k)]


@attention
def entry_by_entry(p, x, _):
    q, k, v = projections(p, x)
    weights = jax.nn.softmax((q[:, :, None] * k[:, None]).sum(-1), axis=2)
    return (weights[..., None] * v[:, None]).sum(2), [Clouds(q, k)]


@attention
def jax_own(p, x, _):
    q, k, v = projections(p, x)
    outputs = jax.nn.dot_product_attention(q, k, v, mask=VALID[:, None, None], is_causal=True)
    return outputs, [Clouds(q, k, VALID, VALID)]


@attention
def checkpointed(p, x, _):
    q, k, _ = projections(p, x)
    outputs = jax.checkpoint(lambda p, x: mask_of_keys(p, x, None)[0])(p, x)
    return outputs, [Clouds(q, k, VALID, VALID)]


@attention
def checkpointed_softmax(p, x, _):
    q, k, v = projections(p, x)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k)

    @jax.checkpoint
    def weigh(logits):
        return jax.nn.softmax(jnp.where(VALID[:, None, None], logits, -1e9))

    return jnp.einsum("bhnm,bmhd->bnhd", weigh(logits), v), [Clouds(q, k, VALID, VALID)]


@attention
def with_a_rule_of_its_own(p, x, _):
    q, k, v = projections(p, x)
    rule = jax.custom_vjp(attend)
    rule.defvjp(lambda *args: (attend(*args), args), lambda args, g: jax.vjp(attend, *args)[1](g))
    return jax.jit(rule)(q, k, v), [Clouds(q, k)]


@attention
def two_attentions(p, x, memory):
    outputs, first = mask_of_keys(p, x, memory)
    x = x + jnp.einsum("bnhd,hde->bne", outputs, p["out"]["kernel"])
    outputs, second = cross(p, x, memory)
    return outputs, [*first, *second]


@attention
def sink(p, x, _):
    q, k, v = projections(p, x)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k)
    logits = jnp.where(VALID[:, None, None], logits, -1e9)
    extra = jnp.broadcast_to(p["query"]["kernel"][:1, :, :1, None], (B, H, N, 1))
    weights = jax.nn.softmax(jnp.concatenate([logits, extra], axis=-1))[..., :-1]
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v), [Clouds(q, k, VALID, VALID)]


@attention
def split_between(p, x, _):
    q, k, v = projections(p, x)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k)
    first, *rest = jnp.split(jax.nn.softmax(logits), 3, axis=1)
    weights = jnp.concatenate([first, *rest], axis=1)
    outputs = jnp.einsum("bhnm,bmhd->bnhd", weights, v)
    return outputs, [Clouds(q, k)]


@attention
def difference_of_two(p, x, memory):
    q, k, v = projections(p, x)
    other = project(p, "query", x * 2), project(p, "value", x)
    first, second = (jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", *qk)) for qk in ((q, k), other))
    outputs = jnp.einsum("bhnm,bmhd->bnhd", first - 0.5 * second, v)
    return outputs, [Clouds(q, k), Clouds(*other)]


@attention
def one_key(p, x, _):
    q, k, v = project(p, "query", x), project(p, "key", x[:, :1]), project(p, "value", x[:, :1])
    return attend(q, k, v), [Clouds(q, k)]


@attention
def one_token(p, x, _):
    q, k, v = projections(p, x[:, :1])
    return attend(q, k, v), [Clouds(q, k)]


@attention
def learnt_queries_among_themselves(p, x, _):
    tokens = jnp.broadcast_to(p["out"]["kernel"].reshape(E, E)[:4], (B, 4, E))
    q, k, v = projections(p, tokens)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def learnt_queries_in_groups(p, x, _):
    latents = p["out"]["kernel"].reshape(E, E)[:5]
    q = project(p, "query", latents)[:, None]
    k, v = project(p, "key", x)[:, :, :1], project(p, "value", x)[:, :, :1]
    weights = jax.nn.softmax(jnp.einsum("nkgd,bmkd->bkgnm", q, k))
    outputs = jnp.einsum("bkgnm,bmkd->bnkgd", weights, v)
    query = jnp.broadcast_to(q[:, 0], (B, 5, H, D))
    return outputs, [Clouds(query, jnp.repeat(k, H, axis=2))]


@attention
def shifted_right(p, x, _):
    ids = (jnp.abs(x[:, :, 0]) * 5).astype(jnp.int32) % E
    ids = jnp.zeros_like(ids).at[:, 1:].set(ids[:, :-1])
    q, k, v = projections(p, p["query"]["kernel"].reshape(E, E)[ids])
    weights = jax.nn.softmax(jnp.where(VALID[:, None, None], jnp.einsum("bnhd,bmhd->bhnm", q, k),
                                       -1e9))  # fmt: skip
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v), [Clouds(q, k, VALID, VALID)]


@attention
def channels_first(p, x, _):
    image = x.reshape(B, E, 2, N // 2)
    kernel = p["out"]["kernel"].reshape(E, E, 1, 1)
    features = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME")
    q, k, v = projections(p, features.transpose(0, 2, 3, 1).reshape(B, N, E))
    return attend(q, k, v), [Clouds(q, k)]


@attention
def series_in_groups(p, x, _):
    tokens = x[:, :, 0][..., None] * p["out"]["kernel"].reshape(E, E)[0]
    q = project(p, "query", tokens)[:, :, None]
    k, v = project(p, "key", tokens)[:, :, :1], project(p, "value", tokens)[:, :, :1]
    weights = jax.nn.softmax(jnp.einsum("bnkgd,bmkd->bkgnm", q, k))
    outputs = jnp.einsum("bkgnm,bmkd->bnkgd", weights, v)
    return outputs, [Clouds(q[:, :, 0], jnp.repeat(k, H, axis=2))]


@attention
def samples_repeated(p, x, _):
    q, k, v = projections(p, jnp.repeat(x, 2, axis=0))
    return attend(q, k, v), [Clouds(q, k)]


@attention
def channels_as_samples(p, x, _):
    patches = jnp.moveaxis(x, 2, 1).reshape(B * E, 3, N // 3)
    tokens = patches @ p["out"]["kernel"].reshape(E, E)[: N // 3]
    q, k, v = projections(p, tokens)
    return attend(q, k, v), [Clouds(q, k)]


@attention
def half_precision(p, x, _):
    p, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (p, x))

    def layer(x, kernels):
        q, k, v = projections(kernels, x)
        return x, (attend(q, k, v), q, k)

    stacked = jax.tree.map(lambda a: a[None], p)
    _, (outputs, q, k) = jax.lax.scan(layer, x, stacked)
    return outputs.astype(jnp.float32), [Clouds(*(a[0].astype(jnp.float32) for a in (q, k)))]


@attention
def mask_of_what_is_blocked(p, x, _):
    q, k, v = projections(p, x)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k)
    logits = jnp.where(~VALID[:, None, None], -1e9, logits)
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v), [Clouds(q, k, VALID, VALID)]


@attention
def mask_subtracted(p, x, _):
    q, k, v = projections(p, x)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k)
    logits = logits - (1.0 - jnp.asarray(VALID, x.dtype)[:, None, None]) * 1e9
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v), [Clouds(q, k, VALID, VALID)]


@attention
def mask_of_data_after_the_softmax(p, x, _):
    q, k, v = projections(p, x)
    valid = jnp.where(x[:, :, 0] * 0 == 0, VALID, False).astype(x.dtype)
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k)) * valid[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v), [Clouds(q, k, VALID, VALID)]


@attention
def mask_of_a_smaller_one(p, x, _):
    q, k, v = projections(p, x)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k)
    logits = jnp.minimum(logits, jnp.where(VALID, jnp.inf, -1e9)[:, None, None])
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v), [Clouds(q, k, VALID, VALID)]


FIRST = np.broadcast_to(np.arange(N) < 4, (B, N))


@attention
def mask_written(p, x, _):
    q, k, v = projections(p, x)
    mask = jnp.zeros(N, bool).at[:4].set(True)
    return attend(q, k, v, mask[None, None, None]), [Clouds(q, k, FIRST, FIRST)]


@attention
def mask_padded(p, x, _):
    q, k, v = projections(p, x)
    mask = jnp.pad(jnp.ones(4, bool), (0, 2))
    return attend(q, k, v, mask[None, None, None]), [Clouds(q, k, FIRST, FIRST)]


@attention
def mask_counted(p, x, _):
    q, k, v = projections(p, x)
    mask = jnp.cumsum(jnp.ones(N)) <= 4
    return attend(q, k, v, mask[None, None, None]), [Clouds(q, k, FIRST, FIRST)]


@attention
def mask_in_relative_logits(p, x, _):
    q, k, v = projections(p, x)
    table = jnp.tile(p["key"]["kernel"][:N, 0], (N, 1, 1))
    relative = jnp.einsum("bnhd,nmd->bhnm", q, table)
    relative = relative + jnp.where(VALID[:, None, None], 0.0, -1e9)
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) + relative)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v), [Clouds(q, k, VALID, VALID)]


@attention
def scaled_before_rotation(p, x, _):
    q, k, v = projections(p, x)
    outputs = attend(rotated(q * 0.25), rotated(k), v)
    return outputs, [Clouds(rotated(q), rotated(k))]


@attention
def keys_in_reverse(p, x, _):
    q, k, v = (project(p, name, a) for name, a in
               (("query", x), ("key", x[:, ::-1]), ("value", x[:, ::-1])))  # fmt: skip
    mask = VALID[:, ::-1]
    return attend(q, k, v, mask[:, None, None]), [Clouds(q, k, ALL, mask)]


@other
def router(p, x, _):
    gates = jax.nn.softmax(x @ p["query"]["kernel"][:, 0])
    experts = jnp.einsum("bne,xef->bnxf", x, p["key"]["kernel"].transpose(2, 0, 1))
    return jnp.einsum("bnx,bnxf->bnf", gates, experts)


@other
def contrastive_loss(p, x, _):
    a, b = ((x @ p[name]["kernel"][:, 0]).mean(1) for name in ("query", "key"))
    return jnp.diagonal(jax.nn.log_softmax(a @ b.T)).mean()


@other
def graph_attention(p, x, _):
    h = project(p, "value", x)
    left, right = (jnp.einsum("bnhd,hd->bnh", h, p["key"]["kernel"][i]) for i in (0, 1))
    weights = jax.nn.softmax(jax.nn.leaky_relu(left[:, :, None] + right[:, None]), axis=2)
    return jnp.einsum("bnmh,bmhd->bnhd", weights, h)


@other
def layers(p, x, _):
    return jax.nn.sigmoid(x @ p["query"]["kernel"].reshape(E, E)) @ p["out"]["kernel"].reshape(E, E)


@other
def gated_layers(p, x, _):
    gate, value = (x @ p[name]["kernel"].reshape(E, E) for name in ("query", "key"))
    return (jax.nn.silu(gate) * value) @ p["out"]["kernel"].reshape(E, E)


@other
def pooling(p, x, _):
    weights = jax.nn.softmax(x @ p["query"]["kernel"][:, 0, :1], axis=1)
    return (weights * x).sum(1)


@other
def linear_attention(p, x, _):
    q, k, v = (jax.nn.elu(a) + 1 for a in projections(p, x))
    return jnp.einsum("bnhd,bhde->bnhe", q, jnp.einsum("bmhd,bmhe->bhde", k, v))


@other
def softplus(p, x, _):
    q, k, v = projections(p, x)
    return jax.nn.log_softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k)).sum() + v.sum()


@other
def pooling_with_normalised_weights(p, x, _):
    direction = p["query"]["kernel"][:, 0, :1]
    direction = direction * 2.0 / jnp.linalg.norm(direction)
    return (jax.nn.softmax(x @ direction, axis=1) * x).sum(1)


@other
def router_with_adapters(p, x, _):
    kernel = p["query"]["kernel"].reshape(E, E)
    gates = jax.nn.softmax(x @ (kernel + kernel[:, :2] @ kernel[:2]))
    return jnp.einsum("bne,bnf,eg->bng", gates, x, kernel)


@other
def state_space(p, x, _):
    decay = jnp.exp(jnp.einsum("bnd,ds->bnds", x, -jnp.exp(p["query"]["kernel"][:, 0])))
    update = jnp.einsum("bnd,bns->bnds", x, x[..., :D])
    _, states = jax.lax.associative_scan(
        lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (decay, update), axis=1
    )
    return jnp.einsum("bnds,bns->bnd", states, x[..., :D])


@refused("covers a part of its logits")
def mask_of_a_part(p, x, _):
    q, k, v = projections(p, x)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k)
    parts = [logits[..., :4], jnp.where(VALID[:, None, None, 4:], logits[..., 4:], -1e9)]
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(jnp.concatenate(parts, -1)), v)


@refused("sum of several products")
def two_products_added(p, x, _):
    q, k, v = projections(p, x)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k) + jnp.einsum("bnhd,bmhd->bhnm", rotated(q), v)
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v)


@refused("cannot be followed")
def joint_softmax(p, x, _):
    q, k, v = projections(p, x)
    logits = [jnp.einsum("bnhd,bmhd->bhnm", q, a) for a in (k, v * x[..., :1, None])]
    weights = jax.nn.softmax(jnp.concatenate(logits, axis=-1))
    return jnp.einsum("bhnm,bmhd->bnhd", weights, jnp.concatenate([v, v], axis=1))


@refused("cannot be followed")
def largest_logits(p, x, _):
    q, k, v = projections(p, x)
    logits, places = jax.lax.top_k(jnp.einsum("bnhd,bmhd->bhnm", q, k), 2)
    values = jnp.einsum("bhnk,bkhd->bnhd", jax.nn.softmax(logits), v[:, :2])
    return values + places.sum()


@refused("cannot be followed")
def logits_into_a_condition(p, x, _):
    q, k, v = projections(p, x)
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k)
    logits = jax.lax.cond(x.sum() > 0, lambda a: 2 * a, lambda a: a, logits)
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v)


@refused("a parameter as it is")
def random_features(p, x, _):
    q, k, v = projections(p, x)
    features = jnp.exp(jnp.einsum("bnhd,hdm->bhnm", k, p["out"]["kernel"][..., :5]))
    memory = jnp.einsum("bhnm,bnhd->bhmd", features, v)
    return jnp.einsum("bnhd,hdm,bhme->bnhe", q, p["out"]["kernel"][..., :5], memory)


@refused("chunks")
def queries_in_slices(p, x, _):
    q, k, v = projections(p, x)
    return jnp.concatenate([attend(q[:, i : i + 2], k, v) for i in (0, 2, 4)], axis=1)


@refused("chunks")
def queries_in_a_counted_loop(p, x, _):
    q, k, v = projections(p, x)

    def step(i, outputs):
        chunk = jax.lax.dynamic_slice_in_dim(q, i * 2, 2, axis=1)
        return outputs + attend(chunk, k, v).sum()

    return jax.lax.fori_loop(0, 3, step, 0.0)


@refused("picked by the number")
def layers_by_number(p, x, _):
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), p)

    def step(i, x):
        q, k, v = projections(jax.tree.map(lambda a: a[i], stacked), x)
        return x + jnp.einsum("bnhd,hde->bne", attend(q, k, v), p["out"]["kernel"])

    return jax.lax.fori_loop(0, 2, step, x)


@refused("chunks")
def queries_in_chunks(p, x, _):
    k, v = project(p, "key", x), project(p, "value", x)

    def chunk(x):
        return attend(project(p, "query", x), k, v)

    return jax.lax.map(chunk, x.reshape(B, 3, N // 3, E).swapaxes(0, 1))


@refused("chunks")
def keys_in_chunks(p, x, _):
    q, k, v = projections(p, x)

    def step(carry, chunk):
        largest, total, sums = carry
        key, value = chunk
        logits = jnp.einsum("bnhd,bmhd->bnhm", q, key)
        new = jnp.maximum(largest, logits.max(-1))
        weights = jnp.exp(logits - new[..., None])
        decay = jnp.exp(largest - new)
        sums = sums * decay[..., None] + jnp.einsum("bnhm,bmhd->bnhd", weights, value)
        return (new, total * decay + weights.sum(-1), sums), None

    chunks = tuple(a.reshape(B, 3, N // 3, H, D).swapaxes(0, 1) for a in (k, v))
    start = jnp.full((B, N, H), -1e30), jnp.zeros((B, N, H)), jnp.zeros((B, N, H, D))
    (_, total, sums), _ = jax.lax.scan(step, start, chunks)
    return sums / total[..., None]


@refused("chunks")
def keys_one_by_one(p, x, _):
    q, k, v = projections(p, x)

    def step(carry, pair):
        total, sums = carry
        key, value = pair
        weights = jnp.exp(jnp.einsum("bnhd,bhd->bnh", q, key))
        return (total + weights, sums + weights[..., None] * value[:, None]), None

    start = jnp.zeros((B, N, H)), jnp.zeros((B, N, H, D))
    (total, sums), _ = jax.lax.scan(step, start, (k.swapaxes(0, 1), v.swapaxes(0, 1)))
    return sums / total[..., None]


@refused("lax.cond")
def inside_a_condition(p, x, _):
    q, k, v = projections(p, x)
    return jax.lax.cond(x.sum() > 0, functools.partial(attend, q, k, v), lambda: q)


@refused("lax.while_loop")
def inside_a_loop(p, x, _):
    def body(x):
        q, k, v = projections(p, x)
        return x + jnp.einsum("bnhd,hde->bne", attend(q, k, v), p["out"]["kernel"])

    return jax.lax.while_loop(lambda x: x.sum() < 0, body, x)
