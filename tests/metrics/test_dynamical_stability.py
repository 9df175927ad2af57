"""Stability against the operator written as a Kronecker matrix, theorems, and enumerated batches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import (
    critical_lr,
    frobenius_bound,
    gauss_newton_features,
    hessian_frobenius,
    hessian_trace,
    noise_alignment,
    sgd_stability_operator,
    trace_bound,
)

SHAPES = [(3, 5), (6, 4)]
STABILITY = {"radius": jax.jit(sgd_stability_operator), "critical": jax.jit(critical_lr), "bound": jax.jit(trace_bound)}


def features(shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def kronecker(a, learning_rate, batch_size):
    """The operator on vectorized matrices, in float64."""
    a = a.astype(np.float64)
    n, d = a.shape
    h = a.T @ a / n
    step = np.eye(d) - learning_rate * h
    fourth = sum(np.kron(np.outer(x, x), np.outer(x, x)) for x in a) / n
    return np.kron(step, step) + learning_rate**2 / batch_size * (fourth - np.kron(h, h))


def radius(a, learning_rate, batch_size):
    return np.abs(np.linalg.eigvalsh(kronecker(a, learning_rate, batch_size))).max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1.0, 4.0, np.inf])
def test_radius_is_that_of_the_kronecker_matrix(shape, batch_size):
    a = features(shape)
    for learning_rate in (0.05, 0.3, 1.0, 3.0):
        ours = STABILITY["radius"](a, learning_rate=learning_rate, batch_size=batch_size)
        wanted = radius(a, learning_rate, batch_size)
        if shape[0] < shape[1]:
            assert wanted >= 1 - 1e-12  # nothing moves across the span of the gradients
            wanted = 1.0 if wanted < 1 + 1e-9 else wanted
            ours = jnp.maximum(ours, 1.0)
        np.testing.assert_allclose(ours, wanted, rtol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1.0, 4.0, np.inf])
def test_critical_learning_rate_is_where_the_radius_crosses_one(shape, batch_size):
    a = features(shape)
    critical = float(STABILITY["critical"](a, batch_size=batch_size))
    assert radius(a, 0.999 * critical, batch_size) <= 1 + 1e-9
    assert radius(a, 1.001 * critical, batch_size) > 1 + 1e-6


def test_single_examples_bound_the_trace_and_batches_do_not():
    for shape in SHAPES:
        for seed in range(5):
            a = features(shape, seed)
            trace = np.sum(a**2) / len(a)
            for batch_size in (1.0, 2.0, 4.0):
                product = float(STABILITY["critical"](a, batch_size=batch_size)) * trace
                assert product <= 2 * batch_size * (1 + 1e-5)
                assert product <= float(STABILITY["bound"](a, batch_size=batch_size)) * trace * (1 + 1e-5)
    a = features((6, 4))
    assert float(STABILITY["critical"](a, batch_size=4.0)) * np.sum(a**2) / len(a) > 2


def test_gradient_descent_is_bounded_by_the_largest_eigenvalue():
    a = features((6, 4))
    largest = np.linalg.eigvalsh(a.T.astype(np.float64) @ a / len(a))[-1]
    np.testing.assert_allclose(STABILITY["critical"](a, batch_size=np.inf), 2 / largest, rtol=1e-5)
    np.testing.assert_allclose(
        STABILITY["radius"](a, learning_rate=3.0, batch_size=np.inf), (1 - 3.0 * largest) ** 2, rtol=1e-5
    )


@pytest.mark.parametrize("batch_size", [1.0, 3.0, np.inf])
def test_one_example_has_no_noise(batch_size):
    a = features((1, 4))
    for name in ("critical", "bound"):
        np.testing.assert_allclose(STABILITY[name](a, batch_size=batch_size), 2 / np.sum(a**2), rtol=1e-5)


def test_orthogonal_gradients_in_closed_form():
    """Of six examples four are unit gradients: each axis is multiplied by 1 - lr with chance 1/6, or at rest."""
    a = np.eye(6, 4, dtype=np.float32)
    for learning_rate in (0.1, 1.9, 2.5):
        alike, mixed = 1 + ((1 - learning_rate) ** 2 - 1) / 6, 1 - 2 * learning_rate / 6
        ours = STABILITY["radius"](a, learning_rate=learning_rate, batch_size=1.0)
        np.testing.assert_allclose(ours, max(alike, mixed), rtol=1e-5)
    np.testing.assert_allclose(STABILITY["critical"](a, batch_size=1.0), 2.0, rtol=1e-5)


def test_trace_and_frobenius_norm_are_those_of_the_matrix():
    for shape in SHAPES:
        a = features(shape)
        h = a.T.astype(np.float64) @ a / len(a)
        np.testing.assert_allclose(hessian_trace(a), np.trace(h), rtol=1e-6)
        np.testing.assert_allclose(hessian_frobenius(a), np.linalg.norm(h), rtol=1e-5)


def test_trace_bound_by_hand():
    """Squared norms 1 and 4, orthogonal: trace 5/2, fourth powers 17/2, squared Frobenius norm 17/4."""
    a = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(trace_bound(a), 5 / 8.5, rtol=1e-6)
    np.testing.assert_allclose(trace_bound(a, batch_size=2), 5 / (8.5 / 2 + 4.25 / 2), rtol=1e-6)
    np.testing.assert_allclose(trace_bound(a, batch_size=jnp.inf), 5 / 4.25, rtol=1e-6)


def test_without_gradients_everything_is_stable():
    a = np.zeros([6, 4], np.float32)
    assert STABILITY["critical"](a, batch_size=1.0) == STABILITY["bound"](a, batch_size=1.0) == np.inf
    assert float(noise_alignment(a, jnp.ones(6))) == 0.0
    assert np.isnan(noise_alignment(a + np.nan, jnp.ones(6)))


def test_features_of_a_network_by_hand():
    """f = <u * u - v * v, x>: derivatives 2 u x and -2 v x, in the order of the names."""
    params = {"u": jnp.array([1.0, 2.0]), "v": jnp.array([0.5, -1.0])}
    x = jnp.array([[1.0, 3.0], [-1.0, 2.0], [0.0, 1.0]])
    expected = np.concatenate([2 * x * params["u"], -2 * x * params["v"]], axis=1)

    def apply_fn(params, x):
        return x @ (params["u"] ** 2 - params["v"] ** 2)

    np.testing.assert_allclose(gauss_newton_features(apply_fn, params, x), expected, rtol=1e-6)
    with_axis = gauss_newton_features(lambda p, x: apply_fn(p, x)[:, None], params, x)
    np.testing.assert_allclose(with_axis, expected, rtol=1e-6)


def test_at_interpolation_the_hessian_is_the_gauss_newton_matrix():
    params = jnp.array([0.4, -0.3, 0.8])
    x = jnp.asarray(features((5, 2)))

    def apply_fn(p, x):
        return jnp.tanh(x @ p[:2]) * p[2]

    y = apply_fn(params, x)
    hessian = jax.jit(jax.hessian(lambda p: 0.5 * jnp.mean(jnp.square(apply_fn(p, x) - y))))(params)
    a = jax.jit(lambda p: gauss_newton_features(apply_fn, p, x))(params)
    np.testing.assert_allclose(a.T @ a / len(a), hessian, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_alignment_is_what_noise_adds_to_the_loss(batch_size):
    """The linearized loss after one step, averaged over all ordered batches."""
    a, distance, learning_rate = features((4, 3)).astype(np.float64), np.array([0.3, -1.0, 0.5]), 0.2
    h = a.T @ a / len(a)
    residuals = a @ distance

    def loss(distance):
        return 0.5 * np.mean((a @ distance) ** 2)

    after = [
        loss(distance - learning_rate * np.mean([residuals[i] * a[i] for i in batch], axis=0))
        for batch in itertools.product(range(len(a)), repeat=batch_size)
    ]
    noise = np.mean(after) - loss(distance - learning_rate * h @ distance)
    alignment = noise / (learning_rate**2 / batch_size * np.sum(h**2) * loss(distance))
    ours = noise_alignment(a.astype(np.float32), residuals.astype(np.float32))
    np.testing.assert_allclose(ours, alignment, rtol=1e-4)


@pytest.mark.parametrize("measure", [critical_lr, hessian_frobenius, lambda a: noise_alignment(a, a[:, 0])])
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_multiplied_in_less_than_float32(measure, shape):
    program = jax.jit(measure).lower(features(shape)).as_text()
    assert program.count("dot_general") == program.count("precision = [HIGHEST, HIGHEST]")


def test_frobenius_bound_by_hand():
    np.testing.assert_allclose(frobenius_bound(learning_rate=0.1, batch_size=8, alignment=0.5), 40.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: critical_lr(jnp.eye(2), batch_size=0), r"batch_size must be in \[1, inf\], got 0"),
        (lambda: trace_bound(jnp.eye(2), batch_size=0.5), r"batch_size must be in \[1, inf\], got 0.5"),
        (lambda: sgd_stability_operator(jnp.eye(2), learning_rate=-1.0), r"learning_rate must be in \[0, inf\), got"),
        (lambda: frobenius_bound(learning_rate=0.0), r"learning_rate must be in \(0, inf\), got 0"),
        (lambda: frobenius_bound(learning_rate=0.1, alignment=0.0), r"alignment must be in \(0, inf\), got 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_vmap_over_networks_equals_a_loop():
    a = jnp.asarray(np.stack([features((6, 4), seed) for seed in range(3)]))
    together = jax.jit(jax.vmap(lambda a: critical_lr(a, batch_size=2.0)))(a)
    np.testing.assert_allclose(together, [STABILITY["critical"](x, batch_size=2.0) for x in a], rtol=1e-5)
