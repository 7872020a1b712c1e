"""Faults in `align_jax/`."""

from __future__ import annotations

from tests.mutations.mutation import Mutation, faults

DIVERGENCES = "tests/divergences/test_divergences.py"
PARTICULARS = "tests/divergences/test_particulars.py"

_DIVERGENCES: tuple[Mutation, ...] = (
    *faults(
        "align_jax/divergences/adversarial.py",
        DIVERGENCES,
        (
            "discriminator-sees-queries-everywhere",
            "jax.nn.log_sigmoid(-key_logits)",
            "jax.nn.log_sigmoid(key_logits)",
        ),
        (
            "gan-of-a-sample-without-keys",
            "jnp.any(query_mask, axis=1) & jnp.any(key_mask, axis=1)",
            "jnp.any(query_mask, axis=1) | jnp.any(key_mask, axis=1)",
        ),
    ),
    *faults(
        "align_jax/divergences/conditional_transport.py",
        PARTICULARS,
        (
            "ct-directions-swapped",
            "rho * forward + (1.0 - rho) * backward",
            "(1.0 - rho) * forward + rho * backward",
        ),
    ),
    *faults(
        "align_jax/divergences/conditional_transport.py",
        DIVERGENCES,
        (
            "ct-dense-plan-reaches-padded-keys",
            "jnp.where(key_mask[:, None, None, :], scores, MASKED)",
            "scores",
        ),
    ),
    *faults(
        "align_jax/divergences/transport_readout.py",
        DIVERGENCES,
        (
            "ct-gradient-without-the-columns-mean-cost",
            "(row_scale + column_scale) - (row_mean + column_mean)",
            "(row_scale + column_scale) - row_mean",
        ),
    ),
    *faults(
        "align_jax/divergences/transport_readout.py",
        PARTICULARS,
        (
            "ct-one-exponential-for-any-score",
            "jnp.all(largest[0] * largest[1] <= limit**2)",
            "jnp.all(largest[0] * largest[1] >= 0.0)",
        ),
        (
            "ct-online-softmax-keeps-the-old-peak",
            "sums = sums * jnp.exp(peak - new_peak)[..., None, :]",
            "sums = sums * jnp.ones_like(peak)[..., None, :]",
        ),
    ),
    *faults(
        "align_jax/divergences/conditional_transport.py",
        "tests/test_placement.py",
        ("auto-on-a-tpu-is-that-of-a-cpu", "on_tpu=on_tpu)", "on_tpu=form)"),
    ),
    *faults(
        "align_jax/placement.py",
        "tests/test_placement.py",
        ("a-gpu-gets-what-suits-a-cpu", "default=elsewhere", "default=on_cpu"),
    ),
    *faults(
        "align_jax/models/flat_dot_general.py",
        "tests/test_placement.py",
        (
            "kernels-gradient-behind-a-barrier-everywhere",
            "return by_platform(on_cpu, elsewhere, rows, kernel)",
            "return on_cpu(rows, kernel)",
        ),
    ),
    *faults(
        "align_jax/divergences/edge_conditional_transport.py",
        "tests/divergences/test_edge_conditional_transport.py",
        ("edge-transport-is-a-mean-over-all-nodes", "/ jnp.sum(has_edge)", "/ num_nodes"),
        (
            "edge-transport-back-over-the-receivers",
            "_mean_cost(scores, costs, senders, num_nodes, indices_are_sorted=False)",
            "_mean_cost(scores, costs, receivers, num_nodes, indices_are_sorted=False)",
        ),
    ),
    *faults(
        "align_jax/divergences/maximum_mean_discrepancy.py",
        DIVERGENCES,
        ("mmd-bandwidth-halved", "query / bandwidth, key", "2.0 * query / bandwidth, 2.0 * key"),
        ("mmd-kernel-without-the-half", "jnp.exp(-0.5 * squared", "jnp.exp(-squared"),
    ),
    *faults(
        "align_jax/divergences/energy_distance.py",
        DIVERGENCES,
        (
            "energy-has-a-gradient-through-its-denominator",
            "largest = jax.lax.stop_gradient(2.0 * between)",
            "largest = 2.0 * between",
        ),
        ("energy-of-squared-distances", "jnp.where(apart, jnp.sqrt(", "jnp.where(apart, jnp.abs("),
        (
            "coincident-points-have-an-endless-slope",
            "jnp.sqrt(jnp.where(apart, squared_distance, 1.0))",
            "jnp.sqrt(squared_distance)",
        ),
    ),
    *faults(
        "align_jax/divergences/optimal_transport.py",
        DIVERGENCES,
        (
            "ot-gradient-takes-the-plan-as-fixed",
            "return plan, (plan * (x[..., :, None] + y[..., None, :]) - weighted) / epsilon",
            "return plan, 0.0 * weighted",
        ),
    ),
    *faults(
        "align_jax/divergences/optimal_transport.py",
        PARTICULARS,
        ("sinkhorn-always-says-that-it-converged", "residual <= threshold", "residual >= 0.0"),
        ("ot-takes-any-epsilon", "if epsilon < least:", "if epsilon < 0:"),
        ("ot-without-newton-steps", "_NEWTON_STEPS = 6", "_NEWTON_STEPS = 0"),
    ),
    *faults(
        "align_jax/divergences/optimal_transport.py",
        "tests/divergences/test_second_order.py",
        (
            "ot-plan-stays-in-a-second-derivative",
            "    plan = _moving(costs, plan, epsilon)\n    if",
            "    if",
        ),
    ),
    *faults(
        "align_jax/models/embedding.py",
        "tests/models/test_ids_out_of_range.py",
        (
            "a-negative-id-counts-from-the-end",
            "jnp.where(inputs < 0, self.num_embeddings, inputs)",
            "inputs",
        ),
    ),
    *faults(
        "align_jax/numerics.py",
        "tests/models/test_ids_out_of_range.py",
        ("the-first-id-beyond-the-table-passes", "numbers >= count)", "numbers > count)"),
    ),
    *faults(
        "align_jax/calibration.py",
        "tests/test_calibration.py",
        (
            "a-traced-label-that-is-no-class-is-measured",
            "return jnp.where(known, values, jnp.nan)",
            "return jnp.where(known, values, values)",
        ),
        ("a-class-of-minus-inf-spoils-the-temperature", "logits > -jnp.inf", "logits >= -jnp.inf"),
        (
            "a-where-hides-any-confidence",
            "if wrong is not None:",
            "if wrong is not None and where is None:",
        ),
    ),
    *faults(
        "align_jax/alignment.py",
        "tests/test_alignment.py",
        (
            "a-lifted-scope-is-taken-for-that-of-apply",
            "next((x for x in reversed(scopes) if not x.path), scopes[-1])",
            "scopes[-1]",
        ),
        (
            "the-control-counts-padding",
            "weights = numerics.token_weights(numerics.explicit_mask(x, mask))",
            "weights = numerics.token_weights(numerics.explicit_mask(x, None))",
        ),
    ),
    *faults(
        "align_jax/gradient_reversal.py",
        "tests/divergences/test_second_order.py",
        (
            "weighed-gradient-weighs-its-own-derivative",
            "return (x, jnp.zeros(x.shape[:-1], jnp.float32)), None",
            "return weighed_gradient(x), None",
        ),
    ),
    *faults(
        "align_jax/divergences/blocks.py",
        "tests/divergences/test_small_clouds.py",
        ("smallest-products-end-the-process", "_LEAST_PRODUCT = 8", "_LEAST_PRODUCT = 1"),
    ),
    *faults(
        "align_jax/divergences/blocks.py",
        "tests/divergences/test_divergences.py",
        ("own-pairs-pull-at-one-end", "of_x if of_y else 2.0 * of_x", "of_x"),
        ("pulls-of-columns-gone", "            if y is not None:\n", "            if False:\n"),
    ),
    *faults(
        "align_jax/divergences/blocks.py",
        "tests/divergences/test_particulars.py",
        ("points-pull-at-themselves", "jnp.where(itself, 0.0, slopes)", "slopes"),
    ),
    *faults(
        "align_jax/numerics.py",
        "tests/divergences/test_far_clouds.py",
        (
            "padding-moves-the-centre",
            "        weights = token_weights(mask)[..., None, None]\n        means",
            "        weights = token_weights(jnp.ones_like(mask))[..., None, None]\n        means",
        ),
        (
            "rounding-counts-as-distance",
            "distance <= _ROUNDING * squares, distance, 0.0",
            "distance <= 0.0, distance, 0.0",
        ),
        ("infinity-saturates", " + 0.0 * x, explicit_mask(x, mask)", ", explicit_mask(x, mask)"),
    ),
    *faults(
        "align_jax/numerics.py",
        DIVERGENCES,
        ("inputs-do-not-saturate", "-SATURATION, SATURATION", "-jnp.inf, jnp.inf"),
    ),
    *faults(
        "align_jax/numerics.py",
        "tests/test_numerics.py",
        (
            "nan-has-a-direction-of-zero",
            "scaled = jnp.where(nonzero, x / scale, 0.0 * x)",
            "scaled = jnp.where(nonzero, x / scale, 0.0)",
        ),
        (
            "clamping-at-zero-cuts-the-gradient",
            "return x + jax.lax.stop_gradient(jnp.maximum(x, 0.0) - x)",
            "return jnp.maximum(x, 0.0)",
        ),
        (
            "unit-scale-has-a-gradient",
            "    rows = jax.lax.stop_gradient(rows)\n",
            "",
        ),
        ("unit-scale-counts-padding", "zero_padding(x.astype(jnp.float32), mask) for", "x for"),
        (
            "unit-scale-weighs-tokens-alike",
            "0.5 * jnp.concatenate([token_weights(query_mask), token_weights(key_mask)], axis=1)",
            "token_weights(jnp.concatenate([query_mask, key_mask], axis=1))",
        ),
        (
            "clouds-are-not-centred",
            "jnp.where(spreads[1] < spreads[0], means[1], means[0])",
            "jnp.zeros_like(means[0])",
        ),
        (
            "masked-mean-divides-by-all",
            "count = jnp.sum(mask, axis=axis)",
            "count = jnp.sum(jnp.ones_like(mask), axis=axis)",
        ),
        (
            "directions-have-an-epsilon-in-the-norm",
            "return scaled / length,",
            "return scaled / (length + 1e-3),",
        ),
        ("gradient-near-zero-is-not-damped", "norm / _DAMPING_RADIUS**2", "1.0 / _DAMPING_RADIUS"),
    ),
)

