"""Mixed objectives against cross-entropy written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxreg.data import mixup
from jaxreg.losses import bang_finetune_loss, mixup_loss

INPUTS = jax.random.normal(jax.random.key(0), [6, 5])
LABELS = jnp.array([0, 3, 1, 1, 2, 0])
PARAMS = {"w": jax.random.normal(jax.random.key(1), [5, 4]), "b": jnp.array([0.5, -1.0, 0.0, 2.0])}
KEY = jax.random.key(2)


def linear(params, x):
    return x @ params["w"] + params["b"]


bang = functools.partial(bang_finetune_loss, linear)
bang_without_mixup = jax.jit(functools.partial(bang_finetune_loss, linear, mixup_alpha=None))


def cross_entropy(inputs, targets):
    return -(targets * scipy.special.log_softmax(np.asarray(linear(PARAMS, inputs)), axis=-1)).sum(-1)


def smoothed(epsilon):
    return (1 - epsilon) * np.eye(4)[np.asarray(LABELS)] + epsilon / 4


def mixed_by_hand(targets, alpha):
    mixed = mixup(KEY, INPUTS, alpha=alpha)
    w, partner = float(mixed.weight), np.asarray(mixed.partner)
    return cross_entropy(mixed.inputs, w * targets + (1 - w) * targets[partner])


def test_without_smoothing_and_mixing_it_is_cross_entropy():
    expected = cross_entropy(INPUTS, smoothed(0.0))
    np.testing.assert_allclose(bang_without_mixup(PARAMS, INPUTS, LABELS, KEY, smoothing=0.0), expected, rtol=1e-5)


def test_smoothing_moves_its_share_of_the_target_to_all_classes():
    expected = cross_entropy(INPUTS, smoothed(0.3))
    np.testing.assert_allclose(bang_without_mixup(PARAMS, INPUTS, LABELS, KEY, smoothing=0.3), expected, rtol=1e-5)


@pytest.mark.parametrize(("smoothing", "alpha"), [(0.1, 0.2), (0.0, 1.0), (0.2, 4.0)])
def test_inputs_and_targets_are_mixed_alike(smoothing, alpha):
    ours = bang(PARAMS, INPUTS, LABELS, KEY, smoothing=smoothing, mixup_alpha=alpha)
    np.testing.assert_allclose(ours, mixed_by_hand(smoothed(smoothing), alpha), rtol=1e-5)


def test_mixing_almost_nothing_is_a_permutation_of_the_batch():
    """A weight of 0 or 1, to which Beta(a, a) goes with a, leaves whole examples."""
    ours = bang(PARAMS, INPUTS, LABELS, KEY, smoothing=0.1, mixup_alpha=1e-3)
    np.testing.assert_allclose(np.sort(ours), np.sort(cross_entropy(INPUTS, smoothed(0.1))), rtol=1e-5)


def test_any_targets_and_any_loss_can_be_mixed():
    def squared(outputs, targets):
        return jnp.sum(jnp.square(outputs - targets), axis=(1, 2))

    targets = jax.random.normal(jax.random.key(3), [6, 2, 3])
    mixed = mixup(KEY, INPUTS, alpha=0.7)
    w, t = float(mixed.weight), np.asarray(targets)
    t = w * t + (1 - w) * t[np.asarray(mixed.partner)]
    ours = mixup_loss(lambda params, x: jnp.zeros([6, 2, 3]), (), INPUTS, targets, KEY, alpha=0.7, loss_fn=squared)
    np.testing.assert_allclose(ours, (t**2).sum((1, 2)), rtol=1e-5)


def test_logits_in_half_precision_are_widened():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (PARAMS, INPUTS))
    losses = bang_finetune_loss(linear, *half, LABELS, KEY, mixup_alpha=None)
    assert losses.dtype == jnp.float32
    wide = np.asarray(linear(*half).astype(jnp.float32))
    expected = -(smoothed(0.1) * scipy.special.log_softmax(wide, axis=-1)).sum(-1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("smoothing", 1.0), ("mixup_alpha", 0.0)])
def test_bad_hyperparameters_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be in .*, got {value}"):
        bang_finetune_loss(linear, PARAMS, INPUTS, LABELS, KEY, **{name: value})
