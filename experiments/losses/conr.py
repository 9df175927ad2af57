"""Imbalanced regression: targets from 0 to 100 with an exponential density, of which large ones are rare.

Inputs are 32 random cosine features of the target with noise, and 8 numbers that mean nothing. The density has scale
15; above 35 there are fewer than 10 of the 1500 examples for a unit of the target (few-shot). Test targets are uniform.
All networks are trained with the L1 loss on two views of every example, with a little more noise, alone, with weights
from the inverse square root of the density, or with ConR at the paper's constants, which has the window and its push
in the unit of the target. Every arm chooses the learning rate with the least error over all test targets.
Batches are 32 examples in two views, in 1500 steps.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.harness import models
from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.training import train
from jaxreg.losses import conr

TRAIN, TEST, BATCH = 1500, 1000, 32
LARGEST, SCALE, LENGTH, NOISE, VIEW_NOISE = 100.0, 15.0, 20.0, 0.3, 0.1
STRENGTH = 4.0

CLAIM = Claim(
    slug="conr",
    paper="ConR: Contrastive Regularizer for Deep Imbalanced Regression",
    arxiv="2309.06651",
    says="ConR makes the error of few-shot targets at least 5% smaller than the L1 loss alone or weighted by the "
    "inverse square root of the density does, and the error over all targets is not more than 1% larger.",
    metric="mean absolute error of few-shot targets",
    better="lower",
    worst=LARGEST / 2,
    min_effect=0.05,
    tuned_on=("all", "lower"),
    also=(
        Criterion(
            metric="mean absolute error over all targets", better="lower", worst=LARGEST / 2, margin=0.01, score="all"
        ),
    ),
    method="conr",
    baselines=("l1", "l1_weighted"),
    grid={"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2)},
    beside=(
        Comparison("ConR on the weighted loss, against that", baselines=("l1_weighted",), method="conr_weighted"),
        Comparison("the temperature of the authors' code, 0.07", method="conr_cold"),
        Comparison("a window of 5, about the error of the predictions", method="conr_wide"),
    ),
    variants={"conr_cold": ("conr", {"temperature": 0.07}), "conr_wide": ("conr", {"window": 5.0})},
    finding="ConR is at best on a par with the L1 loss alone, and weights do what it promises: they make the error of "
    "few-shot targets smaller by a sixth to a fifth. Added to the weighted loss ConR costs some of that. The target "
    "is one curve through the inputs, and what the network confuses are its noisy neighbours on it, not examples that "
    "look alike for another reason: pushing their features apart, 4 times as strongly as the errors themselves, works "
    "against a smooth answer. Neither a window of the size of the errors nor a lower temperature changes that.",
    steps=1500,
    seeds=16,
)


class Regressor(nn.Module):
    """Features, and the prediction from them."""

    @nn.compact
    def __call__(self, x):
        features = models.Mlp((128, 64), final_activation=True)(x)
        return features, LARGEST / 2 * (1 + nn.Dense(1, kernel_init=models.scaled_normal)(features)[..., 0])


def run(key, arm, *, learning_rate, steps, temperature=0.2, window=1.0):
    """Trains one network; the score is the error where there are few examples."""
    key_world, key_targets, key_noise, key_init, key_train = jax.random.split(key, 5)
    key_frequency, key_phase, key_uniform, key_test = jax.random.split(key_world, 4)
    frequency = jax.random.normal(key_frequency, [32]) / LENGTH
    phase = jax.random.uniform(key_phase, [32], maxval=2 * jnp.pi)
    share = -jnp.expm1(-LARGEST / SCALE)
    train_y = -SCALE * jnp.log1p(-share * jax.random.uniform(key_targets, [TRAIN]))
    test_y = jax.random.uniform(key_test, [TEST], maxval=LARGEST)

    def inputs(key, y):
        key_features, key_rest = jax.random.split(key)
        cosines = jnp.cos(y[:, None] * frequency + phase)
        noisy = cosines + NOISE * jax.random.normal(key_features, cosines.shape)
        return jnp.concatenate([noisy, jax.random.normal(key_rest, [len(y), 8])], axis=1)

    def density(y):
        """Expected training examples for a unit of the target."""
        return TRAIN * jnp.exp(-y / SCALE) / (SCALE * share)

    train_x, test_x = inputs(key_noise, train_y), inputs(key_uniform, test_y)
    weights = density(train_y) ** -0.5
    weights /= weights.mean()
    model = Regressor()
    params = model.init(key_init, train_x)

    def loss(params, state, key):
        key_batch, key_views = jax.random.split(key)
        chosen = jnp.tile(jax.random.randint(key_batch, [BATCH], 0, TRAIN), 2)
        x = train_x[chosen]
        features, predictions = model.apply(params, x + VIEW_NOISE * jax.random.normal(key_views, x.shape))
        w = weights[chosen] if arm.endswith("weighted") else jnp.ones(2 * BATCH)
        total = jnp.mean(w * jnp.abs(predictions - train_y[chosen]))
        if arm.startswith("conr"):
            contrast = conr(features, train_y[chosen], predictions, weights=w, temperature=temperature, window=window)
            total += STRENGTH * contrast.mean()
        return total, state

    few = density(test_y) < 10

    def errors(params, state):
        error = jnp.abs(jnp.clip(model.apply(params, test_x)[1], 0.0, LARGEST) - test_y)
        return {
            "score": jnp.mean(error, where=few),
            "all": jnp.mean(error),
            "many": jnp.mean(error, where=density(test_y) > 50),
        }

    _, _, curves = train(key_train, params, optax.adam(learning_rate), loss, steps=steps, measure=errors, points=20)
    return {**jax.tree.map(lambda curve: curve[-1], curves), "curve": curves["score"]}