_ALIGNMENT: tuple[Mutation, ...] = (
    *faults(
        "align_jax/adapters.py",
        "tests/test_adapters.py",
        (
            "adapters-are-not-scaled-by-their-rank",
            "config.alpha / config.rank * change",
            "config.alpha * change",
        ),
        ("integers-have-adapters", " or not floating:", ":"),
        ("keys-with-slashes-are-cut", "{paths[name]: x for", '{tuple(name.split("/")): x for'),
        (
            "networks-have-adapters",
            'if label == "model"]',
            "if label]",
        ),
        (
            "a-kernels-outputs-are-all-axes-but-the-first",
            "and own[-len(bias) :] == bias",
            "and own == bias",
        ),
    ),
    *faults(
        "align_jax/config.py",
        "tests/test_alignment.py",
        ("the-text-false-is-true", "if not isinstance(getattr(self, name), bool)", "if False"),
    ),
    *faults(
        "align_jax/numerics.py",
        "tests/divergences/test_particulars.py",
        ("an-infinite-limit-is-one", "0 < value <= _LARGEST", "0 < value"),
    ),
    *faults(
        "align_jax/numerics.py",
        "tests/test_switches.py",
        (
            "a-mean-promotes-its-count",
            "total / jnp.maximum(count, 1).astype(total.dtype)",
            "total / jnp.maximum(count, 1)",
        ),
    ),
    *faults(
        "align_jax/gradient_reversal.py",
        "tests/test_numerics.py",
        ("gradient-reversal-gone", "return (-cotangent,)", "return (cotangent,)"),
        (
            "weighed-gradient-ignores-its-factors",
            "(cotangent * factors[..., None])",
            "(cotangent + 0.0 * factors[..., None])",
        ),
    ),
    *faults(
        "align_jax/networks.py",
        "tests/test_networks.py",
        (
            "heads-start-with-the-same-network",
            'split_rngs={"params": True}, in_axes',
            'split_rngs={"params": False}, in_axes',
        ),
        (
            "penalty-sees-the-first-feature-alone",
            "feature.append(rows % features)",
            "feature.append(rows * 0)",
        ),
        (
            "penalty-is-a-mean-over-features",
            "[..., None] * (features / len(clouds))",
            "[..., None] / len(clouds)",
        ),
        (
            "penalty-of-both-clouds-is-a-mean-over-all-tokens",
            "weight = jnp.concatenate(weights, axis=1)[..., None] * (features / len(clouds))",
            "weight = jnp.full_like(squares, features / squares.shape[1])",
        ),
        (
            "penalty-counts-padding",
            "numerics.token_weights(numerics.explicit_mask(x, mask)[:, tokens])",
            "numerics.token_weights(numerics.explicit_mask(x, None)[:, tokens])",
        ),
        (
            "kernels-gradient-reversed-twice",
            "return reverse_gradient(kernel), reverse_gradient(bias)",
            "return reverse_gradient(reverse_gradient(kernel)), reverse_gradient(bias)",
        ),
        (
            "highway-gate-inverted",
            "gate * nn.relu(transformed) + (1.0 - gate) * x",
            "(1.0 - gate) * nn.relu(transformed) + gate * x",
        ),
        ("critic-without-a-leak", "nn.leaky_relu if self.highway else", "nn.relu if True else"),
    ),
    *faults(
        "align_jax/alignment.py",
        "tests/test_alignment.py",
        (
            "critic-descends",
            'self.dtype, adversarial=True, name="critic"',
            'self.dtype, adversarial=False, name="critic"',
        ),
        (
            "ct-does-not-push-queries-and-keys",
            'name="critic_and_navigator"), both',
            'name="critic_and_navigator"), jax.lax.stop_gradient(both)',
        ),
        ("penalty-is-a-reward", "value -= penalty - jax", "value += penalty - jax"),
        (
            "penalty-changes-the-value",
            "penalty - jax.lax.stop_gradient(penalty)",
            "penalty",
        ),
        ("keys-are-weighed-as-queries", "< number, 1.0, -1.0)", "< number, 1.0, 1.0)"),
        ("no-slope-is-free", "jnp.maximum(slope - FREE_SLOPE, 0.0)", "slope"),
        (
            "a-slope-is-free-to-a-discriminator",
            'if config.method == "ct":\n            # Under',
            "if True:\n            # Under",
        ),
        (
            "networks-are-always-shared",
            "if config.shared_networks else networks.for_each_head",
            "if True else networks.for_each_head",
        ),
        ("networks-see-longer-vectors", "if config.unit_scale:", "if False:"),
        ("no-constant-feature", "if config.constant_feature:", "if False:"),
        ("gan-always-saturates", "if self.config.saturating:", "if True:"),
        (
            "over-heads-a-token-may-be-query-or-key",
            "return query_mask & key_mask",
            "return query_mask | key_mask",
        ),
        (
            "sampled-tokens-may-be-padding",
            "order = jnp.where(mask, order, -1.0)",
            "order = jnp.where(mask, order, order)",
        ),
        (
            "the-drawn-count-for-the-empty-too",
            "valid.reshape(drawn.shape).sum(axis=1, keepdims=True)",
            "drawn.shape[1]",
        ),
        (
            "the-first-sample-has-the-gradient-of-the-drawn",
            "drawn = (chosen[:, None] == jnp.arange(group)[None]).reshape",
            "drawn = (0 * chosen[:, None] == jnp.arange(group)[None]).reshape",
        ),
        (
            "the-drawn-samples-gradient-is-for-all-of-their-group",
            "chosen_alone.sum(axis=1)",
            "chosen_alone.mean(axis=1)",
        ),
        (
            "an-empty-sample-may-be-drawn",
            "order = jnp.where(valid.reshape(order.shape), order, -1.0)",
            "order = jnp.where(valid.reshape(order.shape), order, order)",
        ),
        (
            "nan-in-padding-reaches-the-networks",
            "query, key = numerics.zero_padding(query, query_mask), "
            "numerics.zero_padding(key, key_mask)",
            "key = numerics.zero_padding(key, key_mask)",
        ),
        (
            "samples-without-queries-count",
            "valid = jnp.any(numerics.explicit_mask(query, query_mask), axis=1)",
            "valid = jnp.ones(len(query), bool)",
        ),
        ("navigator-is-never-normalised", "if config.normalize_navigator:", "if False:"),
    ),
    *faults(
        "align_jax/yardstick.py",
        "tests/test_yardstick.py",
        (
            "the-median-is-the-lower-of-the-middle-two",
            "jnp.where(reached > count // 2, lower, above)",
            "jnp.where(reached > 0, lower, above)",
        ),
        (
            "yardstick-counts-a-point-with-itself",
            "valid[:, None] & valid[None, :] & ~jnp.eye(len(valid), dtype=bool)",
            "valid[:, None] & valid",
        ),
        (
            "yardstick-has-a-fixed-bandwidth",
            "kernel = jnp.exp(-squared / scale)",
            "kernel = jnp.exp(-squared)",
        ),
        (
            "yardstick-samples-padding",
            "order = jnp.where(mask, jax.random.uniform(rng, mask.shape), -1.0)",
            "order = jax.random.uniform(rng, mask.shape)",
        ),
        (
            "yardstick-counts-rows-that-fill-up",
            "of_samples(mask.T, sample_mask).T.reshape(-1)",
            "mask.reshape(-1)",
        ),
        (
            "attention-looks-at-padding",
            "shares = jax.nn.softmax(logits, axis=-1, where=admitted)",
            "shares = jax.nn.softmax(logits, axis=-1)",
        ),
        (
            "a-rank-counts-queries-that-are-padding",
            "shares = jnp.where(rows[:, None, :, None], shares, 0.0)",
            "shares = jnp.where(admitted, shares, 0.0)",
        ),
        (
            "statistics-count-rows-that-fill-up",
            "of_samples(clouds.query_mask.T, sample_mask).T",
            "clouds.query_mask",
        ),
    ),
    *faults(
        "align_jax/collection.py",
        "tests/test_alignment.py",
        (
            "layers-sorted-by-their-letters",
            "return [(text, int(number or -1)) for text, number in",
            "return [(text + number, 0) for text, number in",
        ),
        ("lists-are-not-stripped", "isinstance(params, list | tuple)", "isinstance(params, set)"),
        (
            "strip-takes-any-module-of-that-name",
            "_is_owned(name) and isinstance(child, Mapping) and set(child) <= _NETWORKS",
            "_is_owned(name)",
        ),
        (
            "table-counts-samples-without-tokens",
            "numerics.masked_mean(divergence, valid[..., None], axis=1)",
            "jnp.mean(divergence, axis=1)",
        ),
    ),
    *faults(
        "align_jax/collection.py",
        "tests/test_alignment.py",
        (
            "loss-counts-layers-without-samples",
            "return numerics.masked_mean(per_layer, self.count > 0, axis=0)",
            "return jnp.mean(per_layer)",
        ),
    ),
    *faults(
        "align_jax/config.py",
        "tests/test_alignment.py",
        (
            "layers-match-from-the-start-alone",
            "re.search(pattern, name)",
            "re.match(pattern, name)",
        ),
        (
            "default-width-is-not-the-papers",
            "features: int = 10\n    norm",
            "features: int = 16\n    norm",
        ),
    ),
    *faults(
        "align_jax/attention.py",
        "tests/test_attention.py",
        (
            "attention-mask-is-not-observed",
            'seen[:] = [query, key, kwargs.get("mask")]',
            "seen[:] = [query, key, None]",
        ),
        (
            "cross-attention-of-one-array-is-none",
            "return keys is None or keys is inputs_q",
            "return keys is None",
        ),
    ),
    *faults(
        "align_jax/masks.py",
        "tests/test_attention.py",
        (
            "causal-mask-hides-padding",
            "padding |= jnp.all(allowed == causal, axis=(-2, -1))",
            "padding |= False",
        ),
    ),
    *faults(
        "align_jax/convert.py",
        "tests/test_convert.py",
        (
            "a-second-call-replaces-the-first",
            "return (*before, *new)",
            "return new",
        ),
        (
            "a-missed-attention-is-no-error-in-training",
            "args, kwargs)\n        tapping.check(traced, self.config, self.allow_missing, "
            "self._name())\n        rng = None",
            "args, kwargs)\n        rng = None",
        ),
    ),
    *faults(
        "align_jax/tapping.py",
        "tests/test_convert.py",
        (
            "allow-missing-takes-any-text-for-a-pattern",
            '    numerics.check_patterns("allow_missing", allow_missing)\n',
            "",
        ),
        (
            "two-attentions-share-their-networks",
            'f"{NAME}_{index}" if index else NAME',
            "NAME",
        ),
        (
            "layers-of-a-scan-share-their-networks",
            "if steps == Steps.LAYERS:\n                init",
            "if steps == Steps.CALLS:\n                init",
        ),
    ),
    *faults(
        "align_jax/finder/products.py",
        "tests/finder/test_finder.py",
        ("a-subtracted-mask-is-added", '"bias" if name != "sub" else "subtracted"', '"bias"'),
        ("lost-logits-are-forgotten", "self.products[number].lost = True", "pass"),
        (
            "a-sum-of-products-is-the-first",
            "if len({s.product for _, s in both}) > 1:",
            "if len({s.product for _, s in both}) > 2:",
        ),
    ),
    *faults(
        "align_jax/finder/search.py",
        "tests/finder/test_finder.py",
        ("groups-are-tokens", "factor.kind == Kind.DATA and n not in heads", "factor.size > 1"),
        ("copies-of-samples-are-heads", "if counts or copies else", "if counts else"),
        ("chunks-of-queries-are-all", "if queries.along != keys.along:", "if False:"),
    ),
    *faults(
        "align_jax/finder/site.py",
        "tests/finder/test_finder.py",
        (
            "scaled-queries-stay-scaled",
            "return x if operand.scale == 1.0 else",
            "return x if operand.scale else",
        ),
        ("a-predicate-that-blocks-keeps", "allowed = ~allowed", "allowed = allowed"),
    ),
    *faults(
        "align_jax/segments.py",
        "tests/test_segments.py",
        ("segment-softmax-has-one-peak", "logits - peak[segments]", "logits - jnp.max(peak)"),
    ),
    *faults(
        "align_jax/segments.py",
        "tests/divergences/test_edge_conditional_transport.py",
        ("lists-of-edges-of-two-lengths-pass", "or senders.shape != receivers.shape or", "or"),
        (
            "receivers-out-of-order-pass",
            'check_segments("receivers", receivers, nodes, ascending=True)',
            'check_segments("receivers", receivers, nodes, ascending=False)',
        ),
    ),
    *faults(
        "align_jax/numerics.py",
        "tests/divergences/test_divergences.py",
        ("a-cosine-is-a-cost", "return 1.0 - products(query, key)", "return products(query, key)"),
    ),
    *faults(
        "align_jax/placement.py",
        "tests/test_placement.py",
        (
            "a-share-counts-as-cut-by-the-compiler",
            "any(kind != jax.sharding.AxisType.Manual for kind in mesh.axis_types)",
            "bool(mesh.axis_types)",
        ),
    ),
    *faults(
        "align_jax/calibration.py",
        "tests/test_calibration.py",
        (
            "ece-bins-closed-on-the-left",
            "jnp.ceil(jnp.nan_to_num(confidence) * bins).astype(jnp.int32) - 1",
            "jnp.floor(jnp.nan_to_num(confidence) * bins).astype(jnp.int32)",
        ),
        (
            "ece-is-a-mean-of-means",
            "jnp.sum(gaps) / jnp.maximum(jnp.sum(self.count), 1.0)",
            "jnp.mean(gaps / jnp.maximum(self.count, 1.0))",
        ),
        ("temperature-inverted", "jnp.exp(-(low + high) / 2)", "jnp.exp((low + high) / 2)"),
    ),
    *faults(
        "align_jax/uncertainty.py",
        "tests/test_calibration.py",
        ("pavpu-counts-swapped", "(correct == certain)", "(correct != certain)"),
        ("t-test-with-biased-variances", "ddof=1", "ddof=0"),
        (
            "t-test-of-means-far-from-zero",
            "x.astype(jnp.float32) - origin",
            "x.astype(jnp.float32)",
        ),
        ("certain-where-answers-do-not-differ", "< significance", "> significance"),
    ),
)

