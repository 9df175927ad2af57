"""ALLoRA's factors by hand and against NumPy, on bare arrays and by the names of LoRA matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.optim import allora, scale_by_inverse_row_norm


def scaled(update, parameter, **settings):
    scaling = scale_by_inverse_row_norm(**settings)
    return scaling.update(update, scaling.init(parameter), parameter)[0]


@pytest.mark.parametrize("eta", [0.5, 2.0, 10.0])
def test_the_factor_on_zero_rows_is_eta(eta):
    np.testing.assert_allclose(scaled(jnp.ones([2, 3]), jnp.zeros([2, 3]), eta=eta), eta, rtol=1e-6)


def test_a_row_of_length_three_at_eta_one_is_halved():
    parameter = jnp.array([[3.0, 0.0], [0.0, -3.0], [1.8, 2.4]])
    np.testing.assert_allclose(scaled(jnp.ones([3, 2]), parameter, eta=1.0), 0.5, rtol=1e-6)


def test_a_small_eta_is_a_plain_rate():
    parameter = jax.random.normal(jax.random.key(0), [5, 4])
    np.testing.assert_allclose(scaled(jnp.ones([5, 4]), parameter, eta=1e-3), 1e-3, rtol=1e-5)


@pytest.mark.parametrize("axis", [-1, -2, 0])
def test_rows_lie_along_the_axis(axis):
    rng = np.random.default_rng(0)
    parameter, update = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    expected = update / np.sqrt(np.sqrt(np.sum(parameter**2, axis=axis, keepdims=True)) + 1 / 3.0**2)
    np.testing.assert_allclose(scaled(update, parameter, eta=3.0, norm_axis=axis), expected, rtol=1e-5)


def test_by_default_matrices_are_scaled_and_vectors_are_not():
    params = {"a": jnp.zeros([2, 2]), "bias": jnp.zeros([2]), "scale": jnp.zeros([])}
    ours = scaled(jax.tree.map(jnp.ones_like, params), params, eta=4.0)
    assert {name: float(jnp.max(leaf)) for name, leaf in ours.items()} == {"a": 4.0, "bias": 1.0, "scale": 1.0}


PARAMS = {
    "dense": {"kernel": jnp.ones([3, 4]), "lora_a": jnp.full([3, 2], 2.0), "lora_b": jnp.zeros([2, 4])},
    "other": jnp.ones([3, 3]),
}


def step(optimizer, gradients=None):
    gradients = jax.tree.map(jnp.ones_like, PARAMS) if gradients is None else gradients
    return optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)[0]


@pytest.mark.parametrize("placement", ["after", "before"])
def test_with_sgd_lora_matrices_by_hand(placement):
    updates = step(allora(optax.identity(), 0.1, eta=2.0, placement=placement))
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["other"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["dense"]["lora_b"], -0.2, rtol=1e-6)
    np.testing.assert_allclose(updates["dense"]["lora_a"], -0.1 / np.sqrt(np.sqrt(8) + 0.25), rtol=1e-6)


def test_norms_are_along_the_rank():
    """One coefficient for every input of A and for every output of B."""
    key_a, key_b = jax.random.split(jax.random.key(0))
    params = {"lora_a": jax.random.normal(key_a, [5, 2]), "lora_b": jax.random.normal(key_b, [2, 7])}
    optimizer = allora(optax.identity(), 1.0)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    a, b = np.asarray(params["lora_a"]), np.asarray(params["lora_b"])
    expected_a = -1 / np.sqrt(np.linalg.norm(a, axis=1, keepdims=True) + 0.25)
    expected_b = -1 / np.sqrt(np.linalg.norm(b, axis=0, keepdims=True) + 0.25)
    np.testing.assert_allclose(updates["lora_a"], np.broadcast_to(expected_a, a.shape), rtol=1e-5)
    np.testing.assert_allclose(updates["lora_b"], np.broadcast_to(expected_b, b.shape), rtol=1e-5)


def test_b_alone_can_be_scaled():
    updates = step(allora(optax.identity(), 0.1, eta=2.0, norm_axes={"lora_b": -2}))
    np.testing.assert_allclose(updates["dense"]["lora_a"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["dense"]["lora_b"], -0.2, rtol=1e-6)


def test_adam_undoes_what_is_scaled_before_it():
    """Adam's first step does not depend on the gradient's size, so only what is scaled after it is felt."""
    before = step(allora(optax.scale_by_adam(), 0.1, eta=3.0, placement="before"))
    after = step(allora(optax.scale_by_adam(), 0.1, eta=3.0))
    np.testing.assert_allclose(before["dense"]["lora_b"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(after["dense"]["lora_b"], -0.3, rtol=1e-5)


def test_weight_decay_is_not_scaled():
    updates = step(allora(optax.identity(), 0.1, weight_decay=0.5), jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(updates["dense"]["lora_a"], -0.1, rtol=1e-6)


def test_half_precision_lengths_are_those_of_float32():
    parameter = jnp.full([1, 4096], 0.01, jnp.bfloat16)
    update = scaled(jnp.ones_like(parameter), parameter, eta=100.0)
    assert update.dtype == jnp.bfloat16
    expected = 1 / np.sqrt(np.linalg.norm(np.asarray(parameter, np.float32)) + 1e-4)
    np.testing.assert_allclose(np.asarray(update, np.float32), expected, rtol=4e-3)


@pytest.mark.parametrize("eta", [0.0, -1.0, float("inf")])
def test_bad_eta_is_named(eta):
    for make in (scale_by_inverse_row_norm, lambda eta: allora(optax.identity(), 0.1, eta=eta)):
        with pytest.raises(ValueError, match=r"eta must be in \(0, inf\)"):
            make(eta=eta)


def test_params_are_needed():
    scaling = scale_by_inverse_row_norm()
    with pytest.raises(ValueError, match="needs the current parameters"):
        scaling.update(jnp.ones([2, 2]), scaling.init(jnp.ones([2, 2])))
