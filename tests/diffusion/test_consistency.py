"""Consistency training against closed forms: Gaussian data, a single point, and losses that depend on levels alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.diffusion import (
    consistency_apply,
    consistency_pair,
    consistency_sample,
    ict_loss,
    sample_sigma_pair,
    slct_loss,
)
from jaxreg.schedules import lognormal_index_probs

SIGMA_DATA, SIGMA_MIN = 0.5, 0.002


def network_of(f):
    """The network whose consistency model is ``f(params, x, sigma)``, away from the lowest level."""

    def apply_fn(params, x, noise):
        sigma = jnp.exp(4 * noise).reshape(-1, *[1] * (x.ndim - 1))
        root = jnp.sqrt(sigma**2 + SIGMA_DATA**2)
        skip = SIGMA_DATA**2 / ((sigma - SIGMA_MIN) ** 2 + SIGMA_DATA**2)
        out = SIGMA_DATA * (sigma - SIGMA_MIN) / root
        return jnp.where(out > 1e-6, (f(params, x * root, sigma) - skip * x * root) / jnp.maximum(out, 1e-6), 0.0)

    return apply_fn


def gaussian_map(variance):
    """The probability-flow ODE's map to the lowest level, for normal data."""
    return lambda power, x, sigma: x * ((variance + SIGMA_MIN**2) / (variance + sigma**2)) ** (power / 2)


class TestModel:
    def test_the_equation(self):
        rng = np.random.default_rng(0)
        x, output = rng.normal(size=[2, 3, 2, 4])
        sigma = np.array([0.01, 0.5, 80.0])
        seen = []

        def apply_fn(params, scaled, noise):
            seen.extend([scaled, noise])
            return params

        ours = consistency_apply(apply_fn, jnp.asarray(output), x.astype(np.float32), sigma.astype(np.float32))
        root = np.sqrt(sigma**2 + 0.25)[:, None, None]
        skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)[:, None, None]
        out = 0.5 * (sigma - 0.002)[:, None, None] / root
        np.testing.assert_allclose(ours, skip * x + out * output, rtol=1e-5)
        np.testing.assert_allclose(seen[0], x / root, rtol=1e-5)
        np.testing.assert_allclose(seen[1], np.log(sigma) / 4, rtol=1e-5)

    def test_the_lowest_level_is_mapped_to_itself(self):
        x = jax.random.normal(jax.random.key(0), [5, 3])
        np.testing.assert_array_equal(consistency_apply(lambda p, x, n: 1e3 + x, (), x, SIGMA_MIN), x)

    def test_half_precision_reaches_the_network_and_no_further(self):
        seen = []

        def apply_fn(params, x, noise):
            seen.append(x.dtype)
            return x

        assert consistency_apply(apply_fn, (), jnp.ones([2, 3], jnp.bfloat16), 1.0).dtype == jnp.float32
        assert seen == [jnp.bfloat16]

    @pytest.mark.parametrize("name", ["sigma_data", "sigma_min"])
    def test_refused(self, name):
        with pytest.raises(ValueError, match=rf"^{name} must be in \(0, inf\), got 0.0$"):
            consistency_apply(lambda p, x, n: x, (), jnp.ones([2, 3]), 1.0, **{name: 0.0})


class TestPair:
    """All data is one point ``xi``; the model ``(smin / s) x + (1 - smin / s) theta`` is right for ``theta = xi``."""

    xi, theta = 0.3, 1.0

    def slope(self, gap, lag):
        """Gradient of the squared error over the gap between the levels."""

        def f(theta, x, sigma):
            return SIGMA_MIN / sigma * x + (1 - SIGMA_MIN / sigma) * theta

        def loss(theta):
            student, teacher = consistency_pair(
                network_of(f),
                theta,
                jnp.full([1, 1], self.xi),
                jnp.full([1, 1], 0.7),
                jnp.array([0.5 - gap / 2]),
                jnp.array([0.5 + gap / 2]),
                target_params=None if lag == 0 else jnp.asarray(self.theta - lag),
            )
            return jnp.sum((student - teacher) ** 2)

        return jax.jit(jax.grad(loss))(self.theta) / gap

    def test_gradient_with_the_current_weights_as_teacher(self):
        np.testing.assert_allclose(self.slope(0.02, lag=0), 0.0111552, rtol=5e-3)

    def test_a_teacher_that_lags_behind_takes_over_as_the_gap_shrinks(self):
        """The error is the lag, whatever the gap: 2 (1 - smin / s)^2 lag / gap."""
        np.testing.assert_allclose(self.slope(0.01, lag=0.1), 2 * 0.996**2 * 0.1 / 0.01, rtol=1e-2)
        np.testing.assert_allclose(self.slope(0.001, lag=0.1), 2 * 0.996**2 * 0.1 / 0.001, rtol=1e-2)

    def test_the_noise_is_shared(self):
        x, noise = jax.random.normal(jax.random.key(0), [2, 3, 2])
        low, high = jnp.array([0.1, 0.5, 1.0]), jnp.array([0.2, 0.7, 3.0])
        student, teacher = consistency_pair(network_of(lambda p, x, s: x), (), x, noise, low, high)
        np.testing.assert_allclose(student, x + high[:, None] * noise, rtol=1e-5)
        np.testing.assert_allclose(teacher, x + low[:, None] * noise, rtol=1e-5)


