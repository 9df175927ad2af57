"""Robust weight signatures: robustness to corruptions of five digits, carried over to a network for the other five.

A small convolutional network is pretrained on clean images of all ten digits, as ImageNet contains the classes of the
paper's data sets. From there it is fine-tuned, with a new head, for the digits 0 to 4, once on clean images and once on
images of each of four corruptions: the signatures. For the digits 5 to 9 there is a clean fine-tuning only. Into its
shallow half goes the signature of a corruption, with strength 1; its accuracy under that corruption and on clean images
is judged. One run serves all arms: what is patched in differs, nothing else.
"""

import jax
import jax.numpy as jnp
import optax

from experiments.harness import data
from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.convnet import Cnn
from experiments.harness.training import train
from jaxreg.weights import patch, robust_signature, shallow_layers, task_vector

CLASSES, TRAIN, VALIDATION, EACH = 5, 500, 130, 890
BATCH = 32
NOISE, CONTRAST = 0.3, 0.4
KEEP = 2

CLAIM = Claim(
    slug="robust_weight_signatures",
    paper="Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?",
    arxiv="2302.12480",
    says="Patched with the robust weight signature of a corruption, extracted on other classes, a clean model gains at "
    "least 5 points of accuracy under that corruption and loses at most 2 points on clean images; it loses fewer than "
    "with the difference of the robust and the clean model's training, or with a random patch of the same size.",
    metric="accuracy on corrupted images, mean over four corruptions",
    better="higher",
    worst=1 / CLASSES,
    min_effect=0.05,
    relative=False,
    tuned_on=("validation_accuracy", "higher"),
    also=(
        Criterion(
            metric="accuracy on clean images",
            better="higher",
            worst=1 / CLASSES,
            margin=0.02,
            relative=False,
            score="clean_accuracy",
        ),
        Criterion(
            metric="accuracy on clean images, against other patches",
            better="higher",
            worst=1 / CLASSES,
            min_effect=0.0,
            relative=False,
            score="clean_accuracy",
            baselines=("random", "difference"),
        ),
    ),
    method="signature",
    baselines=("clean",),
    grid={"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2)},
    beside=(
        Comparison("corrupted images, against other patches", baselines=("random", "difference")),
        Comparison("half the strength", method="signature_half"),
        Comparison("all four signatures together, a quarter of each", method="together"),
        Comparison("the shallowest layer only", method="signature_1"),
        Comparison("three of four convolutions", method="signature_3"),
        Comparison("all convolutions and the classifier", method="signature_all"),
        Comparison("on the classes of the signature", baselines=("clean_own",), method="signature_own"),
        Comparison("the robust models that the signatures are of", baselines=("clean_own",), method="robust_own"),
    ),
    same_runs=True,
    steps=300,
    smoke_sizes={"pretraining_steps": 2},
    seeds=16,
    finding="Small networks hold robustness and the task in the same weights: the signature of a corruption gains "
    "3 points on the classes it was taken from, where the robust model itself gains 20, and one point on "
    "other classes. Any number of layers costs clean accuracy; a random patch of the same size costs "
    "less. More layers do worse, and all of them lose 4 points of robustness and 12 clean.",
)


def noisy(key, x):
    """Gaussian noise."""
    return jnp.clip(x + NOISE * jax.random.normal(key, x.shape), 0, 1)


def blurred(key, x):
    """Binomial, 3 x 3 pixels."""
    del key
    for axis in (-3, -2):
        pad = [(1, 1) if axis == position - x.ndim else (0, 0) for position in range(x.ndim)]
        before, after = (jax.lax.slice_in_dim(jnp.pad(x, pad), n, n + x.shape[axis], axis=axis) for n in (0, 2))
        x = 0.5 * x + 0.25 * (before + after)
    return x


def faded(key, x):
    """Less contrast."""
    del key
    mean = x.mean((-3, -2), keepdims=True)
    return mean + CONTRAST * (x - mean)


def shifted(key, x):
    """Two pixels up, down, left or right, each image on its own; zeros move in."""
    padded = jnp.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)])
    starts = jnp.array([[0, 2], [4, 2], [2, 0], [2, 4]])[jax.random.randint(key, [len(x)], 0, 4)]
    return jax.vmap(lambda image, start: jax.lax.dynamic_slice(image, (*start, 0), (8, 8, 1)))(padded, starts)


CORRUPTIONS = (noisy, blurred, faded, shifted)


def corrupt(key, x, which):
    """``which`` counts from 1; 0 leaves the images as they are."""
    return jax.lax.switch(which, (lambda key, x: x, *CORRUPTIONS), key, x)


