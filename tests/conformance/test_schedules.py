"""Every schedule of ``jaxreg.schedules`` drives optimizers, as a learning rate or as an injected hyperparameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.optim import spam
from jaxreg.schedules import as_schedule, cyclic_cosine, linear_decay, wsd, wsd_s

SCHEDULES = {
    "as_schedule": lambda: as_schedule(jnp.linspace(1.0, 0.0, 20), 0.3),
    "cyclic_cosine": lambda: cyclic_cosine(0.3, checkpoints=(10, 20, 40), warmup_steps=4),
    "linear_decay": lambda: linear_decay(0.3, total_steps=20, warmup_steps=4),
    "wsd": lambda: wsd(0.3, total_steps=40, warmup_steps=4, decay_fraction=0.25),
    "wsd_s": lambda: wsd_s(0.3, checkpoints=(10, 20, 40), warmup_steps=4, decay_fraction=0.25),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_optimizers_take_schedules(make):
    """SPAM's first direction is the gradient's sign; SGD's always the gradient."""
    gradient, schedule = jnp.array([2.0, -3.0]), make()
    optimizer = spam(schedule, eps=0.0)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(updates, -schedule(0) * np.sign(gradient), rtol=1e-4)

    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=schedule)
    state, update = injected.init(gradient), jax.jit(injected.update)
    for t in range(12):
        updates, state = update(gradient, state)
        np.testing.assert_allclose(state.hyperparams["learning_rate"], schedule(t), rtol=1e-6)
        np.testing.assert_allclose(updates, -schedule(t) * gradient, rtol=1e-6)


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_can_be_joined(make):
    """First another, then this one from its own step 0 on."""
    schedule = make()
    joined = jax.jit(optax.join_schedules([optax.constant_schedule(0.7), schedule], [5]))
    np.testing.assert_allclose([joined(t) for t in range(5)], 0.7, rtol=1e-6)
    np.testing.assert_allclose([joined(5 + t) for t in range(12)], [schedule(t) for t in range(12)], rtol=1e-6)
