"""Do queries and keys come together, and does the task pay for it? Toy scenes, many seeds at once.

    python -m train.benchmarks.moving_clouds
    python -m train.benchmarks.moving_clouds --form=paper --methods=gan,ct --weights=0.1,1
    python -m train.benchmarks.moving_clouds --scenes=attention --methods=energy --seeds=10

One method in one scene takes 10 to 30 seconds of a core, half of them compiling; it is for trying
changes of the methods. Needs align_jax, jax, flax, optax and rich (and ott-jax for "ot"). The
scenes:

    plane              64 queries and 64 keys in each of 4 samples move freely in the plane: they
                       are the parameters, and there is no task
    wide               the same in 64 dimensions
    attention          64 samples of 16 tokens of 64 features, projected to 4 heads of 16; the task
                       is to match a teacher's attention weights, which leaves room to align
    attention-offset   the same with an offset common to all tokens, as pretrained models have it

Without a task Adam makes the same steps whatever the weight, but for rounding, which a game makes
larger; with a task the weight counts. The digits, of real images, are measured by
`python -m train.sweep --config=train/configs/digits.py --methods=none,gan,ct,ot,mmd,energy`.

The table's MMD is the scale-free one of `align_jax.yardstick`, over samples and the mean over
heads: mean and worst seed of what it is in the end, and that mean over plain's. "in range" is the
share of the training steps at which the method's own objective lay where it can be: cosines in
[0, 2], the MMD in [0, 2], the energy distance in [0, 1], Eq. 2 of a discriminator that is at least
as good as none in [-2 log 2, 0], with 0.1 to spare. `--form=paper` takes the paper's literal form
of "gan" and "ct", whose networks have the model's learning rate and momentum.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table
from flax import linen as nn

from align_jax import Alignment, AlignmentConfig, alignment_loss
from align_jax.config import METHODS, PLAIN
from align_jax.yardstick import CloudDistance, cloud_distances
from train import process
from train.run.hardware import hardware
from train.run.runaway import LEAST_OBJECTIVE
from train.step.optimizer import OptimizerConfig, make_optimizer

FORMS = ("default", "paper")
DEFAULT = "default"  # the name of a method's own weight
WEIGHTS = (0.01, 0.1, 1.0)
ALIGNED = 0.2  # of plain's MMD, at most, is what a method should leave at its own weight
MEASURED = 256  # tokens of each cloud
LAST = 20  # steps whose mean objective is that of the end
OBJECTIVES = {
    "gan": (LEAST_OBJECTIVE["gan"], 0.0), "ct": (0.0, 2.0), "ot": (0.0, 2.0), "mmd": (0.0, 2.0),
    "energy": (0.0, 1.0),
}  # fmt: skip
ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Scene:
    """What moves.

    Attributes:
        samples: of the data.
        tokens: of each sample.
        heads: of the attention.
        features: of each query and key.
        width: features of the tokens that are projected; 0: queries and keys are the parameters.
        offset: standard deviation of the features of what is common to all tokens.
        batch: samples of each training step.
        learning_rate: of projections or clouds.
    """

    samples: int = 64
    tokens: int = 16
    heads: int = 4
    features: int = 16
    width: int = 64
    offset: float = 0.0
    batch: int = 16
    learning_rate: float = 1e-3


def _free(features: int) -> Scene:
    return Scene(4, 64, 1, features, width=0, batch=4, learning_rate=1e-2)


SCENES = {
    "plane": _free(2),
    "wide": _free(64),
    "attention": Scene(),
    "attention-offset": Scene(offset=1.5),
}


class Outcome(NamedTuple):
    """What became of the clouds; each is an array over the seeds.

    Attributes:
        before: scale-free MMD of the untrained clouds.
        after: the same of the trained ones.
        query_norm: mean Euclidean norm of the trained queries.
        key_norm: the same of the keys.
        task: its loss in the end, on all samples; 0 without one.
        objective: of the method, mean over the last steps; 0 of a plain model.
        in_range: share of the training steps whose objective lay in `OBJECTIVES`.
    """

    before: Any
    after: Any
    query_norm: Any
    key_norm: Any
    task: Any
    objective: Any
    in_range: Any


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting beside the plain model of its scene, over all seeds.

    Attributes:
        scene: a name in `SCENES`.
        method: of alignment.
        form: one of `FORMS`.
        weight: of the alignment.
        outcome: of it.
        plain: of the plain model.
    """

    scene: str
    method: str
    form: str
    weight: float
    outcome: Outcome
    plain: Outcome

    @property
    def ratio(self) -> float:
        """The MMD in the end over the plain model's, of their means."""
        return float(np.mean(self.outcome.after) / np.mean(self.plain.after))

    @property
    def is_default(self) -> bool:
        """Whether the weight is the method's own."""
        return math.isclose(self.weight, AlignmentConfig(self.method).default_weight)

    @property
    def name(self) -> str:
        """For a list of settings."""
        form = ", paper's form" if self.form == "paper" else ""
        return f"{self.scene}: {self.method} {self.weight:g}{form} ({self.ratio:.2f})"


