"""What to align, and how: the library's one configuration object."""

import dataclasses
import re
from typing import Any

from align_jax.divergences.conditional_transport import COSTS, TRANSPORT_IMPLEMENTATIONS
from align_jax.numerics import check_choice, check_fraction, check_patterns, check_positive

# Of `AlignmentConfig.paper`.
PAPER: dict[str, Any] = {
    "shared_networks": True, "unit_scale": False, "gradient_penalty": 0.0, "saturating": True,
    "constant_feature": 0.0, "normalize_navigator": False,
}  # fmt: skip
# What a mean divergence is multiplied by in the loss, by method: see `default_weight`.
WEIGHTS = {"gan": 0.1, "ot": 1.0, "ct": 0.1, "mmd": 1.0, "energy": 1.0, "logits": 0.1, "none": 0.0}
PLAIN = "none"  # the method of a model without alignment
METHODS = ("gan", "ot", "ct", "mmd", "energy", PLAIN)
CONTROL = "logits"  # a penalty on queries and keys that matches nothing, to compare methods with


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """How keys and queries are aligned (Zhang et al. 2021, arXiv 2110.12567).

    The paper's form of "gan" and "ct", literally, does not bring queries and keys together; the
    defaults are what does, and `AlignmentConfig.paper` gives the paper's. A field with methods in
    brackets is ignored by all others.

    Attributes:
      method: "gan" (adversarial, Eq. 2), "ot" (optimal transport, Eq. 3), "ct" (bidirectional
        conditional transport, Eq. 4), "mmd" (maximum mean discrepancy), "energy" (energy distance,
        the default: of those that bring queries and keys together most surely it needs the least),
        or "none". "logits" is a control for studies: the mean squared attention logit, a penalty
        that does not bring queries and keys together.
      rho: [ct] weight of the query-to-key direction, in `[0, 1]`.
      cost: [ot] "cosine" or "squared_euclidean"; "ct" has the cosine alone, since a critic makes
        squared distances as large as it likes.
      epsilon: [ot] strength of the entropy term, in units of the cost.
      sinkhorn_threshold: [ot] L1 error of the marginals at which Sinkhorn stops.
      sinkhorn_iterations: [ot] its largest number of iterations; the slowest plan of a batch sets
        the pace of them all. Both are coarser than the pure function's defaults: the Newton steps
        behind them gain most of the digits back, at a fraction of the time, and the residual that
        is left is reported.
      bandwidth: [mmd] standard deviation of the Gaussian kernel; 0 takes that of each sample's and
        head's own queries and keys.
      over: "tokens" compares the tokens within each head (the paper), "heads" the heads at each
        token (the authors' released code), "both" adds the two; in the latter a token takes part
        if it does so both as query and as key.
      discriminator: [gan, ct] "highway" (the paper) or "mlp" (its ablation): the shape of the
        discriminator and of the critic.
      hidden_features: [gan, ct] width of the networks' hidden layers.
      features: [ct] width of what critic and navigator put out.
      normalize_navigator: [ct] scale the navigator's outputs to norm 1, as the released code does.
        Without, its plan becomes so sharp that each token goes to the one nearest to it, and the
        transport costs nothing long before queries and keys agree.
      shared_networks: [gan, ct] one set of networks for all heads of an attention, as the paper
        has it. Then queries of one head may come to match the keys of another. False: a set for
        each head.
      unit_scale: [gan, ct] queries and keys of each sample and head are divided by their common
        root mean square before the networks see them, so that longer vectors win nothing.
      gradient_penalty: [gan, ct] weight of the mean squared slope of the discriminator at its
        inputs (R1, Mescheder et al. 2018), or of what the critic's exceeds 1 by, which both keep
        small; 0 for none. Then they are sure of every token long before it has moved.
      saturating: [gan] queries and keys minimise `log D(q) + log(1 - D(k))` itself, which is flat
        where the discriminator is sure, and grows steeper the further they overshoot. False:
        `-log(1 - D(q)) - log D(k)` (Goodfellow et al. 2014), which is the other way about; the
        value reported is the same.
      constant_feature: [ct] a number that stands beside the critic's features. Without it, 0, the
        features of queries and of keys come to point in opposite directions, where the cosine has
        no slope.
      implementation: [ct] how transport is computed: "auto", "dense" or "blockwise"; see
        `divergences.conditional_transport`. All give the same numbers.
      tokens: how many tokens of each sample stand for all of them, drawn anew at each training step
        from those that take part; 0 for all. An approximation that saves time on long texts and
        large graphs: "gan", a mean over tokens, stays unbiased; the others compare pairs and are
        biased, though training with 16 or 32 tokens aligned queries and keys as well
        (docs/performance.md). The draw comes from the RNG stream "alignment" or "dropout"; without
        either all tokens count.
      subsample: one sample in so many takes part, drawn anew at each training step from each group
        of so many neighbours in the batch; 1 for all. A mean over samples stays unbiased for every
        method, and its cost shrinks by this factor. A batch that cannot be cut into such groups is
        cut into the largest equal ones that it can. The draw is from the stream of `tokens`.
      layers: regular expressions; an attention takes part if one is found in its module path, such
        as `"layer_(10|11)/"`. None aligns every layer. Layers of one `nn.scan` have one path.

    Raises:
      ValueError: for a value outside its range, naming it.

    Example:
      >>> AlignmentConfig(method="gan").hidden_features
      10
    """

    method: str = "energy"
    rho: float = 0.5
    cost: str = "cosine"
    epsilon: float = 0.01
    sinkhorn_threshold: float = 1e-2
    sinkhorn_iterations: int = 20
    bandwidth: float = 0.0
    over: str = "tokens"
    discriminator: str = "highway"
    hidden_features: int = 10
    features: int = 10
    normalize_navigator: bool = True
    shared_networks: bool = False
    unit_scale: bool = True
    gradient_penalty: float = 1.0
    saturating: bool = False
    constant_feature: float = 1.0
    implementation: str = "auto"
    tokens: int = 0
    subsample: int = 1
    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, (*METHODS, CONTROL))
        check_choice("cost", self.cost, COSTS)
        check_choice("implementation", self.implementation, TRANSPORT_IMPLEMENTATIONS)
        check_choice("over", self.over, ("tokens", "heads", "both"))
        check_choice("discriminator", self.discriminator, ("highway", "mlp"))
        check_fraction("rho", self.rho)
        for name in ("epsilon", "sinkhorn_threshold"):
            check_positive(name, getattr(self, name))
        for name in ("bandwidth", "gradient_penalty", "constant_feature"):
            check_positive(name, getattr(self, name), zero=True, squared=name == "bandwidth")
        for name in ("normalize_navigator", "shared_networks", "unit_scale", "saturating"):
            if not isinstance(getattr(self, name), bool):  # the text "False" counts as true
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if (self.method, self.cost) == ("ct", "squared_euclidean"):
            raise ValueError(
                "method 'ct' learns the features that its cost is measured between, and would let "
                "squared distances grow without end. Use cost='cosine', or method 'ot' with "
                "cost='squared_euclidean'."
            )
        for name in ("sinkhorn_iterations", "hidden_features", "features", "tokens", "subsample"):
            value, least = getattr(self, name), int(name != "tokens")
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {value!r}."
                )
        if self.layers is not None:
            check_patterns("layers", self.layers)
            # Lists come out of configuration files; a frozen config must be hashable.
            object.__setattr__(self, "layers", tuple(self.layers))

    @classmethod
    def paper(cls, method: str = "ct", **changes: Any) -> "AlignmentConfig":
        """The paper's form, for comparison: "gan" and "ct" do not align with it.

        Networks are shared by all heads and see the queries and keys as they are; nothing bounds
        their slope. Under "gan" queries and keys minimise Eq. 2 itself.

        Args:
          method: see the class.
          **changes: other fields.

        Example:
          >>> AlignmentConfig.paper("gan").gradient_penalty
          0.0
        """
        return cls(method, **(PAPER | changes))

    @classmethod
    def of(cls, value: Any) -> "AlignmentConfig":
        """A configuration as it is, or that of a method's name.

        Raises:
          ValueError: for a name that is no method's.
          TypeError: for anything else.

        Example:
          >>> AlignmentConfig.of("ct").default_weight
          0.1
        """
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, cls):
            raise TypeError(
                f"Expected an AlignmentConfig or the name of a method ({', '.join(METHODS)}), got "
                f"{value!r:.80}, of type {type(value).__name__}."
            )
        return value

    @property
    def default_weight(self) -> float:
        """The weight that `docs/results.md` measures: it aligns, and may cost accuracy.

        It is for the mean over layers, heads and samples, which `alignment_loss` returns. Smaller
        ones align less: 0.01 left a quarter to two fifths of the distance on digits.

        Example:
          >>> AlignmentConfig("ct").default_weight
          0.1
        """
        return WEIGHTS[self.method]

    def selects(self, path: tuple[str, ...]) -> bool:
        """Whether the attention at this module path takes part, by `layers`."""
        if self.layers is None:
            return True
        name = "/".join(path) + "/"
        return any(re.search(pattern, name) for pattern in self.layers)
