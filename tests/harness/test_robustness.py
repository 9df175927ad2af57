import jax
import numpy as np

from experiments.harness.robustness import pgd_correct


def test_a_linear_network_is_right_where_its_margin_exceeds_the_radius():
    """With logits (x, -x) and labels by the sign of x - 1/2 an attack succeeds within the radius of 1/2."""
    images = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    labels = (images[:, 0] < 0.5).astype(int)
    measure = jax.jit(
        lambda epsilon: pgd_correct(
            lambda w, x: (x - 0.5) * w, np.array([1.0, -1.0]), images, labels, jax.random.key(0), epsilon=epsilon
        )
    )
    assert measure(0.0).all()
    distance = np.abs(images[:, 0] - 0.5)
    off_the_edge = np.abs(distance - 0.2) > 0.001
    np.testing.assert_array_equal(measure(0.2)[off_the_edge], (distance > 0.2)[off_the_edge])
