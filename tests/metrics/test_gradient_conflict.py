import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.metrics import gradient_cosine

RNG = np.random.default_rng(0)
A, B = ({"w": RNG.normal(size=(3, 2)), "b": RNG.normal(size=2)} for _ in range(2))


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_cosine_of_all_leaves_together(scale):
    a, b = (np.concatenate([tree["b"], tree["w"].ravel()]) for tree in (A, B))
    scaled = {name: (scale * leaf).astype(np.float32) for name, leaf in A.items()}
    cosine = gradient_cosine(scaled, {name: leaf.astype(np.float32) for name, leaf in B.items()})
    np.testing.assert_allclose(cosine, a @ b / np.linalg.norm(a) / np.linalg.norm(b), rtol=1e-5)


def test_a_zero_gradient_has_no_direction():
    assert float(gradient_cosine({"w": jnp.zeros(3)}, {"w": jnp.ones(3)})) == 0.0


def test_gradients_that_are_no_numbers_have_no_cosine():
    assert np.isnan(gradient_cosine({"w": jnp.array([jnp.nan, 1.0])}, {"w": jnp.ones(2)}))


def test_other_shapes_are_refused():
    with pytest.raises(TypeError):
        gradient_cosine({"w": jnp.zeros(3)}, {"w": jnp.ones(2)})
