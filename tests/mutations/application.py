"""Faults in `train/`, and in the command that keeps the notebooks."""

from __future__ import annotations

from tests.mutations.mutation import Mutation, faults

_TASKS: tuple[Mutation, ...] = (
    *faults(
        "train/devices/mesh.py",
        "tests/train/devices/test_mesh.py",
        (
            "plans-wait-for-those-of-other-devices",
            "placement.cut_along(samples=DATA, heads=MODEL, words=words)",
            "placement.cut_along(words=words)",
        ),
        (
            "fsdp-gathers-the-batch",
            "microbatch_size=microbatch_size, shares=shares, gather=gather",
            "microbatch_size=microbatch_size, shares=shares",
        ),
        ("a-table-that-is-gathered-to-be-looked-up-in", "DATA if fsdp else None", "None"),
        ("evaluation-gathers-the-batch", "jax.jit(placed(eval_step)", "jax.jit(eval_step"),
    ),
    *faults(
        "train/run/log.py",
        "tests/train/run/test_log.py",
        ("time-left-of-the-whole-run", "(self._steps - step) / max", "self._steps / max"),
        (
            "a-reader-that-is-gone-ends-the-run",
            "contextlib.suppress(OSError):  # at",
            "contextlib.nullcontext():  # at",
        ),
        ("every-evaluation-of-a-graph-is-printed", "self._said.add(split)", "pass"),
    ),
    *faults(
        "train/run/sinks.py",
        "tests/train/run/test_sinks.py",
        (
            "points-are-sent-again",
            "            self._points = {}\n\n    def close",
            "\n    def close",
        ),
    ),
    *faults(
        "train/tasks/answers.py",
        "tests/train/tasks/test_answers.py",
        (
            "silent-at-the-threshold-itself",
            "silent = margins > null_threshold",
            "silent = margins >= null_threshold",
        ),
        (
            "no-answer-scores-as-in-the-last-window",
            'min(null[number], float(predictions["null"][row]))',
            'float(predictions["null"][row])',
        ),
        (
            "equal-margins-fall-on-both-sides",
            "np.append(ascending[1:] > ascending[:-1], True)",
            "np.append(ascending[1:] >= ascending[:-1], True)",
        ),
    ),
    *faults(
        "train/tasks/span.py",
        "tests/train/tasks/test_span.py",
        (
            "answers-may-be-a-token-longer",
            "longest = min(longest, tokens)",
            "longest = min(longest + 1, tokens)",
        ),
        (
            "padding-has-a-share-in-the-span-loss",
            "jnp.where(valid, logits, -jnp.inf), batch[name], where=valid",
            "logits, batch[name]",
        ),
        (
            "answers-never-end-with-the-context",
            "(position >= first) & (position <= last)",
            "(position >= first) & (position < last)",
        ),
    ),
    *faults(
        "train/tasks/classification.py",
        "tests/train/tasks/test_classification.py",
        (
            "accuracy-counts-padding",
            'Mean.of(probabilities.argmax(axis=-1) == batch["label"], mask)',
            'Mean.of(probabilities.argmax(axis=-1) == batch["label"])',
        ),
        (
            "the-first-pass-predicts-for-pavpu",
            "probabilities.mean(axis=0).argmax(axis=-1)",
            "probabilities[0].argmax(axis=-1)",
        ),
    ),
    *faults(
        "train/tasks/metrics.py",
        "tests/train/tasks/test_metrics.py",
        (
            "mean-of-batch-means",
            "return cls(total=total, count=where.sum().astype(jnp.float32))",
            "return cls(total=total / where.sum(), count=jnp.float32(1.0))",
        ),
    ),
    *faults(
        "train/tasks/text.py",
        "tests/train/tasks/test_text.py",
        (
            "matthews-is-f1",
            '"matthews": sklearn.metrics.matthews_corrcoef',
            '"matthews": sklearn.metrics.f1_score',
        ),
        (
            "choices-masked-in-the-wrong-order",
            'jnp.repeat(batch["mask"], batch["input_ids"].shape[1])',
            'jnp.tile(batch["mask"], batch["input_ids"].shape[1])',
        ),
    ),
    *faults(
        "train/tasks/vqa.py",
        "tests/train/tasks/test_vqa.py",
        (
            "vqa-loss-is-a-mean-over-answers",
            'batch["score"]).sum(axis=-1)',
            'batch["score"]).mean(axis=-1)',
        ),
    ),
    *faults(
        "train/tasks/vqa_answers.py",
        "tests/train/tasks/test_vqa_answers.py",
        ("two-people-make-an-answer-right", "min(count / 3.0, 1.0)", "min(count / 2.0, 1.0)"),
        (
            "whoever-agrees-is-not-left-out",
            "agree * soft_score(agree - 1)",
            "agree * soft_score(agree)",
        ),
    ),
    *faults(
        "train/tasks/node_classification.py",
        "tests/train/tasks/test_node_classification.py",
        (
            "nodes-of-all-splits-count",
            'return {**batch, "label": jnp.maximum(batch["label"], 0)}',
            'return {**batch, "mask": jnp.ones_like(batch["mask"])}',
        ),
    ),
)

