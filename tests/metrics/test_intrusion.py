"""The rate of manifold intrusion by hand: classes 0, 1, 0 at -2, 0 and 2."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import intrusion_rate

REAL, LABELS = jnp.array([[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]]), jnp.array([0, 1, 0])


@pytest.mark.parametrize(
    ("place", "target", "intrudes"),
    [
        (0.1, [1.0, 0.0], True),  # the middle of both ends, where class 1 is
        (0.6, [1.0, 0.0], False),  # nobody is there
        (1.9, [0.9, 0.1], False),  # where its own class is
        (0.1, [0.4, 0.6], False),
        (0.1, [0.6, 0.4], True),
        (-1.8, [0.2, 0.8], True),
    ],
)
def test_one_mixture(place, target, intrudes):
    rate = intrusion_rate(jnp.array([[place, 0.0]]), jnp.array([target]), REAL, LABELS, radius=0.5)
    assert float(rate) == intrudes


def test_shares_of_any_shape_radius_and_share():
    """Distances to class 1 are 0.1, 0.3 and 0.5 diagonally; the targets give it 0, 0.3 and 0.2."""
    mixed = jnp.array([[[0.06, 0.08]], [[0.18, 0.24]], [[0.3, 0.4]]])
    targets = jnp.array([[1.0, 0.0], [0.7, 0.3], [0.8, 0.2]])
    for radius, share, expected in [(0.51, 0.5, 1), (0.4, 0.5, 2 / 3), (0.4, 0.25, 1 / 3), (0.51, 0.25, 2 / 3)]:
        rate = intrusion_rate(mixed, targets, REAL[:, None], LABELS, radius=radius, share=share)
        np.testing.assert_allclose(rate, expected, rtol=1e-6)


def test_mixtures_that_are_no_numbers_do_not_count_as_harmless():
    mixed, targets = jnp.array([[jnp.nan, 0.0], [9.0, 0.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    assert np.isnan(intrusion_rate(mixed, targets, REAL, LABELS, radius=0.5))
    assert float(intrusion_rate(mixed[1:], targets[1:], REAL, LABELS, radius=0.5)) == 0.0


@pytest.mark.parametrize(("name", "value"), [("radius", 0.0), ("share", 0.0), ("share", 1.1)])
def test_bad_hyperparameters_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be in .*, got {value}"):
        intrusion_rate(REAL, jnp.eye(3)[:, :2], REAL, LABELS, **{"radius": 1.0, name: value})
