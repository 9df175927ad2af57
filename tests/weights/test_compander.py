"""Weight companders against closed forms, NumPy and the trajectory of plain gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreg.weights import Compander, apply_compander, compand, compand_inverse, init_compander

families = pytest.mark.parametrize("family", ["arctan", "tanh"])


def test_compand_by_hand():
    np.testing.assert_allclose(
        compand(jnp.array([0.0, 3.0, -3.0]), a=2.0, b=3.0), [0, np.pi / 2, -np.pi / 2], rtol=1e-6
    )
    np.testing.assert_allclose(compand(jnp.array([3.0]), a=2.0, b=3.0, family="tanh"), 2 * np.tanh(1.0), rtol=1e-6)


@families
@settings(max_examples=30, deadline=None)
@given(share=st.floats(-0.99, 0.99), a=st.floats(0.01, 100), b=st.floats(0.01, 100))
def test_round_trip(family, share, a, b):
    w = np.float32([share * a * {"arctan": np.pi / 2, "tanh": 1.0}[family]])
    back = compand(compand_inverse(w, a=a, b=b, family=family), a=a, b=b, family=family)
    np.testing.assert_allclose(back, w, rtol=3e-6, atol=1e-6 * a)


@families
def test_the_bound_is_never_exceeded_and_the_order_kept(family):
    v = jnp.linspace(-1e6, 1e6, 2001)
    w = np.asarray(compand(v, a=0.5, b=0.2, family=family))
    assert np.abs(w).max() <= 0.5 * {"arctan": np.pi / 2, "tanh": 1.0}[family] * (1 + 1e-6)
    assert (np.diff(w) >= 0).all()
    np.testing.assert_array_equal(compand(-v, a=0.5, b=0.2, family=family), -w)


def test_large_constants_are_the_identity():
    v = jnp.linspace(-5.0, 5.0, 11)
    np.testing.assert_allclose(compand(v, a=1e3, b=1e3), v, rtol=1e-4)


def test_gradients_have_the_closed_form():
    v, a, b = jnp.array([-2.0, 0.0, 0.3, 7.0]), 0.8, 0.5
    gradient = jax.grad(lambda v: jnp.sum(compand(v, a=a, b=b)))(v)
    np.testing.assert_allclose(gradient, (a / b) / (1 + (np.asarray(v) / b) ** 2), rtol=1e-5)


def test_weights_outside_of_the_bound_are_clipped_inside():
    v = compand_inverse(jnp.array([10.0, -10.0]), a=1.0, b=1.0)
    assert jnp.isfinite(v).all()
    np.testing.assert_allclose(compand(v, a=1.0, b=1.0), 0.999 * np.array([np.pi / 2, -np.pi / 2]), rtol=1e-5)


def network(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "first": {"kernel": 0.3 * jax.random.normal(keys[0], [6, 5]), "bias": jnp.ones([5])},
        "second": {"kernel": jax.random.normal(keys[1], [5, 2]), "bias": jnp.zeros([2])},
    }


@families
def test_at_first_the_network_is_unchanged(family):
    params = network()
    v, hyper = init_compander(params, family=family)
    same = apply_compander(v, hyper, family=family)
    assert jax.tree.structure(same) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), same, params)


def test_hyperparameters_follow_each_tensors_scale():
    params = network()
    v, hyper = init_compander(params, bound=3.0, slope=2.0)
    for layer in ("first", "second"):
        a, b = (float(jnp.exp(log)) for log in hyper[layer]["kernel"])
        np.testing.assert_allclose(a * np.pi / 2, 3.0 * np.std(params[layer]["kernel"]), rtol=1e-5)
        np.testing.assert_allclose(a / b, 2.0, rtol=1e-5)
        assert hyper[layer]["bias"] is None
        np.testing.assert_array_equal(v[layer]["bias"], params[layer]["bias"])


def test_masks_choose_what_is_companded():
    params = {"table": jnp.ones([4, 4]) + jnp.eye(4), "kernel": jnp.eye(3)}
    for mask in ({"table": False, "kernel": True}, lambda p: {"table": False, "kernel": True}):
        v, hyper = init_compander(params, mask=mask)
        assert hyper["table"] is None
        assert isinstance(hyper["kernel"], Compander)
        assert v["table"] is params["table"]


def test_constant_and_empty_tensors_are_no_error():
    params = {"zeros": jnp.zeros([2, 2]), "empty": jnp.zeros([0, 3])}
    same = apply_compander(*init_compander(params))
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_with_slope_one_and_no_bound_it_is_plain_gradient_descent():
    params = network()
    x = jax.random.normal(jax.random.key(1), [20, 6])
    y = jax.random.normal(jax.random.key(2), [20, 2])

    def loss(params):
        hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
        return jnp.mean((hidden @ params["second"]["kernel"] + params["second"]["bias"] - y) ** 2)

    def descend(loss, params):
        def step(params, _):
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params)), None

        return jax.lax.scan(step, params, length=100)[0]

    v, hyper = init_compander(params, bound=1e3, slope=1.0)
    ours = apply_compander(descend(lambda v: loss(apply_compander(v, hyper)), v), hyper)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), ours, descend(loss, params))


def test_one_step_moves_weights_by_the_squared_slope():
    """To first order, dw = Psi'(v)^2 times the step of plain descent."""
    w, a, b, rate = jnp.array([0.0, 0.2, 0.9]), 0.6, 0.3, 1e-4
    v = compand_inverse(w, a=a, b=b)
    gradient_of_w = jnp.array([1.0, -2.0, 3.0])
    gradient_of_v = jax.vjp(lambda v: compand(v, a=a, b=b), v)[1](gradient_of_w)[0]
    moved = (np.asarray(compand(v - rate * gradient_of_v, a=a, b=b), np.float64) - np.asarray(w)) / rate
    slope = (a / b) / (1 + np.tan(np.asarray(w) / a) ** 2)
    np.testing.assert_allclose(moved, -(slope**2) * np.asarray(gradient_of_w), rtol=0.02, atol=2e-3)