def run(key, *, learning_rate, steps, pretraining_steps=1000):
    """Trains one network, six of it, and patches the last; the score is its accuracy under each patch's corruption."""
    key_data, key_init, key_train, key_random, key_test = jax.random.split(key, 5)
    split = data.digits(key_data, train=1797)
    images, labels = split.train_x.reshape(-1, 8, 8, 1), split.train_y
    # The five digits' images come first, in random order; there are at least 890 of either five.
    order = jnp.argsort(labels // CLASSES, stable=True)
    rows = jnp.stack([order[:EACH], order[-EACH:]])
    x, y = images[rows], labels[rows] % CLASSES

    broad, model = Cnn(2 * CLASSES), Cnn(CLASSES)
    key_broad, key_head = jax.random.split(key_init)

    def pretraining_loss(params, state, key):
        either = x[:, :TRAIN].reshape(-1, *x.shape[2:])
        named = (y[:, :TRAIN] + CLASSES * jnp.arange(2)[:, None]).ravel()
        chosen = jax.random.randint(key, [BATCH], 0, len(either))
        logits = broad.apply(params, either[chosen])
        return optax.softmax_cross_entropy_with_integer_labels(logits, named[chosen]).mean(), state

    key_pretrain, key_fine_tune = jax.random.split(key_train)
    pretrained = broad.init(key_broad, x[0, :1])
    pretrained, _, _ = train(key_pretrain, pretrained, optax.adam(1e-3), pretraining_loss, steps=pretraining_steps)
    head = model.init(key_head, x[0, :1])["params"]["Dense_0"]
    start = {"params": {**pretrained["params"], "Dense_0": head}}

    def fine_tune(group, which):
        def loss(params, state, key):
            key_batch, key_corrupt = jax.random.split(key)
            chosen = jax.random.randint(key_batch, [BATCH], 0, TRAIN)
            logits = model.apply(params, corrupt(key_corrupt, x[group, chosen], which))
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[group, chosen]).mean(), state

        # The same batches for all: models of a group differ in the corruption alone.
        return train(key_fine_tune, start, optax.adam(learning_rate), loss, steps=steps)[0]

    tuned = jax.vmap(fine_tune)(jnp.array([0, 0, 0, 0, 0, 1]), jnp.array([0, 1, 2, 3, 4, 0]))
    low_clean, low_robust, high_clean = (
        jax.tree.map(lambda leaf, part=part: leaf[part], tuned) for part in (0, slice(1, 5), 5)
    )

    signatures = jax.vmap(robust_signature, (0, None, None))(low_robust, low_clean, start)
    differences = task_vector(low_clean, low_robust)

    def random_like(key, signature):
        """Orthogonal to the clean update and as long as the signature, in every leaf."""
        leaves, structure = jax.tree.flatten(signature)
        keys = jax.random.split(key, len(leaves))
        noise = jax.tree.unflatten(
            structure, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        )
        noise = robust_signature(jax.tree.map(jnp.add, start, noise), low_clean, start)
        length = jnp.linalg.norm
        return jax.tree.map(lambda n, s: n * length(s.ravel()) / length(n.ravel()), noise, signature)

    randoms = jax.vmap(random_like)(jax.random.split(key_random, len(CORRUPTIONS)), signatures)

    def accuracy(params, group, which, rows):
        images = corrupt(jax.random.fold_in(key_test, which), x[group, rows], which)
        return jnp.mean(model.apply(params, images).argmax(-1) == y[group, rows])

    def patched(patches, *, model=high_clean, strength=1.0, keep=KEEP):
        """A model for each corruption."""
        layers = shallow_layers(model, keep=keep)

        def one(single):
            return patch(model, jax.tree.map(lambda leaf: leaf[None], single), strength=strength, layers=layers)

        return jax.vmap(one)(patches)

    def figures(params, group, which):
        validation, test = slice(TRAIN, TRAIN + VALIDATION), slice(TRAIN + VALIDATION, EACH)
        return {
            "score": accuracy(params, group, which, test),
            "clean_accuracy": accuracy(params, group, 0, test),
            "validation_accuracy": accuracy(high_clean, 1, which, validation),  # one learning rate for all arms
        }

    nothing = jax.tree.map(jnp.zeros_like, signatures)
    together = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf.mean(0), leaf.shape), signatures)
    arms = {
        "clean": patched(nothing),
        "signature": patched(signatures),
        "random": patched(randoms),
        "difference": patched(differences),
        "signature_half": patched(signatures, strength=0.5),
        "together": patched(together),
        "signature_1": patched(signatures, keep=1),
        "signature_3": patched(signatures, keep=3),
        "signature_all": patched(signatures, keep=5),
        "clean_own": patched(nothing, model=low_clean),
        "signature_own": patched(signatures, model=low_clean),
        "robust_own": low_robust,
    }
    groups = jnp.array([0 if name.endswith("_own") else 1 for name in arms])
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arms.values())
    whiches = jnp.arange(1, len(CORRUPTIONS) + 1)
    judged = jax.lax.map(lambda arm: jax.vmap(figures, (0, None, 0))(arm[0], arm[1], whiches), (stack, groups))
    return {name: dict(zip(arms, values.mean(-1), strict=True)) for name, values in judged.items()}
