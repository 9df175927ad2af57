"""Decoupled mixup: a small convolutional network learns from 500 digits, mixed or not.

Mixup trains on averages of two images with the same average of their labels; decoupled mixup adds that either class
should win against all others but its partner. All arms draw the same batches, mixtures and weights, and choose the
learning rate on held-out digits. A second score asks for both classes of test images mixed half and half: the share
of pairs of different classes for which they are the two most probable. The card's 1500 steps are shortened to 500.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import convnet, data
from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.training import train
from jaxreg.data import mix, mixup
from jaxreg.losses import decoupled_mixup_bce, decoupled_mixup_ce

TRAIN, HELD_OUT, BATCH, CLASSES = 500, 200, 64, 10

CLAIM = Claim(
    slug="decoupled_mixup",
    paper="Harnessing Hard Mixed Samples with Decoupled Regularizer",
    arxiv="2203.10761",
    says="A convolutional network trained with decoupled mixup on 500 digits is at least half a point more accurate on "
    "test digits than with mixup or cross-entropy, and ranks the two classes of test images mixed half and half first "
    "at least 2 points more often.",
    metric="test accuracy",
    better="higher",
    worst=1 / CLASSES,
    min_effect=0.005,
    relative=False,
    tuned_on=("held_out_accuracy", "higher"),
    also=(
        Criterion(
            metric="both classes of a half-and-half mixture are the top two (share)",
            better="higher",
            worst=1 / 45,
            min_effect=0.02,
            relative=False,
            score="both_in_top_two",
        ),
    ),
    method="decoupled",
    baselines=("mixup", "cross_entropy"),
    grid={"learning_rate": (3e-3, 1e-2, 3e-2, 1e-1)},
    variants={"mixup": ("decoupled", {"eta": 0.0}), "cross_entropy": ("decoupled", {"mixing": 0.0})},
    beside=(
        Comparison("against mixup only", baselines=("mixup",)),
        Comparison("sigmoids with rescaled targets, against mixup", method="decoupled_bce", baselines=("mixup",)),
    ),
    finding="Where it is meant to act it does, but less than claimed: both classes of an even mixture are the two "
    "most probable 0.8 to 1.0 points more often than with mixup, and with sigmoids 1 to 2 points. Of whole digits it "
    "recognizes no more than mixup, 0.1 points fewer. At 97.5% and ten classes there is little left to decouple: "
    "mixup alone already puts both classes on top for three mixtures in four, cross-entropy for half of them.",
    steps=500,
    smoke_sizes={"channels": 2},
    seeds=16,
)


def run(key, arm, *, learning_rate, steps, eta=0.1, mixing=1.0, channels=8):
    """Trains one network; the score is its accuracy on test digits."""
    key_data, key_pairs, key_init, key_train = jax.random.split(key, 4)
    split = data.digits(key_data, train=TRAIN + HELD_OUT)
    train_x, test_x = (x.reshape(-1, 8, 8, 1) for x in (split.train_x, split.test_x))
    model = convnet.Cnn(CLASSES, (channels, 2 * channels))
    params = model.init(key_init, train_x[:1])

    def loss(params, state, key):
        key_batch, key_mixing = jax.random.split(key)
        chosen = jax.random.randint(key_batch, [BATCH], 0, TRAIN)
        x, y = train_x[chosen], split.train_y[chosen]
        mixed = mixup(key_mixing, x, alpha=1.0)
        weight = jnp.where(mixing, mixed.weight, 1.0)
        logits = model.apply(params, mix(x, mixed.partner, weight))
        mixture = logits, y, y[mixed.partner], weight
        if arm == "decoupled_bce":
            return decoupled_mixup_bce(*mixture).mean(), state
        return decoupled_mixup_ce(*mixture, eta=eta).mean(), state

    partner = jax.random.permutation(key_pairs, len(test_x))
    pairs = jnp.stack([split.test_y, split.test_y[partner]], axis=-1)
    differ = pairs[:, 0] != pairs[:, 1]

    def accuracies(params, state):
        test = model.apply(params, test_x).argmax(-1) == split.test_y
        _, top = jax.lax.top_k(model.apply(params, 0.5 * (test_x + test_x[partner])), 2)
        both = jnp.all(jnp.sort(top) == jnp.sort(pairs), axis=-1)
        return {
            "score": jnp.mean(test),
            "held_out_accuracy": jnp.mean(model.apply(params, train_x[TRAIN:]).argmax(-1) == split.train_y[TRAIN:]),
            "both_in_top_two": jnp.sum(both & differ) / jnp.sum(differ),
        }

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    _, _, curves = train(key_train, params, optimizer, loss, steps=steps, measure=accuracies, points=5)
    return {**jax.tree.map(lambda curve: curve[-1], curves), "curve": curves["score"]}
