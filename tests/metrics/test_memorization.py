"""Outcomes of wrong labels by hand, and the linear model in which early learning and memorization are proved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import early_learning_alignment, label_outcomes


def test_outcomes_by_hand():
    true = np.array([0, 0, 1, 1, 2, 2, 0, 1])
    observed = np.array([0, 0, 1, 1, 1, 0, 2, 2])  # the last four are flipped
    predicted = np.array([0, 1, 1, 1, 2, 0, 2, 0])
    outcomes = jax.jit(label_outcomes)(predicted, observed, true)
    assert [float(x) for x in outcomes] == [0.25, 0.5, 0.25, 0.75, 0.5]


def test_outcomes_of_flipped_examples_sum_to_one_over_any_shape():
    predicted, observed, true = (jax.random.randint(jax.random.key(k), [4, 30], 0, 5, jnp.uint8) for k in range(3))
    outcomes = label_outcomes(predicted, observed, true)
    np.testing.assert_allclose(outcomes.correct + outcomes.memorized + outcomes.incorrect, 1.0, rtol=1e-6)
    flat = label_outcomes(predicted.reshape(-1), observed.reshape(-1), true.reshape(-1))
    np.testing.assert_allclose(outcomes, flat, rtol=1e-6)


def test_without_wrong_labels_their_fractions_are_undefined():
    labels = np.arange(3)
    outcomes = label_outcomes(labels, labels, labels)
    assert np.isnan([outcomes.correct, outcomes.memorized, outcomes.incorrect]).all()
    assert (outcomes.clean_correct, outcomes.flipped) == (1.0, 0.0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_alignment_by_hand(scale):
    direction = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    gradient = scale * jnp.array([[-1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(early_learning_alignment(gradient, direction), 0.6, rtol=1e-6)
    np.testing.assert_allclose(early_learning_alignment(-gradient, direction), -0.6, rtol=1e-6)
    assert float(early_learning_alignment(0 * gradient, direction)) == 0.0


class TestLinearModel:
    """Logistic regression on N(+v, s^2 I) and N(-v, s^2 I) with a part of the labels flipped, as many dimensions as
    examples. Theorem 1 of arXiv 2007.00151: the negative gradient first points to v, and the mislabelled examples are
    classified correctly; in the end every one of them is memorized.
    """

    examples, dimensions, spread, flip_rate = 400, 400, 0.2, 0.2

    def course(self, steps):
        key_class, key_noise, key_flip, key_direction = jax.random.split(jax.random.key(0), 4)
        v = jax.random.normal(key_direction, [self.dimensions])
        v /= jnp.linalg.norm(v)
        true = jax.random.bernoulli(key_class, 0.5, [self.examples]).astype(jnp.int32)
        flipped = jax.random.permutation(key_flip, self.examples) < self.flip_rate * self.examples
        observed = jnp.where(flipped, 1 - true, true)
        noise = jax.random.normal(key_noise, [self.examples, self.dimensions])
        x = (2 * true - 1)[:, None] * v + self.spread * noise
        signs = 2.0 * observed - 1

        def loss(theta):
            return jnp.mean(jax.nn.softplus(-signs * (x @ theta)))

        def step(theta, _):
            gradient = jax.grad(loss)(theta)
            outcomes = label_outcomes((x @ theta > 0).astype(jnp.int32), observed, true)
            return theta - 0.5 * gradient, (early_learning_alignment(gradient, v), outcomes)

        _, course = jax.jit(lambda: jax.lax.scan(step, jnp.zeros(self.dimensions), None, steps))()
        return jax.tree.map(np.asarray, course)

    def test_the_first_gradient_points_to_the_true_classifier(self):
        """At zero it is minus the mean of y x / 2: v with weight 1 - 2 flip_rate, plus noise of variance s^2 / n."""
        alignment, _ = self.course(1)
        signal = 1 - 2 * self.flip_rate
        noise = self.spread**2 * self.dimensions / self.examples
        np.testing.assert_allclose(alignment[0], signal / np.sqrt(signal**2 + noise), atol=0.01)

    def test_early_learning_then_memorization(self):
        alignment, outcomes = self.course(1500)
        early = slice(1, 15)
        assert (alignment[early] > 0.5).all()
        assert (outcomes.correct[early] == 1.0).all()
        assert (outcomes.memorized[early] == 0.0).all()
        assert (outcomes.memorized[-500:] == 1.0).all()
        assert (outcomes.correct[-500:] == 0.0).all()
        assert (outcomes.clean_correct[-500:] == 1.0).all()
        assert (alignment[-500:] < 0.3).all()
        np.testing.assert_allclose(outcomes.flipped, self.flip_rate, rtol=1e-6)