def test_hyperparameters_get_gradients():
    v, hyper = init_compander(network())
    gradient = jax.grad(lambda hyper: jnp.sum(apply_compander(v, hyper)["first"]["kernel"] ** 2))(hyper)
    # w is proportional to a at fixed v: d/dlog_a of sum w^2 is twice the sum.
    wanted = 2 * jnp.sum(apply_compander(v, hyper)["first"]["kernel"] ** 2)
    np.testing.assert_allclose(gradient["first"]["kernel"].log_a, wanted, rtol=1e-5)
    assert gradient["first"]["kernel"].log_b < 0  # wider: smaller weights


def test_jit_vmap_and_half_precision():
    v = jnp.array([[0.1, 2.0], [-1.0, 0.0]], jnp.bfloat16)
    w = jax.jit(jax.vmap(lambda v, a: compand(v, a=a, b=0.5)))(v, jnp.array([1.0, 2.0]))
    assert w.dtype == jnp.bfloat16
    expected = np.array([[1.0], [2.0]]) * np.arctan(np.asarray(v, np.float32) / 0.5)
    np.testing.assert_allclose(np.asarray(w, np.float32), expected, rtol=8e-3)


@pytest.mark.parametrize("name", ["a", "b"])
def test_bad_constants_are_named(name):
    for function in (compand, compand_inverse):
        with pytest.raises(ValueError, match=rf"{name} must be in \(0, inf\), got 0.0"):
            function(jnp.ones(2), **{"a": 1.0, "b": 1.0, name: 0.0})


@pytest.mark.parametrize("name", ["bound", "slope"])
def test_bad_hyperparameters_are_named(name):
    with pytest.raises(ValueError, match=rf"{name} must be in \(0, inf\), got -1.0"):
        init_compander(network(), **{name: -1.0})
