"""Ensembles of weights and of outputs: where they agree, and who decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.weights import output_ensemble, wise_ft

RNG = np.random.default_rng(0)


def linear_model(dtype=np.float32):
    return {"w": RNG.normal(size=(5, 4)).astype(dtype), "b": RNG.normal(size=4).astype(dtype)}


def test_the_ends_are_the_two_models():
    pretrained, finetuned = linear_model(), linear_model()
    jax.tree.map(np.testing.assert_array_equal, wise_ft(pretrained, finetuned, alpha=0.0), pretrained)
    jax.tree.map(np.testing.assert_array_equal, wise_ft(pretrained, finetuned, alpha=1.0), finetuned)


@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_linear_models_make_the_same_ensemble_of_weights_and_of_outputs(alpha):
    pretrained, finetuned, x = linear_model(), linear_model(), RNG.normal(size=(30, 5)).astype(np.float32)
    averaged = wise_ft(pretrained, finetuned, alpha=alpha)
    logits = [x @ model["w"] + model["b"] for model in (pretrained, finetuned, averaged)]
    np.testing.assert_allclose(output_ensemble(*logits[:2], alpha=alpha), logits[2], rtol=1e-5, atol=1e-5)


def test_the_surer_model_decides():
    # Logits 0 to 9 in any order: a hundred times the least gap is more than the largest.
    a, b = RNG.permuted(np.tile(np.arange(10, dtype=np.float32), (2, 50, 1)), axis=-1)
    np.testing.assert_array_equal(output_ensemble(a, 100 * b).argmax(-1), b.argmax(-1))
    np.testing.assert_array_equal(output_ensemble(100 * a, b).argmax(-1), a.argmax(-1))
    assert (output_ensemble(a, b).argmax(-1) != b.argmax(-1)).any()


def test_dtypes_and_counters_are_those_of_the_finetuned():
    pretrained = linear_model() | {"count": np.array(3)}
    finetuned = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), linear_model()) | {"count": jnp.array(7)}
    averaged = wise_ft(pretrained, finetuned)
    assert jax.tree.map(jnp.result_type, averaged) == jax.tree.map(jnp.result_type, finetuned)
    assert averaged["count"] == 7


def test_models_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"^finetuned\['w'\] must have shape \[3, 1\], got \[3\]"):
        wise_ft({"w": np.ones([3, 1], np.float32)}, {"w": np.ones(3, np.float32)})


@pytest.mark.parametrize("ensemble", [wise_ft, output_ensemble])
def test_shares_outside_the_unit_interval_are_refused(ensemble):
    with pytest.raises(ValueError, match=r"^alpha must be in \[0, 1\], got 1.5$"):
        ensemble(np.ones([2, 3], np.float32), np.ones([2, 3], np.float32), alpha=1.5)