class Particles(nn.Module):
    """Queries and keys that are parameters; those they start from are its input.

    Attributes:
        config: what to align, and how.
    """

    config: AlignmentConfig

    @nn.compact
    def __call__(self, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both clouds, after the alignment saw them."""
        query = self.param("query", lambda _: start[:, 0])
        key = self.param("key", lambda _: start[:, 1])
        Alignment(self.config, name="alignment")(query, key)
        return query, key


class Projections(nn.Module):
    """The projections of an attention, without its values.

    Attributes:
        config: what to align, and how.
        heads: how many.
        features: of each query and key.
    """

    config: AlignmentConfig
    heads: int
    features: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both clouds, after the alignment saw them."""
        query = nn.DenseGeneral((self.heads, self.features), name="query")(tokens)
        key = nn.DenseGeneral((self.heads, self.features), name="key")(tokens)
        Alignment(self.config, name="alignment")(query, key)
        return query, key


def start(scene: Scene, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a seed draws: the model's input, and the teacher's attention weights.

    Args:
        scene: which.
        rng: the seed's.

    Returns:
        Of free clouds, queries and keys stacked on axis 1, the keys at a distance of 4 and half as
        wide; nothing teaches them. Otherwise tokens, and the weights `[samples, heads, N, N]`.

    Example:
        >>> clouds, _ = start(SCENES["plane"], jax.random.key(0))
        >>> clouds.shape
        (4, 2, 64, 1, 2)
    """
    rngs = jax.random.split(rng, 4)
    shape = scene.heads, scene.features
    if not scene.width:
        clouds = jax.random.normal(rngs[0], (scene.samples, 2, scene.tokens, *shape))
        direction = jax.random.normal(rngs[1], shape)
        shift = 4.0 * direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
        return clouds.at[:, 1].multiply(0.5).at[:, 1].add(shift), jnp.zeros(scene.samples)
    tokens = jax.random.normal(rngs[0], (scene.samples, scene.tokens, scene.width))
    tokens += scene.offset * jax.random.normal(rngs[1], (scene.width,))
    query, key = (
        jnp.einsum("bne,ehd->bnhd", tokens, jax.random.normal(rng, (scene.width, *shape)))
        for rng in rngs[2:]
    )
    return tokens, jax.nn.softmax(_logits(query, key) / scene.width)


def _logits(query: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.einsum("bnhd,bmhd->bhnm", query, key) / query.shape[-1] ** 0.5


class Trained(NamedTuple):
    """What a program returns; each is an array over weights and seeds.

    Attributes:
        clouds: queries and keys of all samples in the end.
        objectives: of each training step.
    """

    clouds: tuple[Any, Any]
    objectives: Any


def model_of(scene: Scene, config: AlignmentConfig) -> nn.Module:
    """The scene's model."""
    if not scene.width:
        return Particles(config)
    return Projections(config, scene.heads, scene.features)


@functools.cache
def program(
    scene: Scene, config: AlignmentConfig, optimizer: OptimizerConfig, steps: int
) -> Callable[[jax.Array, jax.Array], Trained]:
    """A compiled function of weights and seeds, all of which it trains side by side.

    Args:
        scene: what moves.
        config: the method.
        optimizer: of clouds and networks.
        steps: of training.

    Returns:
        A function of weights `[W]` and seeds `[S]`, whose results are `[W, S, ...]`.

    Example:
        See `measure`, which calls it for every setting.
    """
    model, tx = model_of(scene, config), make_optimizer(optimizer, steps)

    def one(weight: jax.Array, seed: jax.Array) -> Trained:
        data, init, order = jax.random.split(jax.random.key(seed), 3)
        inputs, taught = start(scene, data)
        params = model.init(init, inputs)["params"]

        def step(carry: tuple[Any, Any], rng: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
            params, state = carry
            batch = inputs, taught
            if scene.batch < scene.samples:
                rows = jax.random.permutation(rng, scene.samples)[: scene.batch]
                batch = inputs[rows], taught[rows]

            def loss(params: Any) -> tuple[jax.Array, jax.Array]:
                clouds, sown = model.apply({"params": params}, batch[0], mutable=["alignment"])
                aligned = jnp.float32(0.0) if config.method == PLAIN else alignment_loss(sown)
                return task_loss(scene, clouds, batch[1]) + weight * aligned, aligned

            gradients, aligned = jax.grad(loss, has_aux=True)(params)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), aligned

        (params, _), objectives = jax.lax.scan(
            step, (params, tx.init(params)), jax.random.split(order, steps)
        )
        clouds = model.apply({"params": params}, inputs)
        assert isinstance(clouds, tuple)
        return Trained((clouds[0], clouds[1]), objectives)

    return jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))