_DATA: tuple[Mutation, ...] = (
    *faults(
        "train/data/base.py",
        "tests/train/data/test_base.py",
        (
            "every-epoch-has-the-same-order",
            "np.random.default_rng((seed, epoch))",
            "np.random.default_rng((seed, 0))",
        ),
        ("padding-is-not-masked", "np.zeros(missing, bool)", "np.ones(missing, bool)"),
        (
            "every-host-reads-the-first-rows",
            "rows[self.number * size : (self.number + 1) * size]",
            "rows[:size]",
        ),
    ),
    *faults(
        "train/data/base.py",
        "tests/train/data/test_squad.py",
        (
            "what-one-method-keeps-is-anothers",
            'setdefault(f"_kept_{method.__name__}", {})',
            'setdefault("_kept", {})',
        ),
    ),
    *faults(
        "train/registry.py",
        "tests/train/data/test_glue.py",
        ("an-unknown-name-is-told-no-nearer-one", "near = nearest(name, known)", 'near = ""'),
        ("any-name-is-known", "if name not in known:", "if not known:"),
    ),
    *faults(
        "train/data/text.py",
        "tests/train/data/test_glue.py",
        (
            "all-seeds-have-one-subset",
            "self.seed if self.new_subset else SUBSET_SEED",
            "SUBSET_SEED",
        ),
    ),
    *faults(
        "train/data/text.py",
        "tests/train/data/test_text.py",
        (
            "texts-have-the-same-order-in-every-epoch",
            "epoch_order(lengths, batch_size, window, (seed, epoch))",
            "epoch_order(lengths, batch_size, window, (seed, 0))",
        ),
        (
            "a-bucket-too-large",
            "[bucket for bucket in buckets if bucket >= longest]",
            "[bucket for bucket in buckets if bucket > longest]",
        ),
        (
            "a-resumed-epoch-starts-from-its-beginning",
            "(seed, epoch))[position:]:",
            "(seed, epoch))[:]:",
        ),
    ),
    *faults(
        "train/data/squad.py",
        "tests/train/data/test_squad.py",
        ("an-answer-takes-the-token-behind-it", "(inside[:, 0] < end)", "(inside[:, 0] <= end)"),
        (
            "a-window-may-hold-half-of-the-answer",
            "or begin < inside[0, 0] or end > inside[-1, 1]",
            "or begin < inside[0, 0]",
        ),
    ),
    *faults(
        "train/data/squad_files.py",
        "tests/train/data/test_squad.py",
        (
            "an-answer-may-stand-elsewhere",
            "if not answer.strip() or found != answer:",
            "if not answer.strip():",
        ),
    ),
    *faults(
        "train/comparison/markdown.py",
        "tests/train/report/test_page.py",
        ("a-name-may-be-a-link", r"*_{}\[\]<>|~$#&]", r"*_{}<>|~$#&]"),
        ("a-name-may-be-a-list", r"([-+=.)])", r"([+=.)])"),
    ),
    *faults(
        "train/data/vqa_v2.py",
        "tests/test_hostile_files.py",
        ("an-archive-of-any-size", "if size > LARGEST_ARCHIVE:", "if size < 0:"),
    ),
    *faults(
        "align_jax/pretrained/tokenizer.py",
        "tests/test_hostile_files.py",
        (
            "a-panic-is-no-error",
            "except BaseException as error:",
            "except Exception as error:",
        ),
    ),
    *faults(
        "train/data/json_text.py",
        "tests/train/data/test_json_text.py",
        ("half-an-emoji-is-text", 'if "\\\\ud" in text or "\\\\uD" in text:', "if not text:"),
    ),
    *faults(
        "train/data/safe_pickle.py",
        "tests/train/data/test_planetoid.py",
        (
            "pickles-may-use-getattr",
            '("builtins", "list"): _Type,',
            '("builtins", "list"): _Type,\n    ("builtins", "getattr"): getattr,',
        ),
        (
            "pickles-may-make-numpys-arrays",
            '("numpy", "ndarray"): _Type,',
            '("numpy", "ndarray"): np.ndarray,',
        ),
        (
            "a-pickles-memo-of-any-size",
            "not 0 <= argument <= number",
            "argument < 0",
        ),
        (
            "a-dtype-may-hide-objects-in-its-state",
            "or any(part is not None for part in parts)",
            "or not parts",
        ),
        (
            "sparse-columns-may-be-negative",
            "(indices >= 0) & (indices < columns)",
            "(indices < columns)",
        ),
    ),
    *faults(
        "train/data/planetoid.py",
        "tests/train/data/test_planetoid.py",
        ("graph-without-self-loops", "loops = np.arange(num_nodes)", "loops = np.arange(0)"),
        (
            "a-node-too-many-validates",
            "(nodes < num_train + num_validation)",
            "(nodes <= num_train + num_validation)",
        ),
        (
            "test-nodes-land-on-each-others-rows",
            "features[test_index], one_hot[test_index] =",
            "test_index.sort()\n    features[test_index], one_hot[test_index] =",
        ),
    ),
    *faults(
        "train/data/transfer.py",
        "tests/train/data/test_transfer.py",
        (
            "validation-and-test-are-one-half",
            "np.array_split(order, 2)[half]",
            "np.array_split(order, 2)[0]",
        ),
        (
            "endings-are-paired-with-the-next-context",
            "for context in columns[0] for _ in range(self.choices)]",
            "for _ in range(self.choices) for context in columns[0]]",
        ),
    ),
    *faults(
        "train/data/transfer_files.py",
        "tests/train/data/test_transfer.py",
        ("undecided-paraphrases-count", 'if found[1] != "3":', 'if found[1] != "":'),
    ),
    *faults(
        "train/data/glue.py",
        "tests/train/data/test_glue.py",
        (
            "both-orders-are-the-same-order",
            "[columns[0] + columns[1], columns[1] + columns[0]]",
            "[columns[0] + columns[0], columns[1] + columns[1]]",
        ),
        (
            "training-holds-what-another-task-evaluates",
            "allowed[[forbidden.isdisjoint(of_one) for of_one in texts]]",
            "allowed[[not forbidden >= of_one for of_one in texts]]",
        ),
    ),
    *faults(
        "train/data/visual_questions.py",
        "tests/train/data/test_vqa.py",
        (
            "every-picture-has-the-same-noise",
            "np.random.default_rng((self.noise_seed, identity))",
            "np.random.default_rng(self.noise_seed)",
        ),
    ),
    *faults(
        "train/data/vqa_v2.py",
        "tests/train/data/test_vqa.py",
        ("regions-may-be-pickled", "allow_pickle=False", "allow_pickle=True"),
        (
            "a-broken-zip-is-not-caught",
            "except Exception as error:  # a damaged archive",
            "except (OSError, ValueError) as error:  # a damaged archive",
        ),
        (
            "an-annotation-of-another-picture-is-taken",
            "if annotation is None or annotation[0] != image:",
            "if annotation is None:",
        ),
    ),
    *faults(
        "train/data/word_vectors.py",
        "tests/train/data/test_vqa.py",
        (
            "a-word-vector-may-hold-nan",
            "if len(vector) != width or not np.isfinite(vector).all():",
            "if len(vector) != width:",
        ),
    ),
)

