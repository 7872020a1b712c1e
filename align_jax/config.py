"""What to align, and how: the library's one configuration object."""

import dataclasses
import re

from align_jax.divergences.conditional_transport import COSTS, TRANSPORT_IMPLEMENTATIONS
from align_jax.numerics import check_choice, check_fraction

PLAIN = "none"  # the method of a model without alignment
METHODS = ("gan", "ot", "ct", "mmd", PLAIN)


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """How keys and queries are aligned (Zhang et al. 2021, arXiv 2110.12567).

    The defaults are the paper's. A field with methods in brackets is ignored by all others.

    Attributes:
      method: "gan" (adversarial, Eq. 2), "ot" (optimal transport, Eq. 3), "ct" (bidirectional
        conditional transport, Eq. 4), "mmd" (maximum mean discrepancy), or "none".
      rho: [ct] weight of the query-to-key direction, in `[0, 1]`.
      cost: [ct, ot] "cosine" or "squared_euclidean".
      epsilon: [ot] strength of the entropy term, in units of the cost.
      sinkhorn_threshold: [ot] L1 error of the marginals at which Sinkhorn stops.
      sinkhorn_iterations: [ot] its largest number of iterations; the slowest plan of a batch sets
        the pace of them all. Both are coarser than the pure function's defaults: the Newton steps
        behind them gain most of the digits back, at a fraction of the time, and the residual that
        is left is reported.
      bandwidth: [mmd] standard deviation of the Gaussian kernel.
      over: "tokens" compares the tokens within each head (the paper), "heads" the heads at each
        token (the authors' released code), "both" adds the two; in the latter a token takes part
        if it does so both as query and as key.
      discriminator: [gan, ct] "highway" (the paper) or "mlp" (its ablation): the shape of the
        discriminator and of the critic.
      hidden_features: [gan, ct] width of the networks' hidden layers.
      features: [ct] width of what critic and navigator put out.
      normalize_navigator: [ct] scale the navigator's outputs to norm 1, as the released code does.
      implementation: [ct] how transport is computed: "auto", "dense", "blockwise" or "fused"; see
        `divergences.conditional_transport`. All give the same numbers.
      tokens: how many tokens of each sample stand for all of them, drawn anew at each training step
        from those that take part; 0 for all. An approximation that saves time on long texts and
        large graphs: "gan", a mean over tokens, stays unbiased; "ct", "ot" and "mmd" compare pairs
        and are biased. The draw comes from the RNG stream "alignment" or "dropout"; without either
        all tokens count.
      layers: regular expressions; an attention takes part if one is found in its module path, such
        as `"layer_(10|11)/"`. None aligns every layer. Layers of one `nn.scan` have one path.

    Raises:
      ValueError: for a value outside its range, naming it.

    Example:
      >>> AlignmentConfig(method="gan").hidden_features
      10
    """

    method: str = "ct"
    rho: float = 0.5
    cost: str = "cosine"
    epsilon: float = 0.01
    sinkhorn_threshold: float = 1e-2
    sinkhorn_iterations: int = 20
    bandwidth: float = 1.0
    over: str = "tokens"
    discriminator: str = "highway"
    hidden_features: int = 10
    features: int = 10
    normalize_navigator: bool = False
    implementation: str = "auto"
    tokens: int = 0
    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_choice("cost", self.cost, COSTS)
        check_choice("implementation", self.implementation, TRANSPORT_IMPLEMENTATIONS)
        check_choice("over", self.over, ("tokens", "heads", "both"))
        check_choice("discriminator", self.discriminator, ("highway", "mlp"))
        check_fraction("rho", self.rho)
        for name in ("epsilon", "sinkhorn_threshold", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        for name in ("sinkhorn_iterations", "hidden_features", "features", "tokens"):
            value, least = getattr(self, name), int(name != "tokens")
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {value!r}."
                )
        if isinstance(self.layers, str):
            raise ValueError(f"layers must be a tuple of patterns, got the string {self.layers!r}.")
        for pattern in self.layers or ():
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise ValueError(
                    f"layers holds {pattern!r}, no regular expression: {error}."
                ) from None
        if self.layers is not None:
            # Lists come out of configuration files; a frozen config must be hashable.
            object.__setattr__(self, "layers", tuple(self.layers))

    def selects(self, path: tuple[str, ...]) -> bool:
        """Whether the attention at this module path takes part, by `layers`."""
        if self.layers is None:
            return True
        name = "/".join(path) + "/"
        return any(re.search(pattern, name) for pattern in self.layers)
