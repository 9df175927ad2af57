"""How good generated images are: the Fréchet distance of their features to those of real images.

Any function may give the features. For digits it is the last hidden layer of a small classifier, which is trained here
in seconds and every time to the same weights; for images without a classifier it is what is left of them when they are
made small.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.harness.data import digits
from experiments.harness.models import Mlp
from experiments.harness.training import train
from jaxreg.metrics import frechet_distance
from jaxreg.typing import Array, Float
from jaxreg.validation import check_range

Features = Callable[[Float[Array, "n height width channels"]], Float[Array, "n d"]]

SPLIT_SEED = 0
"""Of the digits that the classifier learns from; who trains on the same ones keeps the others for judging."""

HIDDEN, FEATURES = 128, 32
STEPS, BATCH, LEARNING_RATE = 300, 128, 3e-3


@functools.cache
def digit_features() -> Callable[[Float[Array, "n 8 8 1"]], Float[Array, "n 32"]]:
    """The last hidden layer of a classifier of digits.

    It is an MLP that is trained, at the first call, on the training part of ``digits(jax.random.key(SPLIT_SEED))``. To
    be called outside of jitted functions; what it returns may be called within.

    Returns:
        A function of images in [-1, 1]; values beyond are taken for the ends, as in a picture.
    """
    params = _train_classifier()
    trunk = Mlp((HIDDEN, FEATURES), activation=nn.gelu, final_activation=True)

    def features(images):
        pixels = 0.5 + 0.5 * jnp.clip(images.reshape(len(images), -1), -1.0, 1.0)
        return trunk.apply(params, pixels)

    return features


def pooled_features(side: int = 4) -> Features:
    """The means of an image's tiles, channel by channel.

    They say nothing of fine detail, but need no network and no download.

    Args:
        side: how many tiles there are in each direction; height and width must be multiples of it.

    Returns:
        A function of images, with ``side * side`` features for each channel.

    Raises:
        ValueError: ``side`` is below 1; or, from the function, does not divide the images.
    """
    check_range("side", side, "[1, inf)")

    def features(images):
        n, height, width, channels = images.shape
        if height % side or width % side:
            raise ValueError(f"side must divide height and width of the images, {height} x {width}, got {side}")
        tiles = images.reshape(n, side, height // side, side, width // side, channels)
        return tiles.mean((2, 4)).reshape(n, -1)

    return features


def frechet_to(
    reference: Float[Array, "m height width channels"], *, features: Features
) -> Callable[[Float[Array, "n height width channels"]], Float[Array, ""]]:
    """The Fréchet distance to some images, whose features are computed only once.

    Args:
        reference: real images, more than there are features.
        features: maps images to features.

    Returns:
        ``images -> distance``, to be jitted together with what makes the images.
    """
    there = jax.jit(features)(reference)
    return lambda images: frechet_distance(features(images), there)


def _train_classifier():
    """Parameters, as NumPy arrays, whose first two layers are the trunk's."""
    split = digits(jax.random.key(SPLIT_SEED))
    classifier = Mlp((HIDDEN, FEATURES, 10), activation=nn.gelu)
    key_init, key_train = jax.random.split(jax.random.key(1))

    def loss(params, state, key):
        index = jax.random.randint(key, [BATCH], 0, len(split.train_x))
        logits = classifier.apply(params, split.train_x[index])
        return optax.softmax_cross_entropy_with_integer_labels(logits, split.train_y[index]).mean(), state

    @jax.jit
    def fit():
        start = classifier.init(key_init, split.train_x[:1])
        schedule = optax.cosine_decay_schedule(LEARNING_RATE, STEPS)
        return train(key_train, start, optax.adam(schedule), loss, steps=STEPS, points=1)[0]

    return jax.device_get(fit())