_STEP: tuple[Mutation, ...] = (
    *faults(
        "train/step/state.py",
        "tests/train/step/test_step.py",
        (
            "warm-up-starts-a-step-late",
            "jnp.minimum((step + 1) / self.warmup_steps, 1.0)",
            "jnp.minimum(step / self.warmup_steps, 1.0)",
        ),
    ),
    *faults(
        "train/step/step.py",
        "tests/train/step/test_step.py",
        (
            "dropout-is-the-same-in-every-step",
            "jax.random.fold_in(jax.random.fold_in(state.rng, state.step), device)",
            "jax.random.fold_in(state.rng, device)",
        ),
        (
            "parts-of-a-batch-share-their-dropout",
            "part, jax.random.fold_in(rng, index), counts)",
            "part, rng, counts)",
        ),
        (
            "examples-are-not-summed-over-devices",
            'examples = _sum(batch["mask"].sum().astype(jnp.float32), axis_name)',
            'examples = batch["mask"].sum().astype(jnp.float32)',
        ),
        (
            "aligned-samples-are-not-summed-over-devices",
            "counts = _sum(sums.count, axis_name)",
            "counts = sums.count",
        ),
        (
            "parts-gradients-are-not-weighted",
            "/ jnp.maximum(examples, 1.0)",
            '/ jnp.maximum(part["mask"].sum(), 1.0)',
        ),
        (
            "parts-alignment-counted-per-part",
            "counts is None:\n        counts",
            "True:\n        counts",
        ),
        (
            "alignment-has-no-weight",
            "weighted = state.alignment.weight_at(state.step) * alignment",
            "weighted = alignment",
        ),
    ),
    *faults(
        "train/step/freezing.py",
        "tests/train/step/test_freezing.py",
        (
            "a-frozen-layer-freezes-its-networks",
            'any(name in expression for name in _OWN_NAMES.get(kind, ("",)))',
            "bool(kind)",
        ),
        (
            "an-encoder-frozen-whole-is-forgotten",
            "{name: trained.get(name, {}) for name in params}",
            "trained",
        ),
    ),
    *faults(
        "train/step/step.py",
        "tests/train/step/test_freezing.py",
        (
            "frozen-parameters-are-differentiated",
            "trained, frozen = split(state.params, state.freeze)",
            "trained, frozen = state.params, {}",
        ),
    ),
    *faults(
        "train/step/optimizer.py",
        "tests/train/experiment/test_adapters.py",
        (
            "adapters-have-the-heads-rate",
            "inside = (ENCODER, ADAPTERS)",
            "inside = (ENCODER,)",
        ),
    ),
    *faults(
        "train/predict.py",
        "tests/train/experiment/test_adapters.py",
        (
            "an-export-leaves-adapters-out",
            'state.variables["params"]',
            "state.params",
        ),
    ),
    *faults(
        "train/run/loop.py",
        "tests/train/experiment/test_adapters.py",
        (
            "other-adapters-are-not-taken-over",
            'other.params if other.adapters == state.adapters else other.variables["params"]',
            "other.params",
        ),
    ),
    *faults(
        "train/step/optimizer.py",
        "tests/train/step/test_optimizer.py",
        ("biases-are-decayed", r'(r"\bbias$", r"\bscale$")', r'(r"\bscale$",)'),
        ("clipping-by-entries", "optax.clip_by_global_norm(", "optax.clip("),
        (
            "adamw-decays-within-the-gradient",
            '(adam, decay) if config.name == "adamw" else (decay, adam)',
            '(decay, adam) if config.name == "adamw" else (adam, decay)',
        ),
        ("decay-ends-behind-the-last-step", "max(steps - rise, 1)", "max(steps, 1)"),
        (
            "alignment-networks-are-always-decayed",
            "config.alignment_beta1, config.decay_alignment",
            "config.alignment_beta1, True",
        ),
        (
            "alignment-networks-have-momentum",
            "config, config.alignment_learning_rate, config.alignment_beta1,",
            "config, config.alignment_learning_rate, config.beta1,",
        ),
        (
            "alignment-networks-rate-is-the-models",
            "config, config.alignment_learning_rate, config.alignment_beta1,",
            "config, rate(), config.alignment_beta1,",
        ),
    ),
    *faults(
        "train/experiment/settled.py",
        "tests/train/experiment/test_settled.py",
        ("few-texts-take-few-steps", 'train.get("min_steps", 0), 1)', "1)"),
        (
            "a-wider-encoder-takes-a-higher-rate",
            "RATE * WIDTH / checkpoint_width(",
            "RATE / WIDTH * checkpoint_width(",
        ),
    ),
    *faults(
        "train/data/held_out.py",
        "tests/train/data/test_held_out.py",
        ("each-class-is-rounded-alone", "seen += sum(", "seen = len(out) / share + sum("),
        ("a-class-may-go-whole", "for group in candidates[:-1]:", "for group in candidates:"),
    ),
    *faults(
        "train/data/tables.py",
        "tests/train/data/test_tables.py",
        ("a-row-is-named-by-its-end", "line = reader.line_num + 1", "line = reader.line_num + 2"),
        ("quotes-need-not-close", "delimiter=delimiter, strict=True", "delimiter=delimiter"),
        ("an-empty-row-within-is-dropped", "        yield from blank\n", ""),
        ("a-separator-in-quotes-counts", "key=unquoted.count", "key=first.count"),
        (
            "a-quote-before-a-separator-is-a-fault-of-ours",
            "next(rows, None)\n    h",
            "next(rows)\n    h",
        ),
    ),
    *faults(
        "train/data/own_texts.py",
        "tests/train/data/test_own_texts.py",
        (
            "numbers-go-by-their-digits",
            "sorted(counts, key=int) if whole",
            "sorted(counts) if whole",
        ),
        ("scores-as-python-has-them", '"_" in label', "False"),
        ("copies-differ-by-capitals", "(text.split()).casefold()", "(text.split())"),
        ("a-missing-number-is-a-class", "if missing and given and _numbers(given):", "if False:"),
    ),
    *faults(
        "train/devices/parallel.py",
        "tests/train/devices/test_parallel.py",
        ("parts-are-for-all-but-the-cpu", 'platform != "cpu"', 'platform == "cpu"'),
    ),
    *faults(
        "train/devices/partition.py",
        "tests/train/devices/test_partition.py",
        (
            "mlp-output-cut-along-the-wrong-axis",
            '(r"mlp_out/kernel", ("mlp", "embed"))',
            '(r"mlp_out/kernel", ("embed", "mlp"))',
        ),
        ("fsdp-cuts-the-shortest-axis", "axes[max(free, key=", "axes[min(free, key="),
        ("words-that-no-model-has", "(word|words)/embedding", "word_embeddings/embedding"),
        ("a-table-whole-in-use", "(table or not in_use)", "not in_use"),
    ),
    *faults(
        "train/devices/mesh.py",
        "tests/train/devices/test_parallel.py",
        (
            "a-mesh-gives-every-device-all-rows",
            "NamedSharding(self._mesh, PartitionSpec(DATA))",
            "NamedSharding(self._mesh, PartitionSpec())",
        ),
    ),
)