@functools.cache
def yardstick(scene: Scene) -> Callable[..., tuple[CloudDistance, jax.Array]]:
    """A compiled function of seeds and clouds `[S, ...]`: their distance, and the task's loss.

    Without clouds it measures those that a plain model begins with, which are every method's.
    """
    model = model_of(scene, AlignmentConfig(PLAIN))

    def one(
        seed: jax.Array, clouds: tuple[jax.Array, jax.Array] | None
    ) -> tuple[CloudDistance, jax.Array]:
        data, init, _ = jax.random.split(jax.random.key(seed), 3)
        inputs, taught = start(scene, data)
        if clouds is None:
            begun = model.apply(model.init(init, inputs), inputs)
            assert isinstance(begun, tuple)
            clouds = begun[0], begun[1]
        # The same tokens before and after, and with every method.
        _, sown = Alignment(AlignmentConfig(PLAIN)).apply({}, *clouds, mutable=["alignment_clouds"])
        (found,) = cloud_distances(sown, jax.random.key(0), tokens=MEASURED).values()
        return found, task_loss(scene, clouds, taught)

    return jax.jit(jax.vmap(one, (0, 0)))


def task_loss(scene: Scene, clouds: tuple[jax.Array, jax.Array], taught: jax.Array) -> jax.Array:
    """The cross-entropy of the attention weights; 0 of free clouds."""
    if not scene.width:
        return jnp.float32(0.0)
    log_weights = jax.nn.log_softmax(_logits(*clouds))
    return -jnp.sum(taught * log_weights, axis=-1).mean()


def outcome_of(method: str, scene: Scene, seeds: jax.Array, trained: Trained) -> Outcome:
    """Measures what one weight has made of the clouds, seed by seed.

    Args:
        method: of alignment.
        scene: what moved.
        seeds: of the runs.
        trained: with an axis for the seeds alone.
    """
    before, _ = yardstick(scene)(seeds, None)
    after, task = yardstick(scene)(seeds, trained.clouds)
    objectives = np.asarray(trained.objectives)
    least, largest = OBJECTIVES.get(method, (0.0, 0.0))
    inside = (objectives >= least - ROUNDING) & (objectives <= largest + ROUNDING)
    values = before.mmd, after.mmd, after.query_norm, after.key_norm
    return Outcome(
        *(np.mean(x, axis=-1) for x in values),
        task=np.asarray(task),
        objective=objectives[:, -LAST:].mean(axis=1),
        in_range=inside.mean(axis=1),
    )


def optimizer_of(scene: Scene, form: str) -> OptimizerConfig:
    """The optimiser of clouds and networks; rates stay, so that a game may go on to the end."""
    rate = scene.learning_rate
    config = OptimizerConfig(
        learning_rate=rate, decay="constant", weight_decay=0.01 if scene.width else 0.0
    )
    if form != "paper":
        return config
    return dataclasses.replace(config, alignment_learning_rate=rate, alignment_beta1=config.beta1)


def measure(
    scenes: Mapping[str, Scene],
    methods: Iterable[str],
    weights: Sequence[float | str],
    *,
    form: str = "default",
    seeds: int = 3,
    steps: int = 600,
) -> Iterator[Row]:
    """Trains every setting.

    Args:
        scenes: by name.
        methods: of alignment; the plain model comes first in any case.
        weights: numbers, and "default" for a method's own.
        form: one of `FORMS`.
        seeds: how many, from 0 on.
        steps: of training.

    Yields:
        The rows, scene by scene.

    Example:
        >>> rows = measure({"plane": SCENES["plane"]}, ["energy"], ["default"], seeds=2, steps=3)
        >>> [(row.method, row.weight) for row in rows]
        [('none', 0.0), ('energy', 1.0)]
    """
    for name, scene in scenes.items():
        plain: Outcome | None = None
        for method in dict.fromkeys([PLAIN, *methods]):
            paper = form == "paper"
            config = AlignmentConfig.paper(method) if paper else AlignmentConfig(method)
            own = config.default_weight
            numbers = sorted({own if x == DEFAULT else float(x) for x in weights})
            if method == PLAIN:
                numbers = [own]
            train = program(scene, config, optimizer_of(scene, form), steps)
            trained = jax.device_get(train(jnp.array(numbers), jnp.arange(seeds)))
            for number, weight in enumerate(numbers):
                part = jax.tree.map(lambda x: x[number], trained)  # noqa: B023
                outcome = outcome_of(method, scene, jnp.arange(seeds), part)
                plain = plain or outcome
                yield Row(name, method, form, weight, outcome, plain)


