"""Ensembles of models that hang on different spurious features: digits beside 32 patches whose colours tell the label.

In the test each patch is replaced by a random colour with probability 0.7, 0.8 or 0.9, each for itself; accuracies are
means over the three. A network is pretrained on broad data, in which each patch of the first half tells the label half
of the time and the others are random. It is fine-tuned on narrow data, 100 examples in which the second half always
tell it and the first are random, with and without BANG's objective, and averaged with its start: alpha is 0.5 for all.
All of these data are fitted, so that they cannot tell the best learning rate; it is the axis. At the largest the
premise holds: the fine-tuned network is over-confident, and the average of the weights is better than either end.
There was a first design, whose fine-tuning was on all patches: there the fine-tuned network alone was best, and BANG
11 points behind.

The second criterion is about why ensembles help: two networks that see one half of the patches each, trained where all
patches tell the label, their logits averaged. They are compared with two networks in a world where all patches of an
image have one and the same colour.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import data, models
from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.training import train
from jaxreg.data import multi_color
from jaxreg.losses import bang_finetune_loss
from jaxreg.metrics import false_false_true
from jaxreg.weights import output_ensemble, wise_ft

CLASSES, PATCHES, BROAD, NARROW = 10, 32, 1000, 100
BATCH, OTHER_RATE = 64, 3e-3
BROAD_NOISE, TEST_NOISES = 0.5, (0.7, 0.8, 0.9)
OBJECTIVES = {
    "wise_ft": {"smoothing": 0.0, "mixup_alpha": None},
    "bang": {"smoothing": 0.1, "mixup_alpha": 0.2},
    "bang_smoothing": {"smoothing": 0.1, "mixup_alpha": None},
    "bang_mixup": {"smoothing": 0.0, "mixup_alpha": 0.2},
}
OBJECTIVES["one_color"] = OBJECTIVES["bang"]

CLAIM = Claim(
    slug="bang",
    paper="Spurious Feature Diversification Improves Out-of-distribution Generalization",
    arxiv="2309.17230",
    says="Fine-tuning with smoothed labels and mixup makes the average of the weights before and after it at least 1 "
    "point more accurate out of distribution than plain fine-tuning does; and an ensemble of two networks gains at "
    "least 3 points more over the better of them where spurious features are many than where they are one.",
    metric="accuracy out of distribution",
    better="higher",
    worst=1 / CLASSES,
    min_effect=0.01,
    relative=False,
    also=(
        Criterion(
            metric="gain of an ensemble over the better of its members, out of distribution",
            better="higher",
            worst=-1.0,
            min_effect=0.03,
            relative=False,
            score="ensemble_gain",
            baselines=("one_color",),
        ),
    ),
    method="bang",
    baselines=("wise_ft",),
    axis={"learning_rate": (1e-3, 3e-3, 1e-2)},
    beside=(
        Comparison("smoothed labels only", method="bang_smoothing"),
        Comparison("mixup only", method="bang_mixup"),
        Comparison("the least learning rate", settings={"learning_rate": 1e-3}),
        Comparison("the largest learning rate, where fine-tuning forgets", settings={"learning_rate": 1e-2}),
    ),
    steps=300,
    smoke_sizes={"other_steps": 2},
    seeds=16,
    finding="Two networks gain 12 points from many spurious features and nothing from one. BANG itself needs the "
    "paper's premise: at the largest learning rate, where fine-tuning forgets and the average of the weights is better "
    "than either end, it gains 3 points; at the least, where the fine-tuned network alone is best, it costs one, for "
    "the less sure a network is, the less it says in the average. Over the three rates it is ahead by a third of a "
    "point.",
)


def run(key, arm, *, learning_rate, steps, other_steps=300):
    """Pretrains, fine-tunes and averages; the score is the accuracy of the averaged weights."""
    key_data, key_narrow, key_init, key_train, key_members, key_test = jax.random.split(key, 6)
    split = data.digits(key_data, train=BROAD)
    net = models.Mlp((64, CLASSES))
    first_half = jnp.arange(PATCHES) < PATCHES // 2

    def with_patches(images, colors):
        return jnp.concatenate([images, jax.nn.one_hot(colors, CLASSES).reshape(len(images), -1)], axis=1)

    def colored(key, images, labels, telling, noise=0.0):
        """Only the patches of the mask ``telling`` tell the label, as far as the noise lets them."""
        key_telling, key_random = jax.random.split(key)
        told = multi_color(key_telling, labels, num_patches=PATCHES, p=noise)
        return with_patches(
            images, jnp.where(telling, told, multi_color(key_random, labels, num_patches=PATCHES, p=1.0))
        )

    single = arm == "one_color"
    test_x = jnp.concatenate(
        [
            with_patches(
                split.test_x,
                multi_color(jax.random.fold_in(key_test, n), split.test_y, num_patches=PATCHES, p=p, single=single),
            )
            for n, p in enumerate(TEST_NOISES)
        ]
    )
    test_y = jnp.tile(split.test_y, len(TEST_NOISES))

    def accuracy(logits):
        return jnp.mean(logits.argmax(-1) == test_y)

    def confidence(logits):
        return jnp.mean(jax.nn.softmax(logits).max(-1))

    def cross_entropy(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()

    def pretraining_loss(params, state, key):
        key_batch, key_colors = jax.random.split(key)
        chosen = jax.random.randint(key_batch, [BATCH], 0, BROAD)
        x, y = split.train_x[chosen], split.train_y[chosen]
        return cross_entropy(params, colored(key_colors, x, y, first_half, BROAD_NOISE), y), state

    narrow_x, narrow_y = split.train_x[:NARROW], split.train_y[:NARROW]
    narrow_x = colored(key_narrow, narrow_x, narrow_y, ~first_half)

    def fine_tuning_loss(params, state, key):
        key_batch, key_mix = jax.random.split(key)
        chosen = jax.random.randint(key_batch, [BATCH], 0, NARROW)
        x, y = narrow_x[chosen], narrow_y[chosen]
        return bang_finetune_loss(net.apply, params, x, y, key_mix, **OBJECTIVES[arm]).mean(), state

    key_pretrain, key_fine_tune = jax.random.split(key_train)
    adam = optax.adam(OTHER_RATE)
    start = net.init(key_init, test_x[:1])
    pretrained, _, _ = train(key_pretrain, start, adam, pretraining_loss, steps=other_steps)
    finetuned, _, _ = train(key_fine_tune, pretrained, optax.adam(learning_rate), fine_tuning_loss, steps=steps)
    averaged = wise_ft(pretrained, finetuned)
    before, after, both = (net.apply(params, test_x) for params in (pretrained, finetuned, averaged))
    figures = {
        "score": accuracy(both),
        "pretrained": accuracy(before),
        "finetuned": accuracy(after),
        "ensemble_of_outputs": accuracy(output_ensemble(before, after)),
        "false_false_true": false_false_true(*(logits.argmax(-1) for logits in (before, after, both)), test_y),
        "confidence_pretrained": confidence(before),
        "confidence_finetuned": confidence(after),
    }
    if arm not in ("bang", "one_color"):
        return figures

    def member(key, seen):
        """A network that sees the image and some of the patches, trained where all tell the label."""
        key_start, key_steps = jax.random.split(key)
        mask = jnp.concatenate([jnp.ones(split.test_x.shape[1]), jnp.repeat(seen, CLASSES)])

        def loss(params, state, key):
            key_batch, key_colors = jax.random.split(key)
            chosen = jax.random.randint(key_batch, [BATCH], 0, BROAD)
            x, y = split.train_x[chosen], split.train_y[chosen]
            return cross_entropy(params, mask * colored(key_colors, x, y, True), y), state

        params, _, _ = train(key_steps, net.init(key_start, test_x[:1]), adam, loss, steps=other_steps)
        return net.apply(params, test_x * mask)

    one, other = jax.vmap(member)(jax.random.split(key_members), jnp.stack([first_half, ~first_half]))
    better = jnp.maximum(accuracy(one), accuracy(other))
    ensemble = output_ensemble(one, other)
    return figures | {
        "ensemble_gain": accuracy(ensemble) - better,
        "better_member": better,
        "members_false_false_true": false_false_true(*(z.argmax(-1) for z in (one, other, ensemble)), test_y),
    }
