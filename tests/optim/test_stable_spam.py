import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.optim import (
    GradNormState,
    SpikeClipState,
    adaptive_grad_norm,
    adaptive_spike_clip,
    scale_by_stable_spam,
    stable_spam,
)

NO_MEMORY = dict(gamma1=0.0, gamma2=0.0, gamma3=0.0)


def run(optimizer, gradients):
    state, update, history = optimizer.init(gradients[0]), jax.jit(optimizer.update), []
    for gradient in gradients:
        direction, state = update(gradient, state)
        history.append(np.asarray(direction))
    return np.array(history)


def random_gradients(steps, shape=(4, 3)):
    return list(jax.random.normal(jax.random.key(0), [steps, *shape]))


def by_hand(gradients, *, reset_every, b1=0.9, b2=0.999, eps=1e-8, gammas=(0.7, 0.9, 0.999), total=None, shared=False):
    """The definition, step by step in float64."""
    g1, g2, g3 = gammas
    largest = norm = square = k = 0.0
    m = v = 0.0
    history = []
    for t, g in enumerate(np.asarray(gradients, np.float64), start=1):
        c = 1.0 if total is None else 0.5 + 0.5 * (1 + np.cos(np.pi * t / (total + 1))) / 2
        k += 1
        n = k if shared else t
        largest = g3 * largest + (1 - g3) * np.abs(g).max()
        bound = largest / (1 - g3**n)
        g = np.where(np.abs(g) > bound, g / np.abs(g).max() * bound, g)
        q = np.sqrt((g**2).sum())
        norm = g1 * c * norm + (1 - g1 * c) * q
        square = g2 * square + (1 - g2) * q**2
        g = g / q * (norm / (1 - (g1 * c) ** n)) / (np.sqrt(square / (1 - g2**n)) + eps)
        if t % reset_every == 0:
            m, v, k = 0.0, 0.0, 1
        m = b1 * c * m + (1 - b1 * c) * g
        v = b2 * v + (1 - b2) * g**2
        history.append(m / (1 - (b1 * c) ** k) / (np.sqrt(v / (1 - b2**k)) + eps))
    return np.array(history)


# The pieces


def test_a_spike_is_clipped_to_the_corrected_mean_of_the_largest():
    state = SpikeClipState(jnp.zeros([]))
    for t in range(1, 10):
        _, state = adaptive_spike_clip(jnp.array([1.0, 0.5]), state, t)
    clipped, _ = adaptive_spike_clip(jnp.array([101.0, -20.2, 11.0]), state, 10)
    # (0.999 * 9 ones and 101, weighted) / (1 - 0.999^10) = 11.0452; the others keep their proportion to the largest.
    np.testing.assert_allclose(clipped, [11.0452, -11.0452 / 5, 11.0], rtol=2e-5)


def test_the_first_gradient_is_not_clipped():
    gradient = jnp.array([100.0, -1.0])
    clipped, _ = adaptive_spike_clip(gradient, SpikeClipState(jnp.zeros([])), 1)
    np.testing.assert_allclose(clipped, gradient, rtol=2e-4)


def test_the_first_gradient_gets_norm_one_and_equal_ones_keep_it():
    state, gradient = GradNormState(jnp.zeros([]), jnp.zeros([])), jnp.array([[3.0], [-4.0]])
    for t in range(1, 20):
        scaled, state = adaptive_grad_norm(gradient, state, t)
        np.testing.assert_allclose(scaled, gradient / 5, rtol=1e-5)


def test_a_large_gradient_is_given_the_usual_norm():
    state = GradNormState(jnp.array(1.0), jnp.array(1.0))  # norms of 1 since long ago
    scaled, _ = adaptive_grad_norm(jnp.array([10.0]), state, 10_000)
    np.testing.assert_allclose(scaled, (0.7 + 0.3 * 10) / np.sqrt(0.9 + 0.1 * 100), rtol=1e-5)


def test_zero_stays_zero_and_finite():
    zeros = jnp.zeros(3)
    scaled, state = adaptive_grad_norm(zeros, GradNormState(jnp.array(0.0), jnp.array(0.0)), 1)
    np.testing.assert_array_equal(scaled, zeros)
    clipped, _ = adaptive_spike_clip(zeros, SpikeClipState(jnp.array(0.0)), 1)
    np.testing.assert_array_equal(clipped, zeros)
    assert state == GradNormState(0.0, 0.0)


# The direction


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("total", [None, 25])
def test_it_follows_the_definition(shared, total):
    gradients = random_gradients(20)
    gradients[13] = 50 * gradients[13]
    optimizer = scale_by_stable_spam(reset_every=8, total_steps=total, shared_counter=shared)
    wanted = by_hand(gradients, reset_every=8, total=total, shared=shared)
    np.testing.assert_allclose(run(optimizer, gradients), wanted, rtol=5e-4, atol=5e-5)


def test_without_memory_it_is_adam_on_normalized_gradients():
    gradients = random_gradients(10)
    normalized = [gradient / jnp.linalg.norm(gradient) for gradient in gradients]
    wanted = run(optax.scale_by_adam(), normalized)
    np.testing.assert_allclose(run(scale_by_stable_spam(**NO_MEMORY), gradients), wanted, rtol=1e-4, atol=1e-6)


def test_the_scale_of_the_loss_does_not_matter():
    gradients = random_gradients(10)
    optimizer = scale_by_stable_spam(reset_every=4)
    larger = run(optimizer, [1e3 * gradient for gradient in gradients])
    np.testing.assert_allclose(larger, run(optimizer, gradients), rtol=1e-4, atol=1e-5)


def test_the_step_of_a_reset_is_the_sign():
    gradients = random_gradients(8)
    directions = run(scale_by_stable_spam(reset_every=4), gradients)
    for step in (4, 8):
        np.testing.assert_allclose(directions[step - 1], np.sign(gradients[step - 1]), rtol=1e-4)
    assert np.abs(directions[4]).max() < 1.01


def test_every_leaf_has_its_own_scale():
    optimizer = scale_by_stable_spam()
    gradients = {"small": jnp.array([3.0, 4.0]), "large": 1e4 * jnp.array([[3.0, 4.0]]), "none": jnp.zeros([0, 2])}
    _, state = optimizer.update(gradients, optimizer.init(gradients))
    for name, norm in {"small": 5.0, "large": 5e4, "none": 0.0}.items():
        np.testing.assert_allclose(state.statistics[name][1], 0.3 * norm, rtol=1e-5)
    np.testing.assert_allclose(state.adam.inner_state.mu["large"] / 0.1, [[0.6, 0.8]], rtol=1e-5)


def test_the_optimizer_decays_decoupled():
    optimizer = stable_spam(0.1, weight_decay=0.5)
    params = jnp.array([2.0, -2.0])
    updates, _ = optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(params), params)
    np.testing.assert_allclose(updates, -0.1 * (np.ones(2) + 0.5 * params), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("b1", 1.0),
        ("b2", -0.1),
        ("eps", -1e-8),
        ("gamma1", 1.0),
        ("gamma2", 1.5),
        ("gamma3", -0.5),
        ("total_steps", 0),
        ("eta_min", 1.1),
        ("reset_every", 0),
    ],
)
def test_what_is_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be in"):
        stable_spam(0.1, **{name: value})