_RUNS: tuple[Mutation, ...] = (
    *faults(
        "train/experiment/experiment.py",
        "tests/train/experiment/test_experiment.py",
        (
            "every-seed-has-the-same-order-of-data",
            '_build(config, "data", DATA, seed=config.seed)',
            '_build(config, "data", DATA)',
        ),
        (
            "a-missing-package-is-no-config-error",
            "except (ValueError, TypeError, ImportError) as error:",
            "except (ValueError, TypeError) as error:",
        ),
    ),
    *faults(
        "train/experiment/pretrained_text.py",
        "tests/train/experiment/test_pretrained_text.py",
        (
            "another-tokenizer-of-the-same-size-is-taken",
            "if tokens != own:",
            "if len(tokens) != len(own):",
        ),
    ),
    *faults(
        "train/configs/common.py",
        "tests/train/configs/test_glue.py",
        (
            "default-weight-is-the-papers",
            "alignment.weight = config_dict.placeholder(float)",
            "alignment.weight = 0.01",
        ),
    ),
    *faults(
        "train/configs/glue.py",
        "tests/train/configs/test_glue.py",
        (
            "pairs-are-always-in-both-orders",
            "config.data.both_orders = GLUE[task].symmetric",
            "config.data.both_orders = len(GLUE[task].fields) == 2",
        ),
    ),
    *faults(
        "train/configs/transfer.py",
        "tests/train/configs/test_transfer.py",
        (
            "temperature-is-fitted-on-what-is-reported",
            'config.eval.temperature_split = "validation"',
            'config.eval.temperature_split = "test"',
        ),
    ),
    *faults(
        "train/run/checkpoint.py",
        "tests/train/run/test_checkpoint.py",
        ("only-the-newest-checkpoint-is-kept", "LatestN(max(keep, 1))", "LatestN(1)"),
        (
            "a-checkpoint-that-a-run-deleted-is-damaged",
            "reverse=True) != steps:",
            "reverse=True) < []:",
        ),
        ("bit-sums-miss-the-first-word", "dtype=xp.uint32) * 2 + 1)", "dtype=xp.uint32) * 2)"),
        (
            "another-shape-is-restored",
            "if found[name] != expected[name]",
            "if len(found[name]) != len(expected[name])",
        ),
    ),
    *faults(
        "train/run/early_stopping.py",
        "tests/train/run/test_early_stopping.py",
        (
            "criterion-in-the-wrong-direction",
            'if self.direction == "min"',
            'if self.direction == "max"',
        ),
        ("patience-needs-all-metrics", "0 if any(reached)", "0 if all(reached)"),
        (
            "patience-lasts-one-longer",
            "0 < self.patience <= self.waited",
            "0 < self.patience < self.waited",
        ),
        (
            "an-equal-value-is-not-as-good",
            "one.rank(metrics) >= one.rank(self.best)",
            "one.rank(metrics) > one.rank(self.best)",
        ),
    ),
    *faults(
        "train/run/folder.py",
        "tests/train/run/test_folder.py",
        (
            "a-run-may-go-on-with-another-optimizer",
            'FREE_SECTIONS = ("train",',
            'FREE_SECTIONS = ("optimizer", "train",',
        ),
        (
            "a-foreign-folder-is-taken",
            "if any(x.name != LOCK and",
            "if all(x.name != LOCK and",
        ),
        (
            "a-refused-config-empties-an-older-runs-folder",
            "if new and not any(",
            "if not any(",
        ),
        (
            "a-refused-config-takes-what-was-saved",
            "if new and not any(workdir.rglob(",
            "if new and not any(workdir.glob(",
        ),
    ),
    *faults(
        "train/run/trainer.py",
        "tests/train/run/test_loop.py",
        (
            "resuming-skips-a-batch",
            "train_batches(self.step, hosts.share())",
            "train_batches(self.step + (self.step > 0), hosts.share())",
        ),
        ("a-signal-waits-for-all-steps-in-flight", "self.window[-2:-1]", "self.window[:0]"),
        (
            "a-checkpoint-has-an-earlier-evaluation",
            "self.evaluated = {}\n            self.window",
            "self.window",
        ),
        (
            "one-step-too-few-is-skipped",
            "if self.skipped > allowed:",
            "if self.skipped >= allowed:",
        ),
        (
            "the-best-parameters-are-forgotten",
            "progress.best_params, parameters=counts[0]",
            "None, parameters=counts[0]",
        ),
    ),
    *faults(
        "train/run/runaway.py",
        "tests/train/run/test_runaway.py",
        (
            "vectors-that-shrink-are-not-named",
            "ratio < SHRINKAGE",
            "ratio < 0.0",
        ),
        (
            "shrinking-is-called-growing",
            '("shrunk", ratio < SHRINKAGE, "If',
            '("grown", ratio < SHRINKAGE, "If',
        ),
    ),
    *faults(
        "train/run/evaluation.py",
        "tests/train/run/test_evaluation.py",
        (
            "logits-times-the-temperature",
            "logits / temperature",
            "logits * temperature",
        ),
    ),
    *faults(
        "train/run/evaluation.py",
        "tests/train/run/test_loop.py",
        (
            "predictions-of-padding-count",
            "{name: values[mask] for name, values",
            "{name: values for name, values",
        ),
    ),
    *faults(
        "train/run/evaluation.py",
        "tests/train/run/test_evaluation.py",
        (
            "mmd-is-a-mean-of-batch-sums",
            "metrics.Mean(total=v * count, count=count)",
            "metrics.Mean(total=v, count=count)",
        ),
        (
            "attention-is-a-mean-of-batch-sums",
            "metrics.Mean(total=value * count, count=count)",
            "metrics.Mean(total=value, count=count)",
        ),
        (
            "classifier-is-asked-about-what-it-learnt",
            "classifier.score(both[~learnt], labels[~learnt])",
            "classifier.score(both[learnt], labels[learnt])",
        ),
        (
            "classifier-sees-padding",
            "sample.query[sample.query_mask], sample.key[sample.key_mask]",
            "sample.query, sample.key",
        ),
    ),
    *faults(
        "train/run/log.py",
        "tests/train/run/test_loop.py",
        (
            "the-resumed-steps-record-is-dropped",
            '0 < step >= record["step"]',
            '0 < step > record["step"]',
        ),
    ),
    *faults(
        "train/run/trainer.py",
        "tests/train/test_process.py",
        (
            "divergence-ends-in-a-traceback",
            "class TrainingDiverged(UserError, RuntimeError):",
            "class TrainingDiverged(RuntimeError):",
        ),
    ),
    *faults(
        "train/process.py",
        "tests/train/test_process.py",
        (
            "lost-help-is-a-success",
            "if output.problem is not None:",
            "if output.problem is None and output.closed:",
        ),
        ("ctrl-c-is-a-success", "return _end(interrupted, 128 + signal.SIGINT)", "return 0"),
        ("sigterm-kills", "signal.signal(signal.SIGTERM, _terminate)", "pass"),
        ("sigterm-in-a-callback-is-ctrl-c", "signal.SIGTERM if told", "signal.SIGINT if told"),
    ),
    *faults(
        "train/places.py",
        "tests/train/test_places.py",
        (
            "any-bucket-will-do-anywhere",
            "if scheme != BUCKET or not bucket:",
            "if scheme != BUCKET:",
        ),
        (
            "a-url-in-a-config-is-a-folder",
            "key not in URL_KEYS and _URL.fullmatch(value)",
            "key in URL_KEYS and _URL.fullmatch(value)",
        ),
    ),
    *faults(
        "train/run/log.py",
        "tests/train/test_places.py",
        (
            "a-buckets-log-stays-here",
            "if self._workdir is None or self._local == self._workdir:",
            "if self._local:",
        ),
    ),
    *faults(
        "train/run/lock.py",
        "tests/train/run/test_lock.py",
        ("a-lock-that-nobody-sees-is-taken", "if _is_at(file, path):", "if file:"),
        (
            "two-runs-share-a-folder",
            "fcntl.LOCK_EX | fcntl.LOCK_NB",
            "fcntl.LOCK_SH | fcntl.LOCK_NB",
        ),
    ),
    *faults(
        "train/run/log.py",
        "tests/train/run/test_log.py",
        (
            "closing-the-log-buries-the-first-error",
            "if problems and kind is None:",
            "if problems:",
        ),
    ),
    *faults(
        "train/cli.py",
        "tests/train/test_process.py",
        (
            "the-trace-of-a-failed-save-is-logged",
            '"orbax" not in record.pathname',
            '"Orbax" not in record.pathname',
        ),
    ),
    *faults(
        "train/cli.py",
        "tests/train/test_cli.py",
        (
            "a-broken-config-has-a-trace",
            "except Exception as error:",
            "except OSError as error:",
        ),
    ),
)

