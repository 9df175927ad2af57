import numpy as np

from jaxreg.metrics import bias_variance

RNG = np.random.default_rng(0)


def test_the_parts_sum_to_the_squared_error():
    predictions, targets = RNG.normal(size=(6, 5, 3)), RNG.normal(size=(5, 3))
    bias, variance = bias_variance(predictions.astype(np.float32), targets.astype(np.float32))
    np.testing.assert_allclose(bias + variance, np.square(predictions - targets).sum(-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(variance, predictions.var(0).sum(-1).mean(), rtol=1e-5)


def test_known_noise_around_a_known_offset():
    """Predictions y + 0.5 + N(0, 0.2^2) in two outputs: bias 2 * 0.25, variance 2 * 0.04."""
    targets = RNG.normal(size=(50, 2))
    predictions = targets + 0.5 + 0.2 * RNG.normal(size=(4000, 50, 2))
    bias, variance = bias_variance(predictions.astype(np.float32), targets.astype(np.float32))
    np.testing.assert_allclose([bias, variance], [0.5, 0.08], rtol=0.02)
