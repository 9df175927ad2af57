"""Refinement against closed forms, SciPy's median filter, Cauchy-Schwarz and the last iterate's theorem."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.ndimage

from jaxreg.schedules import as_schedule, last_iterate_schedule, linear_decay, refine_schedule, weight_bound


def reference_refined(norms, *, smoothing, power):
    """The published recipe in float64: pad on the right, SciPy's median filter, cut, weigh, sum what comes after."""
    norms = np.maximum(np.asarray(norms, np.float64), 1e-12)
    width = 2 * (int(smoothing * len(norms)) // 2) + 1
    padded = np.pad(norms, (0, 2 * width), mode="reflect")
    smooth = scipy.ndimage.median_filter(padded, size=width, mode="nearest")[: -2 * width]
    weights = smooth**-power
    values = np.array([weights[t] * weights[t + 1 :].sum() for t in range(len(weights))])
    return values / values.max()


def noisy_norms(steps, seed=0):
    rng = np.random.default_rng(seed)
    return (np.linspace(3, 0.5, steps) * np.exp(0.5 * rng.normal(size=steps))).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.02, 0.1, 0.29, 1.0])
@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("steps", [2, 7, 100, 257])
def test_refined_schedule_follows_the_published_recipe(steps, power, smoothing):
    norms = noisy_norms(steps)
    expected = reference_refined(norms, smoothing=smoothing, power=power)
    np.testing.assert_allclose(refine_schedule(norms, smoothing=smoothing, power=power), expected, rtol=2e-5, atol=1e-7)


def test_equal_norms_among_the_neighbours_do_not_confuse_the_median():
    norms = np.random.default_rng(0).integers(1, 4, size=200).astype(np.float32)
    expected = reference_refined(norms, smoothing=0.1, power=2.0)
    np.testing.assert_allclose(refine_schedule(norms), expected, rtol=2e-5, atol=1e-7)


def test_constant_weights_give_linear_decay():
    np.testing.assert_allclose(last_iterate_schedule(jnp.full(10, 0.3)), 0.3 * np.arange(9, -1, -1) / 10, rtol=1e-6)
    np.testing.assert_allclose(refine_schedule(jnp.full(10, 7.0)), np.arange(9, -1, -1) / 9, rtol=1e-6)


def test_last_iterate_schedule_by_hand():
    np.testing.assert_allclose(last_iterate_schedule(jnp.array([1.0, 2.0, 5.0])), [7 / 8, 10 / 8, 0.0])


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e9])
def test_the_scale_of_the_norms_does_not_matter(scale):
    norms = noisy_norms(60)
    np.testing.assert_allclose(refine_schedule(scale * norms), refine_schedule(norms), rtol=1e-4, atol=1e-7)


def test_large_early_gradients_give_a_warmup():
    norms = np.concatenate([np.linspace(10, 1, 30), np.ones(70)]).astype(np.float32)
    values = np.asarray(refine_schedule(norms, smoothing=0.0))
    peak = values.argmax()
    assert 20 <= peak <= 30
    assert (np.diff(values[: peak + 1]) > 0).all()
    assert (np.diff(values[peak:]) < 0).all()
    assert values[0] < 0.05
    assert values[-1] == 0


def test_a_vanishing_gradient_is_bounded_below():
    values = np.asarray(refine_schedule(jnp.array([1.0, 0.0, 1.0, 0.0]), smoothing=0.0))
    np.testing.assert_allclose(values, [2e-24, 1.0, 1e-24, 0.0], rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize(
    ("norms", "power"),
    [
        ([1e8, 1e8, 1e8, 0.0], 2.0),
        ([1.0, 1.0, 1.0, 1e-5], 8.0),
        ([0.0, 1e8, 1e8], 2.0),
        ([1.0, 0.0, 1e8], 8.0),
        ([1e30, 1e30, 0.0], 2.0),
    ],
)
def test_a_single_tiny_norm_hides_nothing(norms, power):
    expected = reference_refined(norms, smoothing=0.0, power=power)
    values = refine_schedule(jnp.array(norms), smoothing=0.0, power=power)
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-30)


def test_refinement_can_be_jitted_and_mapped():
    norms = np.stack([noisy_norms(50, seed) for seed in range(3)])
    mapped = jax.jit(jax.vmap(refine_schedule))(norms)
    for ours, one in zip(mapped, norms, strict=True):
        np.testing.assert_allclose(ours, reference_refined(one, smoothing=0.1, power=2.0), rtol=2e-5, atol=1e-7)


def test_no_weights_have_a_smaller_bound_than_those_of_refinement():
    """Cauchy-Schwarz: (sum w)^2 <= (sum w^2 G^2) (sum G^-2), with equality at w ~ G^-2."""
    norms = noisy_norms(40)
    best = 3.0 / np.sqrt(np.sum(norms.astype(np.float64) ** -2))
    np.testing.assert_allclose(weight_bound(norms**-2.0, norms, distance=3.0), best, rtol=1e-5)
    np.testing.assert_allclose(weight_bound(17 * norms**-2.0, norms, distance=3.0), best, rtol=1e-5)
    others = jnp.exp(jax.random.normal(jax.random.key(0), [1000, 40]))
    bounds = jax.vmap(lambda weights: weight_bound(weights, norms, distance=3.0))(others)
    assert (bounds > best).all()


