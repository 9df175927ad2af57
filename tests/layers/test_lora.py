"""LoRA's layer against flax's dense layer and NumPy products."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

from jaxreg.layers import LoRADense, lora_mask

X = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)


def trained(layer, seed=1):
    """Parameters as after some training: B is not zero."""
    params = layer.init(jax.random.key(0), X, deterministic=True)["params"]
    return params | {"lora_b": jax.random.normal(jax.random.key(seed), params["lora_b"].shape)}


@pytest.mark.parametrize("use_bias", [True, False])
def test_at_first_it_is_the_frozen_dense_layer(use_bias):
    dense = nn.Dense(4, use_bias=use_bias, bias_init=nn.initializers.normal())
    frozen = dense.init(jax.random.key(3), X)["params"]
    layer = LoRADense(4, rank=2, use_bias=use_bias)
    params = layer.init(jax.random.key(0), X)["params"]
    assert set(params) - set(frozen) == {"lora_a", "lora_b"}
    ours = layer.apply({"params": params | frozen}, X)
    np.testing.assert_allclose(ours, dense.apply({"params": frozen}, X), rtol=1e-6)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (4.0, 2.0), (jnp.float32(1.0), 0.5)])
def test_outputs_are_those_of_the_corrected_kernel(alpha, scale):
    layer = LoRADense(3, rank=2, alpha=alpha)
    params = trained(layer)
    kernel, a, b = (np.asarray(params[name], np.float64) for name in ("kernel", "lora_a", "lora_b"))
    np.testing.assert_allclose(layer.apply({"params": params}, X), X @ (kernel + scale * a @ b), rtol=1e-5, atol=1e-6)


def test_only_the_lora_matrices_get_gradients():
    layer = LoRADense(3, rank=2)
    gradients = jax.grad(lambda params: jnp.sum(jnp.sin(layer.apply({"params": params}, X))))(trained(layer))
    moved = {name: bool(jnp.any(gradient != 0)) for name, gradient in gradients.items()}
    assert moved == {"kernel": False, "bias": False, "lora_a": True, "lora_b": True}


def test_a_starts_uniform_as_in_lora_and_b_zero():
    params = LoRADense(8, rank=200).init(jax.random.key(0), jnp.ones([1, 400]))["params"]
    limit = 1 / np.sqrt(400)
    assert 0.99 * limit < np.max(np.abs(params["lora_a"])) <= limit
    np.testing.assert_allclose(np.std(params["lora_a"]), limit / np.sqrt(3), rtol=0.01)
    assert not np.any(params["lora_b"])


def test_dropout_is_inverted_and_before_a_only():
    layer = LoRADense(1, rank=1, dropout=0.25, use_bias=False)
    x = jnp.ones([4000, 1])
    params = {"kernel": jnp.full([1, 1], 10.0), "lora_a": jnp.ones([1, 1]), "lora_b": jnp.ones([1, 1])}
    y = layer.apply({"params": params}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(np.unique(y), [10.0, 10 + 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(np.mean(y == 10.0), 0.25, atol=4.5 * np.sqrt(0.25 * 0.75 / 4000))
    np.testing.assert_allclose(layer.apply({"params": params}, x, deterministic=True), 11.0, rtol=1e-6)


def test_without_dropout_nobody_asks_for_a_key():
    layer = LoRADense(3, rank=2)
    params = trained(layer)
    np.testing.assert_array_equal(
        layer.apply({"params": params}, X), layer.apply({"params": params}, X, deterministic=False)
    )


def test_the_dropout_rate_may_be_traced():
    params = trained(LoRADense(3, rank=2))

    def outputs(rate):
        layer = LoRADense(3, rank=2, dropout=rate)
        return layer.apply({"params": params}, X, deterministic=False, rngs={"dropout": jax.random.key(0)})

    ours = jax.jit(jax.vmap(outputs))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(ours[0], LoRADense(3, rank=2).apply({"params": params}, X), rtol=1e-5, atol=1e-6)
    assert not np.allclose(ours[0], ours[1])


def test_half_precision_inputs_stay_half_precision():
    layer = LoRADense(3, rank=2, alpha=4.0, dropout=0.1)
    y = layer.apply({"params": trained(layer)}, jnp.asarray(X, jnp.bfloat16), deterministic=True)
    assert y.dtype == jnp.bfloat16


def test_the_mask_keeps_weight_decay_from_what_is_frozen():
    layer = LoRADense(3, rank=2)
    params = {"layer": trained(layer), "head": jnp.ones([3])}
    assert lora_mask(params) == {
        "layer": {"kernel": False, "bias": False, "lora_a": True, "lora_b": True}, "head": False}  # fmt: skip
    optimizer = optax.adamw(0.1, weight_decay=1.0, mask=lora_mask)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert not np.any(updates["layer"]["kernel"])
    np.testing.assert_allclose(updates["layer"]["lora_a"], -0.1 * params["layer"]["lora_a"], rtol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("dropout", 1.0), ("dropout", -0.1)])
def test_bad_hyperparameters_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be in"):
        LoRADense(3, **{"rank": 2, name: value}).init(jax.random.key(0), X, deterministic=True)


def test_inputs_of_the_wrong_kind_are_named():
    with pytest.raises(TypeCheckError, match="x"):
        LoRADense(3, rank=2).init(jax.random.key(0), jnp.ones([2, 2], jnp.int32))
