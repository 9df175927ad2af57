"""Independent weight decay by hand and against adamw, whose decay is tied to the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.optim import independent_weight_decay

PARAMS = {"kernel": jnp.array([[2.0, -3.0]]), "bias": jnp.array([1.0])}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def run(optimizer, gradients, params=PARAMS):
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("learning_rate", [0.0, 1e-3, 1.0])
def test_decay_is_the_same_at_every_learning_rate(learning_rate):
    """Without gradients only decay acts: by 1 - 0.1 (1, 1/2, 1/4)."""
    optimizer = independent_weight_decay(optax.adam(learning_rate), weight_decay=0.1, schedule=lambda step: 0.5**step)
    after = run(optimizer, [ZEROS] * 3)
    for name, param in PARAMS.items():
        np.testing.assert_allclose(after[name], param * 0.9 * 0.95 * 0.975, rtol=1e-6)


def test_it_is_adamw_with_the_learning_rate_multiplied_into_the_decay():
    shape = optax.cosine_decay_schedule(1.0, 10)
    gradients = [jax.tree.map(lambda p, s=step: jnp.sin(p + s), PARAMS) for step in range(6)]

    def schedule(step):
        return 0.03 * shape(step)

    ours = independent_weight_decay(optax.adam(schedule), weight_decay=0.03 * 0.2, schedule=shape)
    theirs = optax.adamw(schedule, weight_decay=0.2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run(ours, gradients), run(theirs, gradients))


def test_the_mask_leaves_parameters_alone():
    optimizer = independent_weight_decay(optax.sgd(1.0), weight_decay=0.1, mask={"kernel": True, "bias": False})
    after = run(optimizer, [ZEROS])
    np.testing.assert_array_equal(after["bias"], PARAMS["bias"])
    np.testing.assert_allclose(after["kernel"], 0.9 * PARAMS["kernel"], rtol=1e-6)


def test_negative_decay_is_named():
    with pytest.raises(ValueError, match=r"weight_decay must be in \[0, inf\), got -0.1"):
        independent_weight_decay(optax.sgd(1.0), weight_decay=-0.1)
