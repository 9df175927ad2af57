"""Training longer and ghost batch normalization: digits, batches of 500 against batches of 25.

A network with batch normalization learns 1000 digits, 10% of them with a wrong label, by SGD with momentum 0.9; the
rate falls to a tenth after a half and after three quarters of the epochs, and gradients are clipped at norm 5 as in
the authors' code. Batches of 25 have 1200 updates in 30 epochs, batches of 500 have 60. The method normalizes the
large batch in parts of 25, at the base rate times sqrt(20). It is measured twice: after the 60 updates of 30 epochs,
and after the 1200 of an adapted regime. Every arm chooses its base rate from the same grid, so the square root in the
rate gives it no advantage; without tuning, at the rate of small batches, the arms are compared beside.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.harness import data, models
from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.training import train
from jaxreg.layers import GhostBatchNorm
from jaxreg.metrics import distance_from_init, fit_ultra_slow
from jaxreg.schedules import adapted_regime, sqrt_scaled_lr

TRAIN, CLASSES, NOISE = 1000, 10, 0.1
SMALL, LARGE = 25, 500
WORST = 1 - 1 / CLASSES
POINTS = 120  # of a run, the half of them at the first rate

CLAIM = Claim(
    slug="ghost_batch_norm",
    paper="Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
    arxiv="1705.08741",
    says="With batches of 500 instead of 25, ghost batch normalization and a rate larger by the square root of 20 "
    "lower the test error by at least 0.5 points after as many updates; with as many updates as small batches take, "
    "the error is at most 0.3 points above that of small batches; and the distance from the start follows the "
    "logarithm of the number of steps better than its square root.",
    metric="test error, 60 updates",
    better="lower",
    worst=WORST,
    min_effect=0.005,
    relative=False,
    also=(
        Criterion(
            metric="test error, 1200 updates",
            better="lower",
            worst=WORST,
            margin=0.003,
            relative=False,
            score="adapted_error",
            tuned_on=("adapted_error", "lower"),
            baselines=("small",),
        ),
        Criterion(
            metric="R2 of log t minus R2 of sqrt t",
            better="higher",
            worst=-1.0,
            min_effect=0.0,
            relative=False,
            score="log_advantage",
            tuned_on=("adapted_error", "lower"),
            baselines=("no_advantage",),
        ),
    ),
    method="ghost",
    baselines=("large",),
    grid={"learning_rate": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)},
    beside=(
        Comparison("all at the base rate 0.03", settings={"learning_rate": 0.03}),
        Comparison(
            "the larger rate alone, at the base rate 0.03", method="large_sqrt", settings={"learning_rate": 0.03}
        ),
        Comparison("ghost batch normalization alone, tuned", method="ghost", baselines=("large_sqrt",)),
    ),
    finding="After few updates ghost batch normalization gains 0.6 points and the larger rate 0.5. With as many "
    "updates as small batches take, large ones stay 0.4 points behind: at a tenth of the small batches' "
    "rate, for at larger ones they come to fit the wrong labels.",
    steps=60,
    smoke_steps=4,
    seeds=16,
)


def run(key, arm, *, learning_rate, steps):
    """Trains one network, or two for the method; the scores are test errors after few updates and after many."""
    key_data, key_noise, key_init, key_train = jax.random.split(key, 4)
    split = data.digits(key_data, train=TRAIN)
    noisy = data.flip_labels(key_noise, split.train_y, rate=NOISE, num_classes=CLASSES)
    epochs = steps * LARGE // TRAIN

    def trained(batch, epochs, rate, norm):
        steps = epochs * TRAIN // batch
        model = models.BatchNormMlp((128, 128, CLASSES), norm=norm)
        variables = model.init(key_init, split.train_x[:batch], train=True)
        start = variables["params"]

        def loss(params, stats, key):
            chosen = jax.random.choice(key, TRAIN, [batch], replace=False)
            logits, new = model.apply(
                {"params": params, "batch_stats": stats}, split.train_x[chosen], train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, noisy[chosen]).mean(), new["batch_stats"]

        def measure(params, stats):
            logits = model.apply({"params": params, "batch_stats": stats}, split.test_x, train=False)
            return jnp.mean(logits.argmax(-1) != split.test_y), distance_from_init(params, start)

        schedule = optax.piecewise_constant_schedule(rate, {steps // 2: 0.1, 3 * steps // 4: 0.1})
        optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(schedule, momentum=0.9))
        _, _, (errors, distances) = train(
            key_train,
            start,
            optimizer,
            loss,
            steps=steps,
            state=variables["batch_stats"],
            measure=measure,
            points=POINTS,
        )
        half = len(distances) // 2
        law = fit_ultra_slow((jnp.arange(half) + 1) * (steps // len(distances)), distances[:half])
        return errors, law.r2_log - law.r2_sqrt

    scaled = sqrt_scaled_lr(learning_rate, LARGE, base_batch=SMALL)
    if arm == "small":
        errors, advantage = trained(SMALL, epochs, learning_rate, nn.BatchNorm)
        return {"adapted_error": errors[-1], "log_advantage_of_small": advantage}
    if arm in ("large", "large_sqrt"):
        errors, _ = trained(LARGE, epochs, learning_rate if arm == "large" else scaled, nn.BatchNorm)
        return {"score": errors[-1], "curve": errors}
    if arm == "no_advantage":
        return {"log_advantage": jnp.zeros([]), "adapted_error": jnp.zeros([])}
    norm = functools.partial(GhostBatchNorm, SMALL)
    errors, _ = trained(LARGE, epochs, scaled, norm)
    (more,) = adapted_regime((epochs,), LARGE, base_batch=SMALL)
    adapted, advantage = trained(LARGE, more, scaled, norm)
    return {"score": errors[-1], "curve": errors, "adapted_error": adapted[-1], "log_advantage": advantage}
