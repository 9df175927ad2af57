"""HOC against a NumPy loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.losses import hoc_loss

RNG = np.random.default_rng(0)
NEW, OLD = RNG.normal(size=(2, 6, 4)).astype(np.float32)
LABELS = np.array([0, 1, 0, 2, 2, 2])


def reference(new, old, labels, mu, same_class):
    new = new / np.linalg.norm(new, axis=1, keepdims=True)
    old = old / np.linalg.norm(old, axis=1, keepdims=True)
    losses = []
    for i in range(len(labels)):
        total = 0.0
        for j in range(len(labels)):
            if labels[i] != labels[j] or (same_class == "exclude" and i == j):
                total += np.exp(mu * old[i] @ new[j])
            elif same_class == "zero":
                total += 1.0
        losses.append(-mu * old[i] @ new[i] + np.log(total))
    return losses


@pytest.mark.parametrize("same_class", ["zero", "exclude"])
@pytest.mark.parametrize("mu", [0.5, 10.0])
def test_hoc_equals_a_loop(mu, same_class):
    ours = hoc_loss(NEW, OLD, LABELS, mu=mu, same_class=same_class)
    np.testing.assert_allclose(ours, reference(NEW, OLD, LABELS, mu, same_class), rtol=1e-4, atol=1e-5)


def test_hoc_of_one_example():
    """The sum is that of one masked entry, exp(0): the loss is minus the similarity, 10 cos 60 degrees."""
    new, old = jnp.array([[2.0, 0.0]]), jnp.array([[0.5, 0.75**0.5]])
    np.testing.assert_allclose(hoc_loss(new, old, jnp.array([0])), [-5.0], rtol=1e-5)
    np.testing.assert_allclose(hoc_loss(new, old, jnp.array([0]), same_class="exclude"), [0.0], atol=1e-5)


def test_hoc_does_not_depend_on_lengths():
    np.testing.assert_allclose(hoc_loss(1e20 * NEW, 1e-20 * OLD, LABELS), hoc_loss(NEW, OLD, LABELS), rtol=1e-4)


def test_hoc_moves_only_the_new_features_and_not_along_themselves():
    to_new, to_old = jax.grad(lambda n, o: hoc_loss(n, o, LABELS).sum(), argnums=(0, 1))(jnp.asarray(NEW), OLD)
    np.testing.assert_array_equal(to_old, 0.0)
    np.testing.assert_allclose(jnp.sum(to_new * NEW, axis=1), np.zeros(6), atol=1e-4)
    at_zero = jax.grad(lambda n: hoc_loss(n, OLD, LABELS).sum())(jnp.zeros_like(NEW))
    assert np.isfinite(at_zero).all()