_MODELS: tuple[Mutation, ...] = (
    *faults(
        "align_jax/models/bert.py",
        "tests/models/test_bert.py",
        (
            "roberta-positions-count-padding",
            "jnp.cumsum(tokens, axis=1) * tokens + config.pad_token_id",
            "jnp.cumsum(tokens, axis=1) + config.pad_token_id",
        ),
        (
            "roberta-has-a-position-too-many",
            "offset = self.pad_token_id + 1 if",
            "offset = self.pad_token_id if",
        ),
    ),
    *faults(
        "align_jax/models/albert.py",
        "tests/models/test_albert.py",
        (
            "albert-groups-alternate",
            "return application * self.groups // self.layers",
            "return application % self.groups",
        ),
    ),
    *faults(
        "align_jax/models/transformer.py",
        "tests/models/test_bert.py",
        (
            "padding-embedding-is-trained",
            "jnp.where(padding, jax.lax.stop_gradient(words), words)",
            "jnp.where(padding, words, words)",
        ),
        (
            "tokens-attend-to-padding",
            "mask=valid[:, None, None, :], query_mask",
            "mask=None, query_mask",
        ),
        (
            "padded-queries-are-aligned",
            "query_mask=valid, key_mask=valid)",
            "query_mask=jnp.ones_like(valid), key_mask=valid)",
        ),
    ),
    *faults(
        "align_jax/models/transformer.py",
        "tests/pretrained/test_parity.py",
        ("no-residual-around-the-mlp", '"mlp_norm")(tokens + hidden)', '"mlp_norm")(hidden)'),
    ),
    *faults(
        "align_jax/pretrained/predict.py",
        "tests/pretrained/test_predict.py",
        (
            "predictions-in-the-order-of-lengths",
            "outputs[places] =",
            "outputs[start:][: len(places)] =",
        ),
        ("several-labels-share-one-probability", "if problem == MULTI_LABEL:", "if False:"),
        ("nan-is-the-first-class", "if wrong.size:", "if False:"),
    ),
    *faults(
        "align_jax/pretrained/load.py",
        "tests/pretrained/test_predict.py",
        ("a-random-head-answers", "if params is None and fresh:", "if False:"),
        ("parameters-may-lack-some", "merge_parameters(", "(lambda own, given: given)("),
    ),
    *faults(
        "align_jax/collection.py",
        "tests/test_mistakes.py",
        ("initialised-parameters-over-ones-own", "into | given", "given | into"),
    ),
    *faults(
        "align_jax/models/layer_norm.py",
        "tests/models/test_layer_norm.py",
        (
            "layer-norm-epsilon-beside-the-deviation",
            "lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + epsilon)",
            "1.0 / (jnp.sqrt((centred * centred).mean(axis=-1, keepdims=True)) + epsilon)",
        ),
        (
            "layer-norm-derivative-without-the-variance",
            "tangent.mean(axis=-1, keepdims=True) - out * along)",
            "tangent.mean(axis=-1, keepdims=True))",
        ),
    ),
    *faults(
        "align_jax/models/dropout.py",
        "tests/models/test_dropout.py",
        ("dropout-does-not-scale-what-stays", "x * np.asarray(1 / (1 - rate), x.dtype)", "x"),
        ("every-row-has-the-same-dropout", "place += counted *", "place = counted *"),
    ),
    *faults(
        "align_jax/models/stack.py",
        "tests/models/test_bert.py",
        (
            "scanned-layers-share-their-dropout",
            '"dropout": True, NAME: True}',
            '"dropout": False, NAME: True}',
        ),
    ),
    *faults(
        "align_jax/models/attention_function.py",
        "tests/models/test_bert.py",
        (
            "attention-dropout-scales-without-dropping",
            "weights = dropped(weights, dropout_rng, dropout_rate)",
            "weights = weights / (1.0 - dropout_rate)",
        ),
    ),
    *faults(
        "align_jax/models/flat_dot_general.py",
        "tests/models/test_flat_dot_general.py",
        (
            "bfloat16-products-summed-in-bfloat16",
            "lax.Precision.DEFAULT, jnp.float32)",
            "lax.Precision.DEFAULT, jnp.bfloat16)",
        ),
    ),
    *faults(
        "align_jax/models/gat.py",
        "tests/models/test_gat.py",
        (
            "gat-softmax-over-the-receivers-of-a-sender",
            "segment_softmax(logits, receivers, num_nodes, indices_are_sorted=True)",
            "segment_softmax(logits, senders, num_nodes)",
        ),
        ("gat-output-heads-are-summed", "outputs.mean(axis=1)", "outputs.sum(axis=1)"),
    ),
    *faults(
        "align_jax/models/graph.py",
        "tests/models/test_graph.py",
        (
            "an-edge-to-one-node-too-many-is-admitted",
            "(nodes < 0) | (nodes >= num_nodes)",
            "(nodes < 0) | (nodes > num_nodes)",
        ),
    ),
    *faults(
        "align_jax/models/mcan.py",
        "tests/models/test_mcan.py",
        (
            "mcan-guided-attention-sees-padded-words",
            'attend("guided_attention", tokens, *guides)',
            'attend("guided_attention", tokens, guides[0], jnp.ones_like(guides[1]))',
        ),
        (
            "mcan-reduces-padding-too",
            "jnp.where(valid, scores, np.finfo(np.float32).min)",
            "scores",
        ),
        ("mcan-aligns-padded-queries", '"query_mask": valid', '"query_mask": None'),
    ),
    *faults(
        "align_jax/models/heads.py",
        "tests/models/test_bert.py",
        (
            "mean-pooling-counts-padding",
            "return masked_mean(hidden, attention_mask.astype(bool)[..., None], axis=1)",
            "return hidden.mean(axis=1)",
        ),
    ),
    *faults(
        "align_jax/models/heads.py",
        "tests/pretrained/test_parity.py",
        (
            "span-start-and-end-swapped",
            "SpanLogits(logits[..., 0], logits[..., 1])",
            "SpanLogits(logits[..., 1], logits[..., 0])",
        ),
    ),
    *faults(
        "align_jax/models/vit.py",
        "tests/models/test_vit.py",
        (
            "vit-reads-the-last-token-as-the-class",
            'tokens[:, 0] if config.pool == "cls"',
            'tokens[:, -1] if config.pool == "cls"',
        ),
    ),
)

