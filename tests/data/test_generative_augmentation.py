"""Gaussian generators against NumPy and scikit-learn, and the gap that they leave against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.naive_bayes import GaussianNB

from jaxreg.data import augment, fit_class_gaussian, sample_generator
from jaxreg.metrics import expected_gaussian_gap, generalization_gap

RNG = np.random.default_rng(0)
LABELS = np.array([0, 2, 1, 1, 2, 0, 0, 1, 2, 2])
INPUTS = (RNG.normal(size=(10, 4)) * [1, 2, 3, 4] + LABELS[:, None]).astype(np.float32)


class TestFit:
    def test_every_class_has_its_own_moments_as_in_scikit_learn(self):
        """GaussianNB divides by the number of examples, the generator by one less."""
        generator = fit_class_gaussian(INPUTS, LABELS, num_classes=3, tied=False)
        reference = GaussianNB(var_smoothing=0).fit(INPUTS.astype(np.float64), LABELS)
        count = reference.class_count_[:, None]
        np.testing.assert_allclose(generator.mean, reference.theta_, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(generator.variance, reference.var_ * count / (count - 1), rtol=1e-5)
        np.testing.assert_allclose(generator.share, reference.class_prior_, rtol=1e-6)

    def test_tied_variances_are_pooled(self):
        generator = fit_class_gaussian(INPUTS, LABELS, num_classes=3)
        members = [INPUTS[np.equal(LABELS, k)] for k in range(3)]
        pooled = sum(len(x) * x.var(0) for x in members)
        np.testing.assert_allclose(generator.variance, np.tile(pooled / 7, (3, 1)), rtol=1e-5)

    def test_symmetric_classes_share_a_mean(self):
        labels = LABELS % 2
        generator = fit_class_gaussian(INPUTS, labels, symmetric=True)
        signed = np.where(labels[:, None] == 1, 1, -1) * INPUTS
        np.testing.assert_allclose(generator.mean, [-signed.mean(0), signed.mean(0)], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(generator.variance, [signed.var(0, ddof=1)] * 2, rtol=1e-5)

    def test_a_class_of_one_borrows_its_variance_and_an_empty_one_is_never_drawn(self):
        labels = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
        tied = fit_class_gaussian(INPUTS, labels, num_classes=3)
        generator = fit_class_gaussian(INPUTS, labels, num_classes=3, tied=False)
        np.testing.assert_allclose(generator.variance[0], INPUTS[:9].var(0, ddof=1), rtol=1e-5)
        np.testing.assert_array_equal(generator.variance[1], tied.variance[1])
        _, drawn = sample_generator(jax.random.key(0), generator, 200)
        assert set(np.asarray(drawn)) == {0, 1}

    def test_more_than_two_classes_are_not_symmetric(self):
        with pytest.raises(ValueError, match=r"^num_classes must be in \[2, 2\], got 3"):
            fit_class_gaussian(INPUTS, LABELS, num_classes=3, symmetric=True)


class TestSamples:
    def test_they_follow_the_gaussians(self):
        generator = fit_class_gaussian(INPUTS, LABELS, num_classes=3, tied=False)
        x, y = (np.asarray(part) for part in sample_generator(jax.random.key(1), generator, 2000))
        counts = np.bincount(y, minlength=3)
        assert stats.chisquare(counts, 2000 * np.asarray(generator.share)).pvalue > 1e-3
        for k in range(3):
            standard = (x[y == k] - generator.mean[k]) / np.sqrt(generator.variance[k])
            assert stats.kstest(standard.ravel(), stats.norm.cdf).pvalue > 1e-3


class TestAugment:
    def test_without_generated_examples_it_is_the_training_set(self):
        x, y = augment(jax.random.key(0), INPUTS, LABELS, fit_class_gaussian(INPUTS, LABELS, num_classes=3), ratio=0)
        np.testing.assert_array_equal(x, INPUTS)
        np.testing.assert_array_equal(y, LABELS)

    def test_the_real_examples_come_first(self):
        generator = fit_class_gaussian(INPUTS, LABELS, num_classes=3)
        x, y = augment(jax.random.key(0), INPUTS, LABELS, generator, ratio=1.5)
        assert x.shape == (25, 4)
        np.testing.assert_array_equal(x[:10], INPUTS)
        np.testing.assert_array_equal(y[:10], LABELS)
        np.testing.assert_array_equal(x[10:], sample_generator(jax.random.key(0), generator, 15)[0])

    def test_any_generator_will_do(self):
        images, labels = jnp.zeros([4, 2, 2], jnp.bfloat16), jnp.array([0, 1, 0, 1], jnp.uint8)
        x, y = augment(
            jax.random.key(0), images, labels, lambda key, n: (jnp.ones([n, 2, 2]), jnp.full([n], 7)), ratio=2
        )
        assert (x.dtype, y.dtype) == (jnp.bfloat16, jnp.uint8)
        np.testing.assert_array_equal(x.astype(jnp.float32).mean((1, 2)), [0] * 4 + [1] * 8)
        np.testing.assert_array_equal(y, [0, 1, 0, 1] + [7] * 8)

    def test_negative_ratios_are_refused(self):
        with pytest.raises(ValueError, match=r"^ratio must be in \[0, inf\), got -1"):
            augment(jax.random.key(0), INPUTS, LABELS, lambda key, n: None, ratio=-1)


class TestGap:
    """With d features, m real and g generated examples, of which the variance is a given part of the estimated one."""

    D, M, SIGMA = 8, 5, 0.6

    def by_sums_of_squares(self, g, part=1.0):
        """In units of sigma^2: the test loss from the variance of theta, the training loss within and between parts."""
        total = self.M + g
        test = 1 + 1 / self.M + part * g / total**2
        within = (self.M - 1) + part * max(g - 1, 0)
        between = part * self.M / total if g else 0.0
        return self.D / 2 * (test - (within + between) / total)

    def simulate(self, g, part, repeats=1000):
        """The gap for many training sets; the test loss is the exact expectation."""
        mean = np.full(self.D, 0.5)

        def gap(key):
            key_noise, key_generated = jax.random.split(key)
            y = jnp.arange(self.M) % 2
            x = (2 * y - 1)[:, None] * mean + self.SIGMA * jax.random.normal(key_noise, [self.M, self.D])
            generator = fit_class_gaussian(x, y, symmetric=True)
            generator = generator._replace(variance=part * generator.variance)
            x, y = augment(key_generated, x, y, generator, ratio=g / self.M)
            signed = (2 * y - 1)[:, None] * x

            def loss(theta, signed):
                return jnp.sum(jnp.square(signed - theta), axis=-1) / (2 * self.SIGMA**2)

            # These points along the axes have the mean and the variances of the true distribution.
            axes = self.SIGMA * self.D**0.5 * jnp.eye(self.D)
            return generalization_gap(loss, signed.mean(0), signed, mean + jnp.concatenate([axes, -axes]))

        return jax.vmap(gap)(jax.random.split(jax.random.key(2), repeats))

    def test_expected_gap_is_what_simulations_find(self):
        """Also that dividing the variance by m instead of m - 1 takes most of the gain away."""
        simulate = jax.jit(self.simulate, static_argnums=0)
        for g, part in [(30, 1.0), (30, (self.M - 1) / self.M)]:
            gaps = np.asarray(simulate(g, part))
            error = gaps.std() / len(gaps) ** 0.5
            expected = self.by_sums_of_squares(g, part)
            assert abs(gaps.mean() - expected) < 4 * error
            assert error < 0.04 * expected

    def test_without_generated_data_simulations_find_d_over_m(self):
        """In units of sigma^2 / 2: the spread around theta of new points and of those that it is the mean of."""
        noise = np.random.default_rng(1).normal(size=(20000, self.M, self.D))
        theta = noise.mean(1)
        new = self.D + (theta**2).sum(-1)
        own = ((noise - theta[:, None]) ** 2).sum(-1).mean(-1)
        np.testing.assert_allclose((new - own).mean() / 2, expected_gaussian_gap(self.D, self.M), rtol=0.02)

    @pytest.mark.parametrize("g", [0, 1, 5, 30, 1000])
    def test_closed_form_equals_the_sums_of_squares(self, g):
        np.testing.assert_allclose(expected_gaussian_gap(self.D, self.M, g), self.by_sums_of_squares(g), rtol=1e-5)

    @pytest.mark.parametrize(("generated", "value"), [(0, 5.0), (10**7, 2.5)])
    def test_generated_data_halve_the_gap(self, generated, value):
        np.testing.assert_allclose(expected_gaussian_gap(50, 10, generated), value, rtol=1e-4)
        biased = self.by_sums_of_squares(10**7, part=(self.M - 1) / self.M)
        np.testing.assert_allclose(biased, self.D / self.M, rtol=1e-4)
