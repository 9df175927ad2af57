"""Trajectory models against the probability-flow ODE of normal data, which is known in closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.diffusion import (
    adaptive_balance,
    ctm_adversarial_losses,
    ctm_dsm_loss,
    ctm_jump,
    ctm_loss,
    ctm_sample,
    ctm_score,
    heun_step,
)

VARIANCE, SIGMA_DATA = 0.25, 0.5


def network_of(g):
    """The network whose denoised estimate is ``g(params, x, t, s)``."""

    def apply_fn(params, x, noise_from, noise_to):
        t, s = (jnp.exp(4 * noise).reshape(-1, *[1] * (x.ndim - 1)) for noise in (noise_from, noise_to))
        root = jnp.sqrt(t**2 + SIGMA_DATA**2)
        return (g(params, x * root, t, s) - (SIGMA_DATA / root) ** 2 * x * root) / (t * SIGMA_DATA / root)

    return apply_fn


def exact(power, x, t, s):
    """For a power of one the exact ``g``; other powers bend the trajectories, at all jumps alike."""
    jumped = x * ((VARIANCE + s**2) / (VARIANCE + t**2)) ** (power / 2)
    apart = jnp.abs(t - s) > 1e-3 * t
    ratio = jnp.where(apart, s / t, 0.0)
    return jnp.where(apart, (jumped - ratio * x) / (1 - ratio), denoiser(x, t) * power + (1 - power) * x)


def denoiser(x, t):
    t = jnp.reshape(t, (-1, *[1] * (x.ndim - 1)))
    return x * VARIANCE / (VARIANCE + t**2)


def squared(estimate, target):
    return jnp.sum((estimate - target) ** 2, axis=-1)


class TestJump:
    def test_numbers_of_a_normal_distribution(self):
        jump = ctm_jump(network_of(exact), 1.0, jnp.ones([1, 1]), 2.0, 1.0)
        np.testing.assert_allclose(jump.point, [[0.542326]], rtol=1e-5)
        np.testing.assert_allclose(jump.denoised, [[0.084652]], rtol=2e-5)
        here = ctm_jump(network_of(exact), 1.0, jnp.ones([1, 1]), 2.0, 2.0)
        np.testing.assert_allclose(here.point, [[1.0]], rtol=1e-6)
        np.testing.assert_allclose(here.denoised, [[0.058824]], rtol=2e-5)

    def test_the_equation(self):
        rng = np.random.default_rng(0)
        x, output = rng.normal(size=[2, 3, 2, 4])
        t, s = np.array([0.01, 0.5, 80.0]), np.array([0.002, 0.5, 3.0])
        seen = []

        def apply_fn(params, scaled, noise_from, noise_to):
            seen.extend([scaled, noise_from, noise_to])
            return params

        jump = ctm_jump(apply_fn, jnp.asarray(output), *(a.astype(np.float32) for a in (x, t, s)))
        root = np.sqrt(t**2 + 0.25)[:, None, None]
        g = 0.25 / root**2 * x + 0.5 * t[:, None, None] / root * output
        ratio = (s / t)[:, None, None]
        np.testing.assert_allclose(jump.denoised, g, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(jump.point, ratio * x + (1 - ratio) * g, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(seen[0], x / root, rtol=1e-5)
        np.testing.assert_allclose(seen[1], np.log(t) / 4, rtol=1e-5)
        np.testing.assert_allclose(seen[2], np.log(s) / 4, rtol=1e-5)

    def test_the_score(self):
        x = jnp.array([[1.0, -2.0], [0.5, 3.0]])
        score = ctm_score(network_of(exact), 1.0, x, jnp.array([0.3, 2.0]))
        np.testing.assert_allclose(score, -x / (VARIANCE + jnp.array([[0.09], [4.0]])), rtol=1e-4)


def test_heun_steps_follow_the_ode():
    """Halving the steps divides the error by four or more."""

    def error(steps):
        levels = jnp.linspace(2.0, 0.5, steps + 1)
        x = jnp.ones([1, 1])
        for t, s in itertools.pairwise(levels):
            x = heun_step(denoiser, x, t[None], s[None])
        return abs(x[0, 0] - np.sqrt((VARIANCE + 0.25) / (VARIANCE + 4)))

    assert error(8) < 2e-3
    assert error(8) < error(4) / 3.5


class TestLoss:
    def losses(self, power, x, key=0, **options):
        @jax.jit
        def losses(power, ema):
            return ctm_loss(network_of(exact), power, ema, denoiser, jax.random.key(key), x, **options)

        return losses(power, options.pop("ema", 1.0))

    def test_the_exact_model_has_no_loss_but_that_of_the_solver(self):
        x = 0.5 * jax.random.normal(jax.random.key(1), [500, 2])
        options = dict(n_grid=120, max_solver_steps=10, distance=squared)
        fine, bent = jax.vmap(lambda power: self.losses(power, x, **options).mean())(jnp.array([1.0, 1.3]))
        assert fine < 1e-5
        assert bent > 20 * fine

    def test_the_gradient_flows_through_the_outer_jump(self):
        """What is compared are ends of trajectories: with the square of the estimate as distance, differences agree."""
        x = 0.5 * jax.random.normal(jax.random.key(1), [200, 2])

        def loss(power):
            return self.losses(power, x, distance=lambda estimate, target: jnp.sum(estimate**2, axis=-1)).mean()

        _, gradient = jax.value_and_grad(loss)(1.3)
        below, above = jax.vmap(loss)(jnp.array([1.29, 1.31]))
        np.testing.assert_allclose(gradient, (above - below) / 0.02, rtol=1e-2)

    def test_no_gradient_through_averaged_weights_or_target(self):
        x = 0.5 * jax.random.normal(jax.random.key(1), [50, 2])
        gradient = jax.grad(lambda ema: self.losses(1.3, x, ema=ema).mean())(1.0)
        assert gradient == 0.0
        # One step to the end: the target is the teacher's point itself, whatever the weights.
        options = dict(n_grid=2, max_solver_steps=1, distance=lambda estimate, target: jnp.sum(target, axis=-1))
        targets, gradients = jax.vmap(jax.value_and_grad(lambda power: self.losses(power, x, **options).sum()))(
            jnp.array([1.0, 1.5])
        )
        np.testing.assert_allclose(targets[0], targets[1], rtol=1e-5)
        np.testing.assert_array_equal(gradients, np.zeros(2))

    def test_levels_are_drawn_in_order(self):
        """With N = 4 and k up to 3: pairs (t, s) as often as they are drawn, s no higher than u."""
        x = jnp.zeros([2000, 1])

        @jax.jit
        def draw(key):
            """The noises that the first jump is given, and the first of those of the teacher's side."""
            seen = []

            def apply_fn(params, x, noise_from, noise_to):
                seen.append((noise_from, noise_to))
                return 0 * x

            ctm_loss(apply_fn, (), (), denoiser, key, x, n_grid=4, max_solver_steps=3)
            return *seen[0], seen[2][0]

        ks = []
        for key in range(12):
            levels = [np.log(np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 4) ** 7) / 4]
            t, s, u = (np.abs(np.asarray(noise)[:, None] - levels).argmin(1) for noise in draw(jax.random.key(key)))
            (k,) = set(u - t)
            ks.append(k)
            assert set(t) == set(range(4 - k))
            assert (s >= u).all()
            assert set(s) == set(range(k, 4))
        assert set(ks) == {1, 2, 3}

    def test_to_the_end_it_is_consistency_distillation(self):
        seen = []

        def apply_fn(params, x, noise_from, noise_to):
            seen.append(noise_to)
            return 0 * x

        ctm_loss(apply_fn, (), (), denoiser, jax.random.key(0), jnp.zeros([20, 1]), to_the_end=True)
        np.testing.assert_allclose(jnp.concatenate(seen), np.log(0.002) / 4, rtol=1e-5)

    def test_refused(self):
        with pytest.raises(ValueError, match=r"^max_solver_steps must be in \[1, 4\], got 5"):
            self.losses(1.0, jnp.zeros([2, 1]), n_grid=5, max_solver_steps=5)