_RESULTS: tuple[Mutation, ...] = (
    *faults(
        "train/comparison/statistics.py",
        "tests/train/comparison/test_statistics.py",
        ("three-seeds-are-resampled", "LEAST_FOR_BOOTSTRAP = 8", "LEAST_FOR_BOOTSTRAP = 3"),
        (
            "t-interval-of-another-confidence",
            "confidence_interval(CONFIDENCE)",
            "confidence_interval(1.0 - (1.0 - CONFIDENCE) / 2.0)",
        ),
        (
            "sign-flips-are-not-asked",
            "self.p_value > 1.0 - CONFIDENCE",
            "self.p_value > CONFIDENCE",
        ),
        ("noise-is-called-a-finding", "if not one.within_noise", "if one.within_noise"),
        (
            "holm-counts-no-test-down",
            "stepped = given[order] * np.arange(len(given), 0, -1)",
            "stepped = given[order] * len(given)",
        ),
        (
            "a-larger-p-may-end-below-a-smaller-one",
            "np.maximum.accumulate(stepped)",
            "stepped",
        ),
        (
            "the-power-of-a-one-sided-test",
            "limit = scipy.stats.t.isf(significance / 2, freedom)",
            "limit = scipy.stats.t.isf(significance, freedom)",
        ),
    ),
    *faults(
        "train/comparison/study.py",
        "tests/train/comparison/test_study.py",
        ("separators-of-digits-are-read", '"_" not in text and ', ""),
        (
            "seeds-are-paired-by-their-order",
            "([runs[of][x][metric] for x in seeds] for of in (arm, base))",
            "([x[metric] for x in runs[of].values()][: len(seeds)] for of in (arm, base))",
        ),
        ("a-run-that-is-there-twice-counts-once", "if seed in of_arm:", "if False:"),
        (
            "alike-compares-with-the-first-plain-model",
            'alike = {arm: plain.get(_ALIGNMENT.sub("", arm[0]).strip())',
            "alike = {arm: next(iter(plain.values()))",
        ),
    ),
    *faults(
        "train/data/digits.py",
        "tests/train/data/test_digits.py",
        (
            "every-seed-learns-from-the-same-digits",
            "labels, self.train_examples, self.seed)",
            "labels, self.train_examples, self.split_seed)",
        ),
        ("images-turn-one-way", "rng.uniform(-self.rotation,", "rng.uniform(0.0,"),
        ("noise-leaves-the-range", "np.clip(images + noise, 0.0, 1.0)", "(images + noise)"),
    ),
    *faults(
        "train/tasks/classification.py",
        "tests/train/tasks/test_classification.py",
        ("labels-are-not-smoothed", "if not self.label_smoothing:", "if True:"),
    ),
    *faults(
        "train/comparison/table.py",
        "tests/train/comparison/test_table.py",
        ("population-deviation-over-seeds", "ddof=1", "ddof=0"),
    ),
    *faults(
        "train/attack/records.py",
        "tests/train/attack/test_records.py",
        (
            "failed-attacks-out-of-all-examples",
            "100.0 * failed / attacks if attacks",
            "100.0 * failed / len(examples) if attacks",
        ),
        (
            "an-attack-starts-again-at-the-last-example",
            "targets[len(file.examples) :]",
            "targets[max(len(file.examples) - 1, 0) :]",
        ),
    ),
    *faults(
        "train/attack/summary.py",
        "tests/train/report/test_attacks.py",
        (
            "skipped-examples-are-paired",
            'for x in of["examples"] if x["outcome"] != SKIPPED}',
            'for x in of["examples"]}',
        ),
    ),
    *faults(
        "train/attack/summary.py",
        "tests/train/attack/test_summary.py",
        (
            "attacked-runs-of-all-weights-are-one-method",
            "if method == PLAIN or weight is None else",
            "if method == PLAIN or weight > 0 else",
        ),
    ),
    *faults(
        "train/attack/victim.py",
        "tests/train/attack/test_victim.py",
        (
            "attacked-batches-are-twice-as-large",
            "1 << (len(chunk) - 1).bit_length()",
            "1 << len(chunk).bit_length()",
        ),
    ),
    *faults(
        "train/report/page.py",
        "tests/train/report/test_page.py",
        ("the-page-escapes-nothing", "autoescape=True", "autoescape=False"),
    ),
    *faults(
        "train/report/summary.py",
        "tests/train/report/test_summary.py",
        ("a-default-weight-is-null", 'values.get("weight") is None', 'values.get("weight") == ""'),
        (
            "seeds-paired-by-their-order",
            "pairs = {name: {s: finished[name][s] for s in common} for name in (PLAIN, method)}",
            "pairs = {name: dict(list(finished[name].items())[: len(common)]) "
            "for name in (PLAIN, method)}",
        ),
    ),
    *faults(
        "train/report/summary.py",
        "tests/train/report/test_summary.py",
        (
            "clouds-that-are-hardly-nearer-are-called-aligned",
            "half = cells[PLAIN].mean / 2",
            "half = cells[PLAIN].mean * 1",
        ),
    ),
    *faults(
        "train/report/gallery.py",
        "tests/train/report/test_gallery.py",
        (
            "the-example-drawn-is-one-that-models-get-wrong",
            "best = max(right, key=lambda number: right[number])",
            "best = min(right, key=lambda number: right[number])",
        ),
    ),
    *faults(
        "train/report/reliability.py",
        "tests/train/report/test_reliability.py",
        (
            "bars-stand-on-the-edges-of-bins",
            "(np.arange(len(count)) + 0.5) / len(count)",
            "np.arange(len(count)) / len(count)",
        ),
    ),
    *faults(
        "train/report/curves.py",
        "tests/train/report/test_curves.py",
        (
            "curves-show-the-alignment-without-its-weight",
            'return record["alignment_weight"] * record["alignment"]',
            'return record["alignment"]',
        ),
    ),
    *faults(
        "train/report/head_maps.py",
        "tests/train/report",
        (
            "maps-have-layers-by-their-letters",
            "sorted(found[0], key=natural)",
            "sorted(found[0])",
        ),
    ),
    *faults(
        "train/report/runs.py",
        "tests/train/report/test_runs.py",
        (
            "plain-runs-of-other-weights-are-other-methods",
            'if x["method"] == method != PLAIN]',
            'if x["method"] == method]',
        ),
    ),
    *faults(
        "train/report/paper.py",
        "tests/train/report/test_paper.py",
        (
            "roberta-stands-beside-berts-numbers",
            'if "roberta" in pretrained.lower()',
            'if "roberta" in pretrained.upper()',
        ),
    ),
    *faults(
        "train/sweep.py",
        "tests/train/test_sweep.py",
        (
            "a-sweep-takes-another-configs-result",
            'return result if result.get("config") == to_json(variant(config, method, seed)) '
            "else None",
            "return result",
        ),
        ("all-runs-of-a-sweep-have-one-seed", "    config.seed = seed\n", ""),
    ),
    *faults(
        "train/predict.py",
        "tests/train/test_predict.py",
        (
            "the-worst-ten-answers-are-shown",
            '(-row).argsort(kind="stable")',
            'row.argsort(kind="stable")',
        ),
        (
            "an-answer-is-given-where-none-scores-higher",
            "answers.null_margin > task.null_threshold",
            "answers.null_margin < task.null_threshold",
        ),
        ("a-question-needs-no-context", "(all if every else any)(", "any("),
    ),
    *faults(
        "train/report/card.py",
        "tests/train/test_predict.py",
        ("an-earlier-steps-card-has-the-last-metrics", "not final or not", "not"),
    ),
    *faults(
        "train/sweep.py",
        "tests/train/test_sweep.py",
        ("a-tables-title-may-be-a-link", "{literal(title)}", "{title}"),
    ),
    *faults(
        "train/run/loop.py",
        "tests/train/run/test_loop.py",
        (
            "more-steps-than-begun-with-are-not-said",
            "if trainer.step and begun != config.train.steps and",
            "if trainer.step and begun == config.train.steps and",
        ),
    ),
    *faults(
        "train/run/folder.py",
        "tests/train/run/test_loop.py",
        (
            "an-edited-config-is-a-raw-error",
            "except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as",
            "except KeyboardInterrupt as",
        ),
    ),
    *faults(
        "train/predictor.py",
        "tests/train/test_predict.py",
        (
            "padding-is-labelled-too",
            "np.asarray(_outputs(state, padded))[: len(texts)]",
            "np.asarray(_outputs(state, padded))",
        ),
    ),
    *faults(
        "train/benchmarks/step_time.py",
        "tests/train/benchmarks/test_step_time.py",
        ("all-methods-are-plain", "config.alignment.method = method", "pass"),
    ),
    *faults(
        "train/benchmarks/turns.py",
        "tests/train/benchmarks",
        ("a-turn-too-many-is-left-out", "if turn >= warm_up:", "if turn > warm_up:"),
        ("plain-over-aligned", "mine / other for", "other / mine for"),
        ("any-method-is-known", "if known and value", "if not known and value"),
    ),
    *faults(
        "train/reproduce/entries.py",
        "tests/train/test_reproduce.py",
        (
            "an-attack-cut-short-counts-as-done",
            'get("attacks", 0) >= self.examples',
            'get("attacks", 0) > 0',
        ),
        (
            "minutes-left-of-all-runs",
            "Progress(len(results), left, left * minutes, done)",
            "Progress(len(results), left, len(results) * minutes, done)",
        ),
    ),
)

_NOTEBOOKS: tuple[Mutation, ...] = (
    *faults(
        "colab/notebooks.py",
        "tests/test_notebooks.py",
        ("a-notebook-stores-warnings", ' and output.name == "stdout"', ""),
        ("a-notebook-stores-no-picture", '("image/png", "text/markdown",', '("text/markdown",'),
        ("a-large-picture-stays", "if len(content) < LIMIT:", "if content:"),
        ("the-old-address-stays", 're.sub(old, "", path.read_text())', "path.read_text()"),
        ("the-placeholder-is-an-address", " or address == PLACEHOLDER", ""),
    ),
)

APPLICATION: tuple[Mutation, ...] = (*_TASKS, *_DATA, *_STEP, *_RUNS, *_RESULTS, *_NOTEBOOKS)
