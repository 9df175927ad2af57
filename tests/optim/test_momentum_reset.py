import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.optim import momentum_reset, scale_by_spam, warmup_after_reset


def test_warmup_runs_from_a_hundredth_to_one():
    np.testing.assert_allclose(warmup_after_reset(0), 0.01, rtol=1e-5)
    assert warmup_after_reset(150) == 1.0
    assert warmup_after_reset(10_000) == 1.0
    np.testing.assert_allclose(warmup_after_reset(75.5), 1 - 0.99 / 2, rtol=1e-6)  # half of W + 1 = 151
    factors = np.array([warmup_after_reset(s) for s in range(151)])
    assert (np.diff(factors) > 0).all()


def test_momentum_is_forgotten_on_every_reset_step():
    optimizer = momentum_reset(optax.trace(decay=1.0), reset_every=3, warmup_steps=0)
    state = optimizer.init(jnp.zeros(()))
    sums = []
    for gradient in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
        update, state = optimizer.update(jnp.array(gradient), state)
        sums.append(float(update))
    assert sums == [1, 3, 4, 12, 28, 32]  # the sum of the gradients since the last reset


def test_step_counts_are_not_reset():
    optimizer = momentum_reset(optax.adam(1e-3), reset_every=2)
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    for _ in range(5):
        _, state = optimizer.update(params, state, params)
    assert optax.tree.get(state.inner_state, "count") == 5


def test_updates_warm_up_after_a_reset():
    optimizer = momentum_reset(optax.sgd(1.0), reset_every=10, warmup_steps=4)
    state = optimizer.init(jnp.zeros(()))
    factors = []
    for _ in range(16):
        update, state = optimizer.update(jnp.array(-1.0), state)
        factors.append(float(update))
    expected = [1 - 0.99 * (1 + np.cos(np.pi * s / 5)) / 2 for s in range(4)]
    np.testing.assert_allclose(factors, [1.0] * 9 + expected + [1.0] * 3, rtol=1e-5)


def test_around_adam_it_is_spam_without_clipping():
    settings = dict(reset_every=7, warmup_steps=3)
    wrapped = momentum_reset(optax.scale_by_adam(eps=0.0), **settings)
    fused = scale_by_spam(eps=0.0, threshold=jnp.inf, **settings)
    state_wrapped, state_fused = wrapped.init(jnp.zeros(4)), fused.init(jnp.zeros(4))
    for step in range(20):
        gradient = jnp.sin(jnp.arange(4.0) + step)
        ours, state_wrapped = wrapped.update(gradient, state_wrapped)
        spam, state_fused = fused.update(gradient, state_fused)
        np.testing.assert_allclose(ours, spam, rtol=2e-5)


@pytest.mark.parametrize(("name", "value"), [("reset_every", 0), ("warmup_steps", -1)])
def test_bad_hyperparameters_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be in .*, got {value}$"):
        momentum_reset(optax.sgd(1.0), **{name: value})


def test_the_moments_can_be_given():
    optimizer = momentum_reset(optax.scale_by_adam(), reset_every=2, moments=("mu",))
    state = optimizer.init(jnp.zeros(3))
    for _ in range(2):
        _, state = optimizer.update(jnp.ones(3), state)
    np.testing.assert_allclose(state.inner_state.mu, 0.1 * np.ones(3), rtol=1e-6)  # of the last gradient alone
    np.testing.assert_allclose(state.inner_state.nu, (1 - 0.999**2) * np.ones(3), rtol=1e-4)  # of both


def test_step_counts_restart_on_request():
    optimizer = momentum_reset(optax.scale_by_adam(eps=0.0), reset_every=3, warmup_steps=0, restart_counts=True)
    state = optimizer.init(jnp.zeros(2))
    for step in range(1, 8):
        gradient = jnp.array([1.0, -2.0]) * step
        update, state = optimizer.update(gradient, state)
        if step % 3 == 0:  # as on the first step, a direction is the sign
            np.testing.assert_allclose(update, [1.0, -1.0], rtol=1e-5)
    assert (state.count, state.inner_state.count) == (7, 2)