class TestSigmaPair:
    def test_intervals_are_drawn_with_their_probabilities(self):
        draw = jax.jit(lambda n: sample_sigma_pair(jax.random.key(0), n, 200_000))
        for n in (2, 11, 41):
            counts = np.bincount(draw(n).index, minlength=n - 1)
            assert len(counts) == n - 1
            expected = np.asarray(lognormal_index_probs(n))
            spread = np.sqrt(expected * (1 - expected) / 200_000)
            np.testing.assert_array_less(np.abs(counts / 200_000 - expected), 4.5 * spread + 1e-6)

    def test_levels_are_the_ends_of_the_interval(self):
        pair = sample_sigma_pair(jax.random.key(1), 11, 50, sigma_min=0.1, sigma_max=10.0, rho=3.0)
        levels = np.linspace(0.1 ** (1 / 3), 10 ** (1 / 3), 11) ** 3
        np.testing.assert_allclose(pair.low, levels[pair.index], rtol=1e-5)
        np.testing.assert_allclose(pair.high, levels[pair.index + 1], rtol=1e-5)


class TestIct:
    def test_losses_of_a_model_that_depends_on_the_level_alone(self):
        """If f is the level, each error is the gap: 10 intervals, 10 losses, as often as their intervals are drawn."""
        model = network_of(lambda p, x, s: jnp.broadcast_to(s, x.shape))
        x = jnp.zeros([20_000, 2, 2])
        losses = jax.jit(lambda key: ict_loss(model, (), key, x, 0, total_steps=100, c=0.1))(jax.random.key(0))
        gaps = np.diff(np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 11) ** 7)
        possible = (np.sqrt(4 * gaps**2 + 0.01) - 0.1) / gaps
        close = np.abs(np.asarray(losses)[:, None] / possible - 1) < 1e-3
        # At the lowest level itself the model is the identity instead, so the lowest interval has losses of its own.
        np.testing.assert_allclose(close[:, 1:].mean(axis=0), lognormal_index_probs(11)[1:], atol=0.015)

    def test_the_default_scale_grows_with_the_root_of_the_dimension(self):
        key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), [4, 16, 64, 3])
        given = ict_loss(lambda p, x, n: x, (), key, x, 7, total_steps=100, c=0.02993)
        np.testing.assert_allclose(ict_loss(lambda p, x, n: x, (), key, x, 7, total_steps=100), given, rtol=1e-3)

    def test_the_map_of_the_probability_flow_is_a_fixed_point(self):
        """On normal data the gradient changes its sign at the exact map, if the grid is fine."""
        x = 0.6 * jax.random.normal(jax.random.key(0), [40_000, 2])

        def loss(power):
            network = network_of(gaussian_map(0.36))
            return ict_loss(network, power, jax.random.key(1), x, 0, total_steps=1, s0=640, s1=640, c=1e3).mean()

        gradient = jax.jit(jax.vmap(jax.grad(loss)))

        below, exact, above = gradient(jnp.array([0.8, 1.0, 1.2]))
        assert below < 0 < above
        assert abs(exact) < 0.2 * min(-below, above)

    def test_the_grid_is_refined_with_the_step(self):
        x = jnp.zeros([1000, 1])
        model = network_of(lambda p, x, s: s)
        losses = jax.jit(lambda step: ict_loss(model, (), jax.random.key(0), x, step, total_steps=80, s1=1280, c=1e4))
        # For a constant c the losses are proportional to the gaps, which halve.
        early, late = losses(0).mean(), losses(79).mean()
        np.testing.assert_allclose(early / late, 128, rtol=0.25)

    def test_a_teacher_can_be_given(self):
        x, key = jax.random.normal(jax.random.key(1), [6, 2]), jax.random.key(0)
        own = ict_loss(lambda p, x, n: p * x, jnp.asarray(0.3), key, x, 0, total_steps=10)
        same = ict_loss(
            lambda p, x, n: p * x, jnp.asarray(0.3), key, x, 0, total_steps=10, target_params=jnp.asarray(0.3)
        )
        other = ict_loss(
            lambda p, x, n: p * x, jnp.asarray(0.3), key, x, 0, total_steps=10, target_params=jnp.asarray(0.4)
        )
        np.testing.assert_array_equal(own, same)
        assert (own != other).all()