def test_constant_norms_have_the_minimax_bound():
    np.testing.assert_allclose(weight_bound(jnp.ones(100), jnp.full(100, 2.0), distance=3.0), 3 * 2 / 10, rtol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_the_last_iterate_keeps_the_bound(seed):
    """Subgradient descent on max_i <a_i, x> + b_i from any start, with any weights, scaled to the bound's optimum.

    The scale needs the norms that are observed with it, so it is iterated until both agree.
    """
    rng = np.random.default_rng(seed)
    slopes, offsets = rng.normal(size=(12, 3)), rng.normal(size=12)
    slopes = np.concatenate([slopes, -slopes])  # bounded below
    offsets = np.concatenate([offsets, offsets])
    start, steps = 2 * rng.normal(size=3), 60

    def descend(rates):
        x, norms = start.copy(), []
        for rate in rates:
            gradient = slopes[np.argmax(slopes @ x + offsets)]
            norms.append(np.linalg.norm(gradient))
            x = x - rate * gradient
        return x, np.array(norms)

    solution = scipy.optimize.linprog(
        [0, 0, 0, 1], A_ub=np.c_[slopes, -np.ones(24)], b_ub=-offsets, bounds=[(None, None)] * 4
    )
    distance = np.linalg.norm(start - solution.x[:3])
    weights = np.exp(rng.normal(size=steps))
    for scale in (0.01, 0.1, 1.0):
        # The theorem before its scale is optimised: f(x_T) - f* <= (D^2 + sum w^2 G^2) / (2 sum w).
        x, norms = descend(np.asarray(last_iterate_schedule(jnp.asarray(scale * weights))))
        excess = (slopes @ x + offsets).max() - solution.fun
        bound = (distance**2 + np.sum((scale * weights * norms) ** 2)) / (2 * scale * weights.sum())
        assert 0 <= excess + 1e-9 <= bound
        assert weight_bound(weights, norms, distance=float(distance)) <= bound * (1 + 1e-6)


def test_linear_decay_falls_from_the_peak_to_zero():
    steps = jnp.arange(130)
    np.testing.assert_allclose(
        linear_decay(0.3, total_steps=100)(steps), optax.linear_schedule(0.3, 0.0, 100)(steps), rtol=1e-5, atol=1e-8
    )
    warm = np.asarray(linear_decay(1.0, total_steps=100, warmup_steps=20)(steps))
    np.testing.assert_allclose(warm[:20], np.arange(1, 21) / 20, rtol=1e-6)
    np.testing.assert_allclose(warm[20:101], np.linspace(1, 0, 81), rtol=1e-6, atol=1e-7)
    assert (warm[100:] == 0).all()


def test_a_logged_schedule_is_read_step_by_step_and_stays_at_its_end():
    schedule = as_schedule(jnp.array([0.2, 1.0, 0.5, 0.25]), 2.0)
    np.testing.assert_allclose([schedule(t) for t in range(6)], [0.4, 2.0, 1.0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(schedule(np.arange(6)), [0.4, 2.0, 1.0, 0.5, 0.5, 0.5])


SCHEDULES = {
    "linear_decay": lambda peak: linear_decay(peak, total_steps=20, warmup_steps=4),
    "as_schedule": lambda peak: as_schedule(refine_schedule(noisy_norms(20)), peak),
}
every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


@every_schedule
def test_schedules_take_traced_steps_and_peaks(make):
    steps = jnp.arange(25)
    together = make(0.3)(steps)
    np.testing.assert_allclose([make(0.3)(t) for t in range(25)], together, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(make(0.3))(7.0), together[7], rtol=1e-6)
    mapped = jax.jit(jax.vmap(lambda peak: make(peak)(steps)))(jnp.array([0.3, 0.6]))
    np.testing.assert_allclose(mapped, [together, 2 * together], rtol=1e-5, atol=1e-8)


@every_schedule
def test_schedules_join(make):
    schedule = make(0.3)
    joined = optax.join_schedules([optax.constant_schedule(0.1), schedule], [3])
    np.testing.assert_allclose([joined(t) for t in range(6)], [0.1] * 3 + [schedule(t) for t in range(3)], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_decay(0.1, total_steps=0), "total_steps must be in [1, inf), got 0"),
        (lambda: linear_decay(0.1, total_steps=10, warmup_steps=10), "warmup_steps must be in [0, 9], got 10"),
        (lambda: refine_schedule(jnp.ones(5), smoothing=1.1), "smoothing must be in [0, 1], got 1.1"),
        (lambda: refine_schedule(jnp.ones(5), power=-1.0), "power must be in [0, inf), got -1.0"),
        (lambda: refine_schedule(jnp.ones(1)), "number of grad_norms must be in [2, inf), got 1"),
        (lambda: weight_bound(jnp.ones(5), jnp.ones(5), distance=-1.0), "distance must be in [0, inf), got -1.0"),
        (lambda: as_schedule(jnp.ones(5), -0.1), "peak must be in [0, inf), got -0.1"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match="must be in") as error:
        call()
    assert str(error.value) == message