def test_score_matching_prefers_the_denoiser_and_weighs_it():
    """An error has the variance v t^2 / (v + t^2), which the weights bring to one at v = sigma_data^2."""
    x = 0.5 * jax.random.normal(jax.random.key(0), [40_000, 1])
    network = network_of(lambda scale, x, t, s: scale * denoiser(x, t))
    measure = jax.jit(jax.vmap(lambda scale: ctm_dsm_loss(network, scale, jax.random.key(1), x)))
    below, exact, above = measure(jnp.array([0.9, 1.0, 1.1]))
    np.testing.assert_allclose([exact[:20_000].mean(), exact[20_000:].mean()], [1.0, 1.0], rtol=0.04)
    assert exact.mean() < min(below.mean(), above.mean())


def test_score_matching_levels():
    seen = []

    def apply_fn(params, x, noise_from, noise_to):
        seen.append(np.exp(4 * np.asarray(noise_from)))
        np.testing.assert_array_equal(noise_from, noise_to)
        return x

    ctm_dsm_loss(apply_fn, (), jax.random.key(0), jnp.zeros([4000, 1]))
    (q,) = seen
    np.testing.assert_allclose([np.log(q[:2000]).mean(), np.log(q[:2000]).std()], [-1.2, 1.2], atol=0.1)
    position = (q[2000:] ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))
    np.testing.assert_allclose([position.min(), position.max(), position.mean()], [0.3, 1.0, 0.65], atol=0.02)


