import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.packed import Packed


def test_a_tree_comes_out_of_a_jitted_function_as_one_array_and_as_it_was():
    def report(x):
        return {"norms": {"head": x[0], "body": x}, "bad": jnp.int32(-1), "count": jnp.int32(2**24), "none": None}

    expected = {
        "norms": {"head": np.float32(0.5), "body": np.array([0.5, np.nan, np.inf], np.float32)},
        "bad": np.int32(-1),
        "count": np.int32(2**24),
        "none": None,
    }
    packed = jax.jit(lambda x: Packed.of(report(x)))(jnp.array(expected["norms"]["body"]))
    assert len(jax.tree.leaves(packed)) == 1
    unpacked = jax.device_get(packed).unpack()
    assert jax.tree.structure(unpacked) == jax.tree.structure(expected)
    for leaf, known in zip(jax.tree.leaves(unpacked), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == known.dtype
        assert leaf.shape == known.shape
        np.testing.assert_array_equal(leaf, known)
