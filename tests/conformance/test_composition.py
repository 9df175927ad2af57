"""Losses go together: softened targets, distillation, attacks and certificates with every loss of labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.data import mix, mixup
from jaxreg.losses import (
    binary_kl_norm,
    comp_sum,
    decoupled_mixup_ce,
    expected_loss,
    kd_kl,
    ldr_kl,
    mixup_loss,
    rescale_lambda,
    soft_cross_entropy,
    stablemax_cross_entropy,
)
from jaxreg.robustness import fast_ibp_loss, pgd, robust_margins

# Of outputs and labels. All but the last grow with the margin by which another class is ahead, and with nothing else.
LABEL_LOSSES = {
    "cross entropy": optax.softmax_cross_entropy_with_integer_labels,
    "sum exponential": functools.partial(comp_sum, tau=0.0),
    "generalized cross entropy": functools.partial(comp_sum, tau=1.7),
    "mean absolute error": functools.partial(comp_sum, tau=2.0),
    "ldr": functools.partial(ldr_kl, normalize=None),
    "ldr, margin": functools.partial(ldr_kl, normalize=None, margin=1.0, temperature=0.5),
    "stablemax": stablemax_cross_entropy,
}
MARGIN_LOSSES = [name for name in LABEL_LOSSES if name != "stablemax"]

# Terms of logits and those of a teacher.
DISTILLATION = {
    "kd": kd_kl,
    "binary kl": binary_kl_norm,
    "soft labels": lambda logits, teacher: soft_cross_entropy(logits, jax.nn.softmax(teacher)),
}

# Shares of both labels of a mixture.
SHARES = {
    "mixup": lambda weight: (weight, 1 - weight),
    "rescaled": lambda weight: (rescale_lambda(weight), rescale_lambda(1 - weight)),
}

CLASSES, FEATURES, BATCH = 3, 5, 4
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {"w": jax.random.normal(KEYS[0], [FEATURES, CLASSES]), "b": jnp.array([0.1, -0.2, 0.3])}
INPUTS = jax.random.uniform(KEYS[1], [BATCH, FEATURES])
LABELS = jnp.array([0, 1, 2, 1])
TEACHER = jax.random.normal(KEYS[2], [BATCH, CLASSES])


def apply_fn(params, x):
    return x @ params["w"] + params["b"]


def certificate(loss_fn, params, labels, epsilon):
    """A loss at logits that no input within the box can make worse."""
    margins = robust_margins(params["w"], params["b"], INPUTS - epsilon, INPUTS + epsilon, labels)
    return loss_fn(-margins, labels)


def assert_is_gradient(objective):
    """A composed objective's gradient is its slope along any direction, found by differences."""
    direction, step = jax.tree.map(lambda leaf: jax.random.normal(KEYS[3], leaf.shape), PARAMS), 1e-2
    measured = jax.jit(jax.value_and_grad(objective))
    ends = [measured(optax.tree.add_scale(PARAMS, sign * step, direction))[0] for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(optax.tree.vdot(measured(PARAMS)[1], direction), slope, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("loss", LABEL_LOSSES)
def test_mixed_targets_go_with_any_loss_of_labels(loss, share):
    """It is linear in the targets: the shares of both labels weight what each of them alone costs."""
    loss_fn = LABEL_LOSSES[loss]
    mixed = mixup(KEYS[3], INPUTS)
    logits = apply_fn(PARAMS, mixed.inputs)
    own, partner = SHARES[share](mixed.weight)
    one_hot = jax.nn.one_hot(LABELS, CLASSES)
    targets = own * one_hot + partner * one_hot[mixed.partner]
    expected = own * loss_fn(logits, LABELS) + partner * loss_fn(logits, LABELS[mixed.partner])
    np.testing.assert_allclose(expected_loss(loss_fn, logits, targets), expected, rtol=2e-6, atol=1e-6)
    if share == "mixup":
        whole = mixup_loss(
            apply_fn, PARAMS, INPUTS, one_hot, KEYS[3], loss_fn=functools.partial(expected_loss, loss_fn)
        )
        np.testing.assert_allclose(whole, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("term", DISTILLATION)
@pytest.mark.parametrize("loss", LABEL_LOSSES)
def test_any_distillation_term_can_be_added_to_any_loss(loss, term):
    def objective(params):
        logits = apply_fn(params, INPUTS)
        losses, terms = LABEL_LOSSES[loss](logits, LABELS), DISTILLATION[term](logits, TEACHER)
        assert losses.shape == terms.shape == (BATCH,)
        return jnp.mean(losses + 0.3 * terms)

    assert_is_gradient(objective)


@pytest.mark.parametrize("term", DISTILLATION)
def test_mixtures_can_be_distilled_and_decoupled_at_once(term):
    mixed = mixup(KEYS[3], INPUTS)
    teacher = mix(TEACHER, mixed.partner, mixed.weight)

    def objective(params):
        logits = apply_fn(params, mixed.inputs)
        losses = decoupled_mixup_ce(logits, LABELS, LABELS[mixed.partner], mixed.weight)
        return jnp.mean(losses + DISTILLATION[term](logits, teacher))

    assert_is_gradient(objective)


@pytest.mark.parametrize("loss", MARGIN_LOSSES)
def test_any_loss_is_between_its_value_under_attack_and_its_certificate(loss):
    """No attack finds more than the certificate allows, nor less than there is without one."""
    loss_fn, epsilon = LABEL_LOSSES[loss], 0.1
    attacked = pgd(apply_fn, PARAMS, INPUTS, LABELS, KEYS[3], epsilon=epsilon, step_size=0.05, steps=8, loss_fn=loss_fn)
    assert float(jnp.abs(attacked - INPUTS).max()) <= epsilon + 1e-6
    clean, under_attack = (loss_fn(apply_fn(PARAMS, x), LABELS) for x in (INPUTS, attacked))
    certified = certificate(loss_fn, PARAMS, LABELS, epsilon)
    assert (under_attack >= clean - 1e-6).all()
    assert (certified >= under_attack - 1e-5).all()
    assert (certified > clean).any()


@pytest.mark.parametrize("loss", MARGIN_LOSSES)
def test_any_loss_can_be_trained_with_a_certificate(loss):
    """The certified objective of a network is above that loss of any input in the box, and equal for no box at all."""
    loss_fn, hidden = LABEL_LOSSES[loss], jax.random.normal(KEYS[3], [FEATURES, FEATURES])

    def features(hidden, x):
        return jax.nn.relu(x @ hidden)

    @jax.jit
    def certified(epsilon):
        head = PARAMS["w"], PARAMS["b"]
        settings = dict(epsilon=epsilon, max_epsilon=1.0, strength=0.0, loss_fn=loss_fn)
        return fast_ibp_loss(features, hidden, *head, INPUTS, LABELS, **settings)

    def at(x):
        return loss_fn(apply_fn(PARAMS, features(hidden, x)), LABELS)

    np.testing.assert_allclose(certified(0.0), at(INPUTS), rtol=1e-5, atol=1e-5)
    corners = INPUTS + 0.1 * jax.random.rademacher(KEYS[2], [50, *INPUTS.shape], INPUTS.dtype)
    assert (certified(0.1) >= jax.vmap(at)(corners).max(axis=0) - 1e-5).all()


@pytest.mark.parametrize("loss", MARGIN_LOSSES)
def test_of_two_classes_and_a_linear_model_attack_and_certificate_are_the_same(loss):
    """There one input is the worst for the only margin there is, and the gradient's signs lead to it."""
    loss_fn, epsilon = LABEL_LOSSES[loss], 0.1
    params, labels = {"w": PARAMS["w"][:, :2], "b": PARAMS["b"][:2]}, LABELS % 2
    attacked = pgd(apply_fn, params, INPUTS, labels, KEYS[3], epsilon=epsilon, step_size=0.1, steps=4, loss_fn=loss_fn)
    certified = certificate(loss_fn, params, labels, epsilon)
    np.testing.assert_allclose(loss_fn(apply_fn(params, attacked), labels), certified, rtol=1e-5, atol=1e-6)
    margin = jnp.take_along_axis(apply_fn(params, INPUTS), labels[:, None], 1)[:, 0]
    margin -= jnp.take_along_axis(apply_fn(params, INPUTS), 1 - labels[:, None], 1)[:, 0]
    worst = margin - epsilon * jnp.abs(params["w"][:, 0] - params["w"][:, 1]).sum()
    exact = loss_fn(jnp.stack([worst, jnp.zeros_like(worst)], -1), jnp.zeros_like(labels))
    np.testing.assert_allclose(certified, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["generalized cross entropy", "ldr"])
@pytest.mark.parametrize("term", ["kd"])
def test_a_sum_of_terms_can_be_attacked_with_targets_of_its_own(loss, term):
    """The targets of an attack are a tree: labels, and what a teacher says of each example."""

    def loss_fn(logits, targets):
        labels, teacher = targets
        return LABEL_LOSSES[loss](logits, labels) + DISTILLATION[term](logits, teacher)

    targets = LABELS, TEACHER
    attacked = pgd(apply_fn, PARAMS, INPUTS, targets, KEYS[3], epsilon=0.1, step_size=0.05, loss_fn=loss_fn)
    before, after = (loss_fn(apply_fn(PARAMS, x), targets) for x in (INPUTS, attacked))
    assert (after >= before - 1e-6).all()
    assert (after > before + 1e-3).any()
