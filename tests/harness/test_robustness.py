import jax
import numpy as np

from experiments.harness.robustness import pgd_accuracy


def test_a_linear_network_is_accurate_where_its_margin_exceeds_the_radius():
    """With logits (x, -x) and labels by the sign of x - 1/2 an attack succeeds within the radius of 1/2."""
    images = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    labels = (images[:, 0] < 0.5).astype(int)
    measure = jax.jit(
        lambda epsilon: pgd_accuracy(
            lambda w, x: (x - 0.5) * w, np.array([1.0, -1.0]), images, labels, jax.random.key(0), epsilon=epsilon
        )
    )
    np.testing.assert_allclose(measure(0.0), 1.0)
    np.testing.assert_allclose(measure(0.2), np.mean(np.abs(images - 0.5) > 0.2), atol=0.03)
