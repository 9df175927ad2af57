"""Dataset condensation: digits on a dominant background, condensed to one and to five examples a class.

Four random patterns, alike for all classes, are added to every image with random amounts; a pixel of the background
varies three times as much as a pixel of the digits. Synthetic examples start as random real ones and are changed so
that they train networks as the real ones do: class by class (DC), or all classes together after a quarter of the 150
networks (DCC; the authors' share). Each network takes 10 steps of condensation with 5 of its own after each. The score
is the test accuracy of networks trained on the synthetic examples only, from new starts, averaged over both sizes. The
step size of the images is chosen on held-out digits. Real batches have 32 examples a class, as there are about 100.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import condensed, data, models
from experiments.harness.claim import Claim, Comparison
from jaxreg.data import dc_loss, dcc_loss, dcc_schedule

TRAIN, HELD_OUT, CLASSES, FEATURES = 1000, 200, 10, 64
PATTERNS, BACKGROUND = 4, 3.0
REAL_BATCH, INNER, NETWORK_STEPS, WARMUP_SHARE = 32, 10, 5, 0.25
WIDTHS = (FEATURES, 64, CLASSES)

CLAIM = Claim(
    slug="dcc",
    paper="Dataset Condensation with Contrastive Signals",
    arxiv="2202.02916",
    says="Networks trained on 1 or 5 examples a class of digits with a dominant common background are at least 2 "
    "points more accurate when the examples are condensed with DCC than with DC, or are real.",
    metric="test accuracy of new networks",
    better="higher",
    worst=1 / CLASSES,
    min_effect=0.02,
    relative=False,
    tuned_on=("held_out_accuracy", "higher"),
    method="dcc",
    baselines=("dc", "real"),
    grid={"learning_rate": (1e-3, 1e-2, 1e-1, 1.0, 10.0)},
    beside=(
        Comparison("against DC only", baselines=("dc",)),
        Comparison("DC against real examples", method="dc", baselines=("real",)),
    ),
    finding="The gain is 7 to 8 points at one example a class, where all are poor (24 to 25%, DC 16 to 17%), and 2 "
    "points at five (73%, DC 71 to 72%). DC is not as blind behind a common background as the claim supposes: it is "
    "17 to 19 points better than real examples, most of it at five a class.",
    steps=150,
    smoke_steps=2,
    smoke_sizes={"inner": 1, "final_steps": 2, "largest": 1},
    seeds=8,
)


def run(key, arm, *, learning_rate, steps, inner=INNER, final_steps=200, largest=5):
    """Condenses the digits twice; the score is the mean accuracy of what learns from the results."""
    key_data, *keys = jax.random.split(key, 3)
    by_class, held_out, test = _digits(key_data)
    sizes, figures = sorted({1, largest}), {}
    for per_class, key in zip(sizes, keys, strict=False):
        key_condense, key_judge = jax.random.split(key)
        synthetic = _condense(key_condense, arm, by_class, per_class, learning_rate, steps, inner)
        figures[f"held_out_accuracy_{per_class}"], figures[f"accuracy_{per_class}"] = (
            condensed.accuracies_of_new_networks(
                key_judge, synthetic, (held_out, test), widths=WIDTHS, steps=final_steps
            )
        )
    return {
        "score": sum(figures[f"accuracy_{size}"] for size in sizes) / len(sizes),
        "held_out_accuracy": sum(figures[f"held_out_accuracy_{size}"] for size in sizes) / len(sizes),
        **figures,
    }


def _digits(key):
    """Digits on the background: a function that draws real ones of every class, and two sets to judge by."""
    key_split, key_patterns, key_amounts = jax.random.split(key, 3)
    split = data.digits(key_split, train=TRAIN + HELD_OUT)
    x, y = jnp.concatenate([split.train_x, split.test_x]), jnp.concatenate([split.train_y, split.test_y])
    spread = jnp.sqrt(jnp.mean(jnp.var(x, axis=0)))
    patterns = jax.random.normal(key_patterns, [PATTERNS, FEATURES])
    patterns = patterns / jnp.linalg.norm(patterns, axis=1, keepdims=True)
    amounts = BACKGROUND * spread * (FEATURES / PATTERNS) ** 0.5 * jax.random.normal(key_amounts, [len(x), PATTERNS])
    x = x + amounts @ patterns
    known = TRAIN + HELD_OUT
    by_class = condensed.sampler_by_class(x[:TRAIN], y[:TRAIN], classes=CLASSES)
    return by_class, (x[TRAIN:known], y[TRAIN:known]), (x[known:], y[known:])


def _condense(key, arm, by_class, per_class, learning_rate, steps, inner):
    key_start, key_loop = jax.random.split(key)
    synthetic = by_class(key_start, per_class)
    if arm == "real":
        return synthetic
    optimizer = optax.sgd(learning_rate, momentum=0.5)

    def objective(contrastive):
        loss = dcc_loss if contrastive else dc_loss
        return lambda params, synthetic, real: jax.grad(loss, argnums=2)(models.plain_mlp, params, synthetic, real)

    def network(carry, outer):
        key_network, key_real = jax.random.split(jax.random.fold_in(key_loop, outer))

        def step(carry, n):
            synthetic, state, params = carry
            real = by_class(jax.random.fold_in(key_real, n), REAL_BATCH)
            if arm == "dcc":
                contrastive = dcc_schedule(outer, n, outer_warmup=WARMUP_SHARE * steps, inner_warmup=inner)
                gradient = jax.lax.cond(contrastive, objective(True), objective(False), params, synthetic, real)
            else:
                gradient = objective(False)(params, synthetic, real)
            updates, state = optimizer.update(gradient, state)
            synthetic = optax.apply_updates(synthetic, updates)

            def descend(params, _):
                gradient = jax.grad(condensed.cross_entropy_by_class)(params, synthetic)
                return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient), None

            params, _ = jax.lax.scan(descend, params, length=NETWORK_STEPS)
            return (synthetic, state, params), None

        (*carry, _), _ = jax.lax.scan(step, (*carry, models.plain_mlps(key_network, WIDTHS)[0]), jnp.arange(inner))
        return tuple(carry), None

    (synthetic, _), _ = jax.lax.scan(network, (synthetic, optimizer.init(synthetic)), jnp.arange(steps))
    return synthetic
