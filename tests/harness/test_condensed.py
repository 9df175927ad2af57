import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import condensed


def test_examples_are_drawn_from_their_class():
    y = jnp.array([2, 0, 1, 0, 2, 2])
    draw = condensed.sampler_by_class(jnp.arange(6.0)[:, None], y, classes=3)
    drawn = np.asarray(draw(jax.random.key(0), 200))[..., 0].astype(int)
    assert drawn.shape == (3, 200)
    for c in range(3):
        assert set(drawn[c]) == set(np.flatnonzero(np.asarray(y) == c))


def test_cross_entropy_knows_the_class_of_each_row():
    params = [{"kernel": 5 * jnp.eye(3), "bias": jnp.zeros(3)}]
    examples = jnp.broadcast_to(jnp.eye(3)[:, None], (3, 2, 3))
    expected = np.log(1 + 2 * np.exp(-5))
    np.testing.assert_allclose(condensed.cross_entropy_by_class(params, examples), expected, rtol=1e-4)
    assert float(condensed.cross_entropy_by_class(params, examples[::-1])) > 1


def test_new_networks_learn_what_the_examples_show():
    examples = jnp.array([[[3.0, 0.0]], [[0.0, 3.0]]])
    test = examples[:, 0], jnp.array([0, 1])
    right, wrong = condensed.accuracies_of_new_networks(
        jax.random.key(0), examples, [test, (test[0], 1 - test[1])], widths=(2, 8, 2)
    )
    assert (float(right), float(wrong)) == (1, 0)
