"""Losses of the GAN by hand, and a step against one written out for a linear GAN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.unlearning import adapt_then_unlearn_step, discriminator_loss, gan_init, generator_loss, r1_penalty


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_losses_are_logistic():
    real, fake = np.array([0.3, -2.0]), np.array([1.0, -0.5])
    np.testing.assert_allclose(generator_loss(fake.astype(np.float32)), -np.log(sigmoid(fake)), rtol=1e-6)
    expected = -np.log(sigmoid(real)) - np.log(1 - sigmoid(fake))
    np.testing.assert_allclose(
        discriminator_loss(real.astype(np.float32), fake.astype(np.float32)), expected, rtol=1e-6
    )


def test_r1_of_a_quadratic():
    """The gradient of w |x|^2 is 2 w x."""
    samples = jnp.array([[[3.0, 4.0]], [[1.0, 0.0]]])
    penalty = r1_penalty(lambda w, x: w * jnp.sum(x**2, axis=(1, 2)), jnp.array(0.5), samples)
    np.testing.assert_allclose(penalty, [25.0, 1.0], rtol=1e-6)


class TestStep:
    """G(z) = z + a and D(x) = <w, x>, with plain gradient descent."""

    samples = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    a, w, rate, key = np.array([0.5, -1.0]), np.array([0.3, 0.2]), 0.1, jax.random.key(3)

    def step(self, **options):
        optimizers = dict(generator_optimizer=optax.sgd(self.rate), discriminator_optimizer=optax.sgd(self.rate))
        state = gan_init(jnp.asarray(self.a, jnp.float32), jnp.asarray(self.w, jnp.float32), **optimizers)
        options = dict(latent_size=2, r1=0.7) | options
        return adapt_then_unlearn_step(
            state,
            self.samples,
            self.key,
            generator_fn=lambda a, z: z + a,
            discriminator_fn=lambda w, x: x @ w,
            **optimizers,
            **options,
        )

    def test_discriminator_first_then_generator_with_its_penalty(self):
        state, losses = self.step(penalty=lambda a: 2.0 * jnp.sum(a**2))
        z, z_generator = (np.asarray(jax.random.normal(k, [6, 2]), np.float64) for k in jax.random.split(self.key))
        fake = z + self.a
        real_part = -(1 - sigmoid(self.samples @ self.w))[:, None] * self.samples
        fake_part = sigmoid(fake @ self.w)[:, None] * fake
        w = self.w - self.rate * ((real_part + fake_part).mean(0) + 0.7 * self.w)  # of R1, |w|^2
        np.testing.assert_allclose(state.discriminator, w, rtol=1e-5)
        score = (z_generator + self.a) @ w
        a = self.a - self.rate * (-(1 - sigmoid(score)).mean() * w + 4 * self.a)
        np.testing.assert_allclose(state.generator, a, rtol=1e-5)
        np.testing.assert_allclose(losses.generator, -np.log(sigmoid(score)).mean(), rtol=1e-5)
        np.testing.assert_allclose(losses.r1, self.w @ self.w, rtol=1e-5)
        np.testing.assert_allclose(losses.penalty, 2 * 1.25, rtol=1e-5)
        real, fake = self.samples @ self.w, fake @ self.w
        logistic = -np.log(sigmoid(real)) - np.log(1 - sigmoid(fake))
        np.testing.assert_allclose(losses.discriminator, logistic.mean(), rtol=1e-5)

    def test_without_a_penalty_it_is_a_step_of_a_gan(self):
        none, losses = self.step()
        zero, _ = self.step(penalty=lambda a: 0.0 * jnp.sum(a))
        np.testing.assert_array_equal(none.generator, zero.generator)
        assert float(losses.penalty) == 0.0

    @pytest.mark.parametrize(("name", "value"), [("latent_size", 0), ("r1", -1.0)])
    def test_bad_hyperparameters_are_named(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be in"):
            self.step(**{name: value})