_PRETRAINED: tuple[Mutation, ...] = (
    *faults(
        "align_jax/pretrained/tokenizer.py",
        "tests/pretrained/test_tokenizer.py",
        (
            "the-second-of-a-pair-is-always-cut",
            'strategy="longest_first"',
            'strategy="only_second"',
        ),
        (
            "a-generator-has-no-texts",
            "list(texts), None if pairs is None else list(pairs)",
            "texts, pairs",
        ),
    ),
    *faults(
        "align_jax/pretrained/tokenizer.py",
        "tests/pretrained/test_tokenizer_settings.py",
        ("always-truncated-on-the-right", "direction=self.truncation_side, ", ""),
    ),
    *faults(
        "align_jax/pretrained/tokenizer_files.py",
        "tests/pretrained/test_tokenizer.py",
        (
            "roberta-special-tokens-exchanged",
            "processors.RobertaProcessing(end, start, True, prefix)",
            "processors.RobertaProcessing(start, end, True, prefix)",
        ),
        ("second-text-has-the-first-ones-type", "$B:1 {end}:1", "$B:0 {end}:0"),
    ),
    *faults(
        "align_jax/pretrained/tokenizer_settings.py",
        "tests/pretrained/test_tokenizer_settings.py",
        (
            "added-tokens-in-the-files-order",
            "sorted(entries, key=lambda entry: entry[0])",
            "entries",
        ),
        (
            "a-named-classes-defaults-do-not-count",
            "if settings.named or settings.says(name) else ()",
            "if settings.says(name) else ()",
        ),
        ("any-class-of-tokenizer", "if name in _PYTHON or", "if not name or"),
        (
            "bos-and-eos-are-no-special-tokens",
            "further = list(self._special_tokens())",
            "further = []",
        ),
        ("the-models-class-does-not-count", "and usual == settings.by_model", "and not usual"),
    ),
    *faults(
        "align_jax/pretrained/load.py",
        "tests/pretrained/test_save.py",
        ("a-new-head-has-the-old-names", "and not new_head and", "and"),
        (
            "the-problem-is-forgotten",
            "problem=problem_in(values, model.labels, source),",
            'problem="",',
        ),
    ),
    *faults(
        "align_jax/pretrained/save.py",
        "tests/pretrained/test_save.py",
        (
            "weights-for-their-owner-alone",
            'shutil.copymode(path.parent / "config.json", path)',
            "pass",
        ),
    ),
    *faults(
        "align_jax/models/transformer.py",
        "tests/models/test_bert.py",
        (
            "the-exact-gelu-is-the-tanh-form",
            '("gelu", "gelu_python"), exact_gelu',
            '("gelu", "gelu_python"), nn.gelu',
        ),
    ),
    *faults(
        "align_jax/pretrained/files.py",
        "tests/pretrained/test_load.py",
        (
            "an-adapter-is-left-out",
            "(folder / name).is_file(), _ADAPTERS",
            "(folder / name).is_dir(), _ADAPTERS",
        ),
    ),
    *faults(
        "align_jax/pretrained/windows.py",
        "tests/pretrained/test_tokenizer.py",
        ("a-window-points-into-the-question", "part == 1 for part", "part == 0 for part"),
    ),
    *faults(
        "align_jax/pretrained/windows.py",
        "tests/train/data/test_squad_offsets.py",
        (
            "an-accent-is-not-the-letters",
            "np.where(end > start, accents, end)",
            "end",
        ),
    ),
    *faults(
        "align_jax/pretrained/tokenizer.py",
        "tests/train/data/test_squad_offsets.py",
        ("a-word-begins-at-its-second-letter", 'step["trim_offsets"] = False', "pass"),
        ("white-space-takes-the-questions-place", "text = text.strip(_BLANKS)", "pass"),
        (
            "half-a-letter-is-more-tokens",
            "while len(encoding.ids) > tokens:",
            "if len(encoding.ids) > tokens:",
        ),
    ),
    *faults(
        "align_jax/pretrained/tokenizer_files.py",
        "tests/pretrained/test_tokenizer.py",
        ("sentencepiece-scores-big-endian", 'struct.unpack("<f"', 'struct.unpack(">f"'),
    ),
    *faults(
        "align_jax/pretrained/convert.py",
        "tests/pretrained/test_load.py",
        ("legacy-gamma-is-the-bias", '("gamma", "weight")', '("gamma", "bias")'),
    ),
    *faults(
        "align_jax/pretrained/convert.py",
        "tests/pretrained/test_save.py",
        (
            "exported-query-and-key-exchanged",
            '("attention", "query"): ("attention.self.query", "attention.query"),\n'
            '    ("attention", "key"): ("attention.self.key", "attention.key"),',
            '("attention", "query"): ("attention.self.key", "attention.key"),\n'
            '    ("attention", "key"): ("attention.self.query", "attention.query"),',
        ),
    ),
    *faults(
        "align_jax/pretrained/convert.py",
        "tests/pretrained/test_load.py",
        (
            "a-tensor-of-another-shape-is-taken",
            "if tensor.shape != expected:",
            "if tensor.size != np.prod(expected):",
        ),
        (
            "a-tensor-with-nan-is-taken",
            "if not np.isfinite(tensor.astype(np.float32, copy=False)).all():",
            "if not np.isfinite(tensor.astype(np.float32, copy=False)).any():",
        ),
    ),
    *faults(
        "align_jax/pretrained/files.py",
        "tests/pretrained/test_load.py",
        ("pickles-are-run", "weights_only=True", "weights_only=False"),
        (
            "an-index-may-name-files-elsewhere",
            "if Path(file).name != file:",
            "if not Path(file).name:",
        ),
        ("bfloat16-files-read-as-float16", '"BF16": jnp.bfloat16', '"BF16": np.float16'),
    ),
    *faults(
        "align_jax/pretrained/files.py",
        "tests/pretrained/test_load.py",
        (
            "json-nested-without-end-is-not-caught",
            "except (OSError, ValueError, RecursionError) as error:",
            "except (OSError, ValueError) as error:",
        ),
    ),
    *faults(
        "align_jax/pretrained/config.py",
        "tests/pretrained/test_load.py",
        (
            "a-file-overrides-the-options",
            "return dataclasses.replace(config, **given)",
            "return config",
        ),
    ),
    *faults(
        "align_jax/pretrained/save.py",
        "tests/pretrained/test_save.py",
        (
            "an-earlier-models-alignment-stays",
            "(folder / ALIGNMENT).unlink(missing_ok=True)",
            "(folder / ALIGNMENT).exists()",
        ),
        ("label-names-are-sorted", "    return list(names)\n", "    return sorted(names)\n"),
        (
            "another-pooling-is-exported-as-transformers-own",
            "None if model.pooling == theirs else model.pooling",
            'None if model.pooling in (theirs, "dense") else model.pooling',
        ),
        (
            "an-own-class-in-a-file-that-every-class-reads",
            "OWN_SAFETENSORS if own else SAFETENSORS), tensors",
            "SAFETENSORS), tensors",
        ),
        (
            "weights-of-an-earlier-model-stay",
            "(folder / (SAFETENSORS if own else OWN_SAFETENSORS)).unlink(missing_ok=True)",
            "(folder / (SAFETENSORS if own else OWN_SAFETENSORS)).exists()",
        ),
    ),
    *faults(
        "align_jax/pretrained/errors.py",
        "tests/pretrained/test_load.py",
        ("the-extra-is-not-named", "if package in EXTRA", "if not package"),
        (
            "the-extra-lacks-a-package",
            '"huggingface_hub", "safetensors", "tokenizers")',
            '"huggingface_hub", "safetensors")',
        ),
    ),
    *faults(
        "align_jax/pretrained/own_class.py",
        "tests/pretrained/test_save.py",
        ("the-own-class-counts-padding", "mask.sum(1).clamp(min=1)", "mask.shape[1]"),
        (
            "what-transformers-saves-has-no-weights",
            "self.transformers_weights = {weights_key}",
            'self.transformers_weights = "align_jax.safetensors"',
        ),
    ),
    *faults(
        "align_jax/pretrained/card.py",
        "tests/pretrained/test_card.py",
        (
            "a-label-on-the-card-is-html",
            'html.escape(" ".join(kept.split()), quote=False)',
            '" ".join(kept.split())',
        ),
        (
            "somebodys-card-is-replaced",
            "not path.exists() or MARK in",
            'not path.exists() or "" in',
        ),
        (
            "the-card-says-where-a-folder-was",
            "Path(base).name if local else named",
            "named",
        ),
    ),
    *faults(
        "align_jax/pretrained/stablehlo.py",
        "tests/pretrained/test_stablehlo.py",
        (
            "the-program-knows-no-padding",
            "input_ids, attention_mask, token_type_ids)\n        return",
            "input_ids, None, token_type_ids)\n        return",
        ),
    ),
    *faults(
        "align_jax/pretrained/save.py",
        "tests/pretrained/test_hub.py",
        ("uploads-are-public", "private=private", "private=False"),
    ),
)

LIBRARY: tuple[Mutation, ...] = (*_DIVERGENCES, *_ALIGNMENT, *_MODELS, *_PRETRAINED)