def table(rows: Iterable[Row]) -> rich.table.Table:
    """The rows as a table; a star is at each method's own weight."""
    found = rich.table.Table(box=None, pad_edge=False, padding=(0, 1))
    found.add_column("scene", no_wrap=True)
    found.add_column("method", no_wrap=True)
    for heading in ("weight", "before", "plain", "after", "worst", "ratio", "|q|", "|k|", "task",
                    "plain", "objective", "in range"):  # fmt: skip
        found.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        mean = Outcome(*(float(np.mean(x)) for x in row.outcome))
        plain = Outcome(*(float(np.mean(x)) for x in row.plain))
        task = [f"{x.task:.3f}" if SCENES[row.scene].width else "-" for x in (mean, plain)]
        own = ["-", "-"]
        if row.method != PLAIN:
            own = [f"{mean.objective:.3f}", f"{mean.in_range:.0%}"]
        found.add_row(
            row.scene,
            row.method + (" (paper)" if row.form == "paper" and row.method != PLAIN else ""),
            "-" if row.method == PLAIN else f"{row.weight:g}" + "*" * row.is_default,
            *(f"{x:.4f}" for x in (mean.before, plain.after, mean.after, row.outcome.after.max())),
            f"{row.ratio:.3f}",
            *(f"{x:.2f}" for x in (mean.query_norm, mean.key_norm)),
            *task,
            *own,
        )
    return found


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What is expected of the methods, and the settings that break it; NaN breaks everything."""
    aligned = [row for row in rows if row.method != PLAIN]
    farther = [row.name for row in aligned if not row.ratio <= 1.0]
    short = [row.name for row in aligned if row.is_default and not row.ratio <= ALIGNED]
    return [
        f"Farther apart than plain in the end (ratio): {'; '.join(farther) or 'none'}",
        f"More than {ALIGNED:g} of plain at the method's own weight: {'; '.join(short) or 'none'}",
    ]


def main() -> None:
    """Runs the command."""
    options = _options()
    if "ot" in options.methods and importlib.util.find_spec("ott") is None:
        print("ott-jax is not installed; leaving ot out.", file=sys.stderr)
        options.methods.remove("ot")
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=160)  # a file has room
    rows = []
    with console.status("training") as status:
        for row in measure(
            {name: SCENES[name] for name in options.scenes},
            options.methods,
            options.weights,
            form=options.form,
            seeds=options.seeds,
            steps=options.steps,
        ):
            rows.append(row)
            status.update(f"{row.scene}, {row.method}")
    console.print(
        f"{hardware()}; {options.seeds} seeds, {options.steps} steps", markup=False, highlight=False
    )
    console.print(table(rows))
    for verdict in verdicts(rows):
        console.print(verdict, markup=False, highlight=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m train.benchmarks.moving_clouds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    def weights(text: str) -> list[float | str]:
        return [name if name == DEFAULT else float(name) for name in names(text)]

    add = parser.add_argument
    add("--scenes", type=names, default=list(SCENES), help=f"of {', '.join(SCENES)}")
    add("--methods", type=names, default=[m for m in METHODS if m != PLAIN], help="gan,ct,...")
    add("--weights", type=weights, default=[*WEIGHTS, DEFAULT], help="such as 0.1,1,default")
    add("--form", choices=FORMS, default="default", help="(default: %(default)s)")
    add("--seeds", type=int, default=3, help="(default: %(default)s)")
    add("--steps", type=int, default=600, help="(default: %(default)s)")
    options = parser.parse_args()
    for flag, choices in (("scenes", SCENES), ("methods", METHODS)):
        unknown = set(getattr(options, flag)) - set(choices)
        if unknown:
            parser.error(f"--{flag}: {unknown.pop()!r} is none of {', '.join(choices)}.")
    if options.seeds < 1 or options.steps < 1:
        parser.error("--seeds and --steps must be at least 1.")
    if min((x for x in options.weights if x != DEFAULT), default=0.0) < 0:
        parser.error("--weights must be 0 or more.")
    return options


if __name__ == "__main__":
    process.run(main)
