import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness.training import train


def quadratic(params, state, key):
    return 0.5 * jnp.sum(params**2), state + 1


def test_gradient_descent_on_a_parabola_is_geometric():
    params, count, curve = train(
        jax.random.key(0),
        jnp.array([1.0, -2.0]),
        optax.sgd(0.1),
        quadratic,
        steps=12,
        state=0,
        measure=lambda params, state: (params, state),
        points=5,  # the largest divisor of 12 up to 5 is 4
    )
    np.testing.assert_allclose(params, np.array([1.0, -2.0]) * 0.9**12, rtol=1e-5)
    assert count == 12
    np.testing.assert_allclose(curve[0][:, 0], 0.9 ** np.array([3, 6, 9, 12]), rtol=1e-5)
    np.testing.assert_array_equal(curve[1], [3, 6, 9, 12])


def test_gradients_can_be_distorted():
    params, _, _ = train(
        jax.random.key(0), jnp.array(1.0), optax.sgd(0.1), quadratic, steps=1, state=0, distort=lambda key, g: 5 * g
    )
    np.testing.assert_allclose(params, 0.5, rtol=1e-6)


def test_every_step_has_its_own_key():
    def record(params, state, key):
        return jnp.sum(params), jnp.roll(state, 1).at[0].set(jax.random.uniform(key))

    _, drawn, _ = train(jax.random.key(0), jnp.array(1.0), optax.sgd(0.1), record, steps=20, state=jnp.zeros(20))
    assert len(np.unique(drawn)) == 20


def test_what_reaches_the_optimizer_can_be_watched_at_every_step():
    def loss(params, state, key):
        return params**2, state

    _, _, (figures, watched) = train(
        jax.random.key(0),
        jnp.array(1.0),
        optax.sgd(0.25),
        loss,
        steps=6,
        points=3,
        measure=lambda params, state: params,
        distort=lambda key, gradient: 2 * gradient,
        watch=lambda gradient: {"gradient": gradient},
    )
    # From w = 1: the gradient 2 w, doubled, is 4; a quarter of it takes w to zero.
    np.testing.assert_array_equal(watched["gradient"], [4.0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(figures, [0.0, 0, 0])
