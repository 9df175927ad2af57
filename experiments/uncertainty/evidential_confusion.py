"""Confusion and ignorance: three Gaussians in the plane, two of which overlap, and points on a ring far away.

Each network has one score for "between two classes" and one for "unlike all of them": confusion and ignorance, or twice
the same uncertainty (entropy of the softmax, or K/S of the same evidential network). A score has to tell overlap from
clean points, the other the ring from the overlap; what counts is the smaller of the two AUROCs. Points of the two
overlapping classes count as overlap where the true posterior of neither is above 0.8, test points as clean where one
class's is above 0.99. Learning rates are chosen by the likelihood of held-out labels, for outliers are not known in
training.

Beside the verdict the networks see 32 radial features of the plane instead of its coordinates. They vanish far from the
data, as the features of images that are unlike any are meant to.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import models
from experiments.harness.claim import Claim, Comparison
from experiments.harness.training import train
from jaxreg.axes import at_labels
from jaxreg.losses import flexible_evidential
from jaxreg.metrics import auroc
from jaxreg.uncertainty import opinion, plausibility, singleton_opinion

CENTRES = jnp.array([[-0.6, 0.0], [0.6, 0.0], [0.0, 4.0]])
STD, RING = 0.6, (8.0, 10.0)
TRAIN, HELD_OUT, TEST, OUTLIERS, BATCH = 1000, 300, 2000, 500, 64
RAMP_STEPS = 10 * TRAIN // BATCH  # ten epochs

CLAIM = Claim(
    slug="evidential_confusion",
    paper="Flexible Visual Recognition by Evidential Modeling of Confusion and Ignorance",
    arxiv="2309.07403",
    says="Confusion tells overlap from clean points and ignorance tells outliers from overlap with AUROCs whose "
    "minimum is at least 0.05 above that of the softmax entropy and of the evidential uncertainty K/S used for both.",
    metric="the smaller of two AUROCs",
    better="higher",
    worst=0.0,
    min_effect=0.05,
    relative=False,
    tuned_on=("held_out_nll", "lower"),
    method="confusion_and_ignorance",
    baselines=("softmax_entropy", "evidential_uncertainty"),
    grid={"learning_rate": (3e-4, 1e-3, 3e-3, 1e-2)},
    beside=(
        Comparison(
            "networks that see radial features, zero far from the data",
            baselines=("softmax_entropy_radial", "evidential_uncertainty_radial"),
            method="confusion_and_ignorance_radial",
        ),
        Comparison(
            "radial features, and a hundredth of the pull away from evidence for wrong classes",
            baselines=("softmax_entropy_radial", "evidential_uncertainty_radial"),
            method="confusion_and_ignorance_radial",
            settings={"kl_weight": 0.01},
        ),
    ),
    finding="In the plane no score tells the ring (AUROCs of 0.01), so that the verdict says little of the method. "
    "Where two classes overlap the loss (our reading of the paper) takes away the evidence for both, since each is "
    "wrong half of the time. What it leaves is ignorance, more than on the ring, where a ReLU network's evidence goes "
    "on growing. Features that vanish far from the data do not change that, while the entropy of a slowly trained "
    "softmax then tells both (0.998). With a hundredth of that pull conflicting evidence stays: on the same features "
    "confusion and ignorance then tell both almost as well (0.994), where the one number K/S of the same network does "
    "not (0.86).",
    steps=2000,
    smoke_steps=4,
    seeds=16,
)


def run(key, arm, *, learning_rate, steps, kl_weight=1.0):
    """Trains one network; the score is the smaller AUROC."""
    key_data, key_outliers, key_features, key_init, key_train = jax.random.split(key, 5)
    key_labels, key_noise = jax.random.split(key_data)
    labels = jax.random.randint(key_labels, [TRAIN + HELD_OUT + TEST], 0, len(CENTRES))
    points = CENTRES[labels] + STD * jax.random.normal(key_noise, [len(labels), 2])
    train_x, held_out_x, test_x = jnp.split(points, [TRAIN, TRAIN + HELD_OUT])
    key_radius, key_angle = jax.random.split(key_outliers)
    radius = jax.random.uniform(key_radius, [OUTLIERS, 1], minval=RING[0], maxval=RING[1])
    angle = jax.random.uniform(key_angle, [OUTLIERS, 1], maxval=2 * jnp.pi)
    outliers = CENTRES.mean(0) + radius * jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)

    bumps = train_x[jax.random.choice(key_features, TRAIN, [32], replace=False)]

    def seen(x):
        """The coordinates, or bumps around 32 of the training points."""
        return jnp.exp(-jnp.square(x[:, None] - bumps).sum(-1) / 2) if arm.endswith("_radial") else x

    model = models.Mlp((64, 64, len(CENTRES)))
    params = model.init(key_init, seen(train_x[:1]))
    evidential = not arm.startswith("softmax_entropy")
    train_inputs = seen(train_x)

    def loss(params, step, key):
        chosen = jax.random.randint(key, [BATCH], 0, TRAIN)
        logits = model.apply(params, train_inputs[chosen])
        if evidential:
            losses = flexible_evidential(
                logits, labels[chosen], kl_weight=kl_weight * jnp.minimum(step / RAMP_STEPS, 1.0)
            )
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen])
        return losses.mean(), step + 1

    def scores(logits):
        """For overlap, and for outliers."""
        log_p = jax.nn.log_softmax(logits)
        evidence = jax.nn.softplus(logits)
        if arm.startswith("confusion_and_ignorance"):
            _, confusion, ignorance = singleton_opinion(plausibility(evidence))
            return confusion, ignorance
        one = opinion(evidence).uncertainty if evidential else -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        return one, one

    params, _, _ = train(key_train, params, optax.adam(learning_rate), loss, steps=steps, state=jnp.zeros([]))

    def probabilities(logits):
        alpha = jax.nn.softplus(logits) + 1
        return alpha / alpha.sum(-1, keepdims=True) if evidential else jax.nn.softmax(logits)

    true = jax.nn.softmax(-jnp.square(test_x[:, None] - CENTRES).sum(-1) / (2 * STD**2))
    overlap, clean = true.max(-1) < 0.8, true.max(-1) > 0.99
    logits = model.apply(params, seen(test_x))
    between, unlike_test = scores(logits)
    _, unlike_outliers = scores(model.apply(params, seen(outliers)))
    of_overlap = auroc(between, overlap, where=overlap | clean)
    everything = jnp.concatenate([unlike_outliers, unlike_test])
    is_outlier = jnp.arange(len(everything)) < OUTLIERS
    of_outliers = auroc(everything, is_outlier, where=is_outlier | jnp.pad(overlap, (OUTLIERS, 0)))
    held_out = probabilities(model.apply(params, seen(held_out_x)))
    likelihood = at_labels(held_out, labels[TRAIN : TRAIN + HELD_OUT])
    return {
        "score": jnp.minimum(of_overlap, of_outliers),
        "overlap_auroc": of_overlap,
        "outlier_auroc": of_outliers,
        "evidence_in_overlap": jnp.mean(jax.nn.softplus(logits).sum(-1), where=overlap),
        "evidence_of_outliers": jnp.mean(jax.nn.softplus(model.apply(params, seen(outliers))).sum(-1)),
        "accuracy": jnp.mean(logits.argmax(-1) == labels[TRAIN + HELD_OUT :]),
        "held_out_nll": -jnp.mean(jnp.log(likelihood)),
    }
