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
heads: mean and worst seed of what it is in the end, and that mean over plain's. A star is at a
method's own weight. "in range" is the share of the training steps at which the method's own
objective lay where it can be: cosines in [0, 2], the MMD in [0, 2], the energy distance in [0, 1],
Eq. 2 of a discriminator that is at least as good as none in [-2 log 2, 0], with 0.1 to spare.
`--form=paper` takes the paper's literal form of "gan" and "ct", whose networks have the model's
learning rate and momentum.
"""

from __future__ import annotations

import dataclasses
import math
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
from align_jax.yardstick import cloud_distances
from train import process
from train.benchmarks.turns import at_least, listed, solvable
from train.run.hardware import hardware
from train.run.runaway import LEAST_OBJECTIVE
from train.step.optimizer import OptimizerConfig, make_optimizer

DEFAULT = "default"  # the name of a method's own weight
MEASURED = 256  # tokens of each cloud
LAST = 20  # steps whose mean objective is that of the end
OBJECTIVES = {
    "gan": (LEAST_OBJECTIVE["gan"], 0.0), "ct": (0.0, 2.0), "ot": (0.0, 2.0), "mmd": (0.0, 2.0),
    "energy": (0.0, 1.0), PLAIN: (0.0, 0.0),
}  # fmt: skip
ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Scene:
    """What moves."""

    samples: int = 64
    tokens: int = 16  # of each sample
    heads: int = 4
    features: int = 16  # of each query and key
    width: int = 64  # of the tokens that are projected; 0: queries and keys are the parameters
    offset: float = 0.0  # standard deviation of what is common to all tokens
    batch: int = 16  # samples of each training step
    learning_rate: float = 1e-3  # of projections or clouds


FREE = Scene(samples=4, tokens=64, heads=1, features=2, width=0, batch=4, learning_rate=1e-2)
SCENES = {
    "plane": FREE,
    "wide": dataclasses.replace(FREE, features=64),
    "attention": Scene(),
    "attention-offset": Scene(offset=1.5),
}


class Outcome(NamedTuple):
    """What became of the clouds; each is an array over the seeds."""

    before: Any  # scale-free MMD of the untrained clouds
    after: Any  # the same of the trained ones
    query_norm: Any  # mean Euclidean norm of the trained queries
    key_norm: Any  # the same of the keys
    task: Any  # its loss in the end, on all samples; 0 without one
    objective: Any  # of the method, mean over the last steps; 0 of a plain model
    in_range: Any  # share of the training steps whose objective lay in `OBJECTIVES`


class Row(NamedTuple):
    """One setting beside the plain model of its scene, over all seeds."""

    scene: str
    method: str
    form: str
    weight: float
    outcome: Outcome
    plain: Outcome

    def cells(self) -> list[str]:
        """Of the table."""
        mean, plain = (Outcome(*map(np.mean, x)) for x in (self.outcome, self.plain))
        name, weight, task, own = self.method, "-", ["-", "-"], ["-", "-"]
        if SCENES[self.scene].width:
            task = [f"{x.task:.3f}" for x in (mean, plain)]
        if name != PLAIN:
            default = math.isclose(self.weight, AlignmentConfig(name).default_weight)
            weight = f"{self.weight:g}" + "*" * default
            own = [f"{mean.objective:.3f}", f"{mean.in_range:.0%}"]
            name += " (paper)" if self.form == "paper" else ""
        return [
            *(self.scene, name, weight),
            *(f"{x:.4f}" for x in (mean.before, plain.after, mean.after, self.outcome.after.max())),
            f"{mean.after / plain.after:.3f}",
            *(f"{x:.2f}" for x in (mean.query_norm, mean.key_norm)),
            *(*task, *own),
        ]


COLUMNS = ("scene", "method", "weight", "before", "plain", "after", "worst", "ratio", "|q|", "|k|",
           "task", "plain", "objective", "in range")  # fmt: skip


class Clouds(nn.Module):
    """Queries and keys: projections of a scene's tokens, or parameters that start as input."""

    scene: Scene
    config: AlignmentConfig

    @nn.compact
    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both clouds, after the alignment saw them."""
        if self.scene.width:
            shape = self.scene.heads, self.scene.features
            query, key = (nn.DenseGeneral(shape, name=name)(inputs) for name in ("query", "key"))
        else:
            query = self.param("query", lambda _: inputs[:, 0])
            key = self.param("key", lambda _: inputs[:, 1])
        Alignment(self.config, name="alignment")(query, key)
        return query, key


def start(scene: Scene, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a seed draws: the model's input, and the teacher's attention weights.

    Returns:
        Of free clouds, queries and keys stacked on axis 1, the keys at a distance of 4 and half as
        wide; nothing teaches them. Otherwise tokens, and the weights `[samples, heads, N, N]`.
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


def task_loss(scene: Scene, clouds: tuple[jax.Array, jax.Array], taught: jax.Array) -> jax.Array:
    """The cross-entropy of the attention weights; 0 of free clouds."""
    if not scene.width:
        return jnp.float32(0.0)
    log_weights = jax.nn.log_softmax(_logits(*clouds))
    return -jnp.sum(taught * log_weights, axis=-1).mean()


def distance(clouds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
    """Scale-free MMD and norms of queries and keys, means over heads."""
    # The same tokens before and after, and with every method.
    _, sown = Alignment(AlignmentConfig(PLAIN)).apply({}, *clouds, mutable=["alignment_clouds"])
    (found,) = cloud_distances(sown, jax.random.key(0), tokens=MEASURED).values()
    return tuple(jnp.mean(x) for x in found)


def program(
    scene: Scene, config: AlignmentConfig, optimizer: OptimizerConfig, steps: int
) -> Callable[[jax.Array, jax.Array], Outcome]:
    """A compiled function of weights [W] and seeds [S], all of which it trains side by side."""
    model, tx = Clouds(scene, config), make_optimizer(optimizer, steps)
    least, largest = OBJECTIVES[config.method]

    def one(weight: jax.Array, seed: jax.Array) -> Outcome:
        data, init, order = jax.random.split(jax.random.key(seed), 3)
        inputs, taught = start(scene, data)
        params = model.init(init, inputs)["params"]
        before = distance(model.apply({"params": params}, inputs))  # type: ignore[arg-type]

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
        clouds: Any = model.apply({"params": params}, inputs)
        inside = (objectives >= least - ROUNDING) & (objectives <= largest + ROUNDING)
        return Outcome(
            before[0],
            *distance(clouds),
            task=task_loss(scene, clouds, taught),
            objective=objectives[-LAST:].mean(),
            in_range=inside.mean(),
        )

    return jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))


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
    """Trains every setting, scene by scene; the plain model comes first in any case.

    Weights are numbers, and "default" for a method's own; the form is "default" or "paper".
    """
    for name, scene in scenes.items():
        plain: Outcome | None = None
        for method in dict.fromkeys([PLAIN, *methods]):
            config = (AlignmentConfig.paper if form == "paper" else AlignmentConfig)(method)
            own = config.default_weight
            numbers = sorted({own if x == DEFAULT else float(x) for x in weights})
            if method == PLAIN:
                numbers = [own]
            train = program(scene, config, optimizer_of(scene, form), steps)
            outcomes = jax.device_get(train(jnp.array(numbers), jnp.arange(seeds)))
            for number, weight in enumerate(numbers):
                outcome = Outcome(*(values[number] for values in outcomes))
                plain = plain or outcome
                yield Row(name, method, form, weight, outcome, plain)


def main() -> None:
    """Runs the command."""
    arguments = process.parser("train.benchmarks.moving_clouds", __doc__)
    add, aligned = arguments.add_argument, [method for method in METHODS if method != PLAIN]
    weights = listed(lambda text: text if text == DEFAULT else at_least(0, float)(text))
    add("--scenes", type=listed(known=SCENES), default=[*SCENES], help=f"of {', '.join(SCENES)}")
    add("--methods", type=listed(known=METHODS), default=aligned, help="gan,ct,...")
    add("--weights", type=weights, default=[0.01, 0.1, 1.0, DEFAULT], help="such as 0.1,1,default")
    add("--form", choices=("default", "paper"), default="default", help="(default: %(default)s)")
    add("--seeds", type=at_least(1), default=3, help="(default: %(default)s)")
    add("--steps", type=at_least(1), default=600, help="(default: %(default)s)")
    options = arguments.parse_args()

    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=160)  # a file has room
    table = rich.table.Table(box=None, pad_edge=False, padding=(0, 1))
    for number, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
    with console.status("training") as status:
        for row in measure(
            {name: SCENES[name] for name in options.scenes},
            solvable(options.methods),
            options.weights,
            form=options.form,
            seeds=options.seeds,
            steps=options.steps,
        ):
            table.add_row(*row.cells())
            status.update(f"{row.scene}, {row.method}")
    console.print(
        f"{hardware()}; {options.seeds} seeds, {options.steps} steps", markup=False, highlight=False
    )
    console.print(table)


if __name__ == "__main__":
    process.run(main)
