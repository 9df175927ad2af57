"""The dual head against matrix products, and who gets gradients from which head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.layers import DualHead

FEATURES = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
LINEAR = DualHead(num_classes=3, aux_hidden=None)
DEEP = DualHead(num_classes=3, aux_hidden=4)


@pytest.fixture(scope="module")
def linear():
    return LINEAR.init(jax.random.key(0), FEATURES, train=False)


@pytest.fixture(scope="module")
def deep():
    return DEEP.init(jax.random.key(0), FEATURES, train=False)


def test_linear_heads_are_two_matrix_products(linear):
    heads = LINEAR.apply(linear, FEATURES, train=True)
    for logits, name in zip(heads, ("main", "auxiliary"), strict=True):
        weights = linear["params"][name]
        np.testing.assert_allclose(logits, FEATURES @ np.asarray(weights["kernel"]) + weights["bias"], atol=1e-5)
    assert set(linear["params"]) == {"main", "auxiliary"}


def test_hidden_layer_normalizes_by_the_batch_without_dropout(deep):
    heads, _ = DualHead(3, 4, aux_dropout=0.0).apply(deep, FEATURES, train=True, mutable=["batch_stats"])
    hidden, out = deep["params"]["auxiliary_hidden"], deep["params"]["auxiliary"]
    h = FEATURES @ np.asarray(hidden["kernel"])
    h = np.maximum((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5), 0)
    np.testing.assert_allclose(heads.auxiliary, h @ np.asarray(out["kernel"]), atol=1e-4)


def test_an_offset_of_the_features_is_taken_out(deep):
    kernel = 1000 * np.eye(5, 4, dtype=np.float32)
    head, params = DualHead(3, 4, aux_dropout=0.0), deep["params"]
    params = params | {"auxiliary_hidden": {"kernel": kernel, "bias": np.full(4, 1e6, np.float32)}}
    heads, _ = head.apply({**deep, "params": params}, FEATURES, train=True, mutable=["batch_stats"])
    h = FEATURES[:, :4]
    h = np.maximum((h - h.mean(0)) / h.std(0), 0)
    np.testing.assert_allclose(heads.auxiliary, h @ np.asarray(params["auxiliary"]["kernel"]), atol=1e-3)


def test_dropout_disturbs_only_the_auxiliary_head_and_only_in_training(deep):
    def apply(key, train):
        return DEEP.apply(deep, FEATURES, train=train, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    one, other = apply(jax.random.key(1), True), apply(jax.random.key(2), True)
    np.testing.assert_array_equal(one.main, other.main)
    assert np.any(one.auxiliary != other.auxiliary)
    np.testing.assert_array_equal(apply(jax.random.key(1), False).auxiliary, apply(jax.random.key(2), False).auxiliary)


def test_each_loss_trains_its_own_head_and_the_features(linear):
    def gradients(head):
        def total(params, features):
            return jnp.sum(jnp.square(getattr(LINEAR.apply(params, features, train=True), head)))

        return jax.grad(total, argnums=(0, 1))(linear, jnp.asarray(FEATURES))

    for head, other in (("main", "auxiliary"), ("auxiliary", "main")):
        params, features = gradients(head)
        assert np.any(params["params"][head]["kernel"] != 0)
        np.testing.assert_array_equal(params["params"][other]["kernel"], np.zeros((5, 3)))
        assert np.any(features != 0)


@pytest.mark.parametrize(("name", "value"), [("num_classes", 0), ("aux_hidden", 0), ("aux_dropout", 1.0)])
def test_bad_attributes_are_named(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be in .*, got {value}"):
        DualHead(**{"num_classes": 3, name: value}).init(jax.random.key(0), FEATURES, train=False)