def test_the_adversarial_losses_train_one_side_each():
    x = 0.5 * jax.random.normal(jax.random.key(0), [64, 2])

    def critic_fn(weight, x):
        return weight * x.sum(-1)

    arguments = network_of(exact), 1.0, critic_fn, 0.7, jax.random.key(1), x
    generator, critic = ctm_adversarial_losses(*arguments)
    fake_scores = -generator
    np.testing.assert_allclose(
        critic, np.maximum(0, 1 - 0.7 * np.asarray(x).sum(-1)) + np.maximum(0, 1 + fake_scores), rtol=1e-5
    )

    def total(which, power, weight):
        return ctm_adversarial_losses(network_of(exact), power, critic_fn, weight, jax.random.key(1), x)[which].sum()

    gradients = jax.jit(jax.grad(total, argnums=(1, 2)), static_argnums=0)
    by_model, by_critic = (gradients(which, 1.0, 0.7) for which in (0, 1))
    assert by_model[0] != 0
    assert by_model[1] == 0
    assert by_critic[0] == 0
    assert by_critic[1] != 0


def test_adaptive_balance():
    a, b = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.6, 0.8])}
    np.testing.assert_allclose(adaptive_balance(a, b), 5 / 1.0001, rtol=1e-6)
    np.testing.assert_allclose(adaptive_balance(a, b, clip=(0.01, 2.0)), 2.0)
    assert adaptive_balance(a, {"w": jnp.zeros(2)}) == 1e4
    assert (jax.grad(lambda w: adaptive_balance({"w": w}, b))(a["w"]) == 0).all()


LEVELS = (80.0, 2.0, 0.3)


class TestSample:
    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
    def test_the_exact_model_gives_the_data(self, gamma):
        sample = jax.jit(lambda key: ctm_sample(network_of(exact), 1.0, key, (20_000, 1), sigmas=LEVELS, gamma=gamma))
        samples = sample(jax.random.key(0))
        np.testing.assert_allclose(samples.std(), 0.5, rtol=0.02)

    def test_without_noise_steps_do_not_matter_to_the_exact_model(self):
        one, three = (
            ctm_sample(network_of(exact), 1.0, jax.random.key(0), (50, 2), sigmas=sigmas)
            for sigmas in ((80.0,), (80.0, 5.0, 0.1))
        )
        np.testing.assert_allclose(one, three, rtol=1e-3, atol=1e-5)

    def test_gradients_where_no_noise_is_added_or_none_is_kept(self):
        """Central differences in the level, which would be lost in the rounding of float32."""

        def total(level, gamma):
            sigmas = (80.0, level, 0.1)
            samples = ctm_sample(lambda p, x, a, b: 0 * x, (), jax.random.key(0), (4, 2), sigmas=sigmas, gamma=gamma)
            return jnp.sum(jnp.square(samples))

        with jax.enable_x64(True):
            differentiated = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
            for gamma in (0.0, 1.0):
                (above, _), (below, _), (_, slopes) = (differentiated(0.5 + by, gamma) for by in (1e-5, -1e-5, 0.0))
                np.testing.assert_allclose(slopes[0], (above - below) / 2e-5, rtol=1e-5)
                assert np.isfinite(slopes[1])

    def test_levels_may_be_an_array_and_traced(self):
        def sample(sigmas):
            return ctm_sample(lambda p, x, a, b: 0 * x, (), jax.random.key(0), (5, 2), sigmas=sigmas, gamma=0.5)

        expected = jax.jit(lambda: sample(LEVELS))()
        np.testing.assert_allclose(jax.jit(sample)(jnp.array(LEVELS)), expected, rtol=1e-4, atol=1e-6)
        with pytest.raises(ValueError, match="sigmas must have at least one noise level"):
            sample(jnp.zeros(0))

    def test_levels_below_the_next_one(self):
        """s = sqrt(1 - 0.36) (t' - smin) + smin."""
        seen = []

        def apply_fn(params, x, noise_from, noise_to):
            seen.append((np.exp(4 * noise_from[0]), np.exp(4 * noise_to[0])))
            return 0 * x

        ctm_sample(apply_fn, (), jax.random.key(0), (1, 1), sigmas=(10.0, 1.002), gamma=0.6)
        np.testing.assert_allclose(seen, [(10.0, 0.802), (1.002, 0.002)], rtol=1e-4)