class TestSlct:
    gaps = np.diff(np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 11) ** 7)

    def losses(self, model, x, **options):
        return ict_like(slct_loss, network_of(model), x, **options)

    def test_losses_of_a_model_that_depends_on_the_level_alone(self):
        """As for iCT, with the Cauchy loss at c(11) = 0.032159."""
        model, x = lambda p, x, s: jnp.broadcast_to(s, x.shape), jnp.zeros([20_000, 2])
        losses = self.losses(model, x, diffusion_ratio=0.0, coupling_groups=0)
        possible = np.log1p(2 * self.gaps**2 / (2 * 0.032159**2)) / self.gaps
        close = np.abs(np.asarray(losses)[:, None] / possible - 1) < 2e-3
        np.testing.assert_allclose(close[:, 1:].mean(axis=0), lognormal_index_probs(11)[1:], atol=0.015)

    def test_the_denoising_term_is_at_low_noise_only(self):
        """N = 11, a quarter of it is the lowest two levels. The model is wrong by 3 at all levels but the lowest."""
        model, x = lambda p, x, s: jnp.full_like(x, 3.0), jnp.zeros([20_000, 1])
        options = dict(coupling_groups=0, diffusion_weight=0.5)
        added = self.losses(model, x, **options) - self.losses(model, x, diffusion_ratio=0.0, coupling_groups=0)
        shares = lognormal_index_probs(11)
        # Only a model above the lowest level has an error of 3; there the term is 0.5 * 9.
        np.testing.assert_allclose(np.mean(np.abs(added - 4.5) < 1e-2), shares[1], atol=0.015)
        np.testing.assert_allclose(np.mean(np.abs(added) < 1e-2), 1 - shares[1], atol=0.015)

    def test_the_denoising_term_has_a_gradient_at_its_level(self):
        """The model is ``theta`` everywhere: student and teacher agree, and the term pulls ``theta`` to the data."""
        x, network = jnp.full([5000, 1], 0.4), network_of(lambda theta, x, s: theta + 0 * x)

        def loss(theta):
            # In the lowest interval the teacher is the identity, and pulls too unless c is large.
            return ict_like(slct_loss, network, x, params=theta, c=1e6, coupling_groups=0).mean()

        expected = 2 * (1.0 - 0.4) * lognormal_index_probs(11)[1]
        np.testing.assert_allclose(jax.grad(loss)(1.0), expected, rtol=0.1)

    def test_coupling_moves_the_noise_alone_and_shortens_its_way(self):
        """The noise is what the network sees, less the example: the same values, nearer to the examples."""
        x = jax.random.normal(jax.random.key(1), [64, 2])

        def way(groups):
            seen = []

            def apply_fn(params, scaled, noise):
                sigma = jnp.exp(4 * noise)[:, None]
                seen.append((scaled * jnp.sqrt(sigma**2 + 0.25) - x) / sigma)
                return scaled

            slct_loss(apply_fn, (), jax.random.key(0), x, 0, total_steps=100, coupling_groups=groups)
            return jnp.sort(seen[0], axis=0), jnp.sum((seen[0] - x) ** 2)

        (alone, apart), (_, grouped), (together, least) = (jax.jit(way, static_argnums=0)(g) for g in (0, 4, 1))
        assert apart > grouped > least
        np.testing.assert_allclose(alone, together, atol=1e-2)

    @pytest.mark.parametrize(("groups", "message"), [(3, "divide the batch of 8"), (-1, "be in")])
    def test_refused(self, groups, message):
        with pytest.raises(ValueError, match=f"coupling_groups must {message}"):
            ict_like(slct_loss, lambda p, x, n: x, jnp.zeros([8, 2]), coupling_groups=groups)


def ict_like(loss, apply_fn, x, params=(), **options):
    return jax.jit(lambda key, params: loss(apply_fn, params, key, x, 0, total_steps=100, **options))(
        jax.random.key(0), params
    )


class TestSample:
    @pytest.mark.parametrize("sigmas", [(80.0,), (80.0, 0.8), (80.0, 2.0, 0.2)])
    def test_the_exact_map_gives_the_data(self, sigmas):
        network = network_of(gaussian_map(0.36))
        sample = jax.jit(lambda key: consistency_sample(network, 1.0, key, (20_000, 1), sigmas=sigmas))
        samples = sample(jax.random.key(0))
        np.testing.assert_allclose(samples.std(), 0.6, rtol=0.02)

    def test_noise_is_added_up_to_the_next_level(self):
        """A model that returns its input: variances add."""
        samples = consistency_sample(
            network_of(lambda p, x, s: x), (), jax.random.key(0), (50_000, 1), sigmas=(3.0, 2.0)
        )
        np.testing.assert_allclose(samples.var(), 9 + 4 - 0.002**2, rtol=0.03)

    def test_levels_may_be_an_array_with_gradients_down_to_the_lowest(self):
        """A network of zero at the lowest level leaves what the first step has made."""

        def sample(sigmas):
            return consistency_sample(lambda p, x, n: 0 * x, (), jax.random.key(0), (4, 2), sigmas=sigmas)

        levels = np.float32([80.0, SIGMA_MIN])
        one, two = jax.jit(sample)(levels[:1]), jax.jit(sample)(levels)
        np.testing.assert_allclose(two, one, rtol=1e-6)
        slopes = jax.jit(jax.jacobian(sample))(levels)
        np.testing.assert_allclose(slopes[..., 1], 0.0, atol=1e-6)
        assert (slopes[..., 0] != 0).all()

    def test_it_needs_a_level(self):
        with pytest.raises(ValueError, match="sigmas must have at least one noise level"):
            consistency_sample(lambda p, x, n: x, (), jax.random.key(0), (2, 1), sigmas=())
