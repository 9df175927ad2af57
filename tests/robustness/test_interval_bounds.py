"""Interval bounds against enumerated corners, grids of inputs and random points of random networks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreg.robustness import interval_bounds, network_bounds

KEY = jax.random.key(0)


class ConvolutionalNetwork(nn.Module):
    """Convolutions, normalization with running statistics, a residual sum, both kinds of pooling."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(3, (2, 2))(x)))
        x = nn.max_pool(x, (2, 2))
        x = x + nn.softplus(nn.Conv(3, (2, 2), feature_group_count=3, strides=1)(x))
        x = nn.avg_pool(x, (2, 1))
        return nn.Dense(2)(nn.leaky_relu(nn.Dense(3)(x.reshape(x.shape[0], -1))))


class Transformer(nn.Module):
    """Attention: products of intervals, quotients, a normalization that depends on the input."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], 4, 4)
        h = nn.LayerNorm()(x)
        attended = nn.softmax(nn.Dense(3)(h) @ nn.Dense(3)(h).mT) @ nn.Dense(4)(h)
        h = nn.Dense(4)(nn.gelu(jax.checkpoint(nn.silu)(x + attended)))
        return jax.nn.logsumexp(h[:, 1:], axis=-1)


class TestNetworks:
    @pytest.mark.parametrize("model", [ConvolutionalNetwork(), Transformer()], ids=lambda model: type(model).__name__)
    def test_no_point_of_the_box_leaves_the_bounds(self, model):
        """Random weights, running statistics, scales and biases of either sign."""
        shapes = jax.eval_shape(model.init, KEY, np.zeros([1, 4, 4, 1], np.float32))
        around = jax.jit(lambda variables, *box: interval_bounds(lambda x: model.apply(variables, x), *box))
        apply = jax.jit(model.apply)

        def measure(seed, radius):
            rng = np.random.default_rng(seed)
            variables = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
            if "batch_stats" in variables:
                variables["batch_stats"] = jax.tree.map(lambda x: np.abs(x) + np.float32(0.1), variables["batch_stats"])
            centre = rng.normal(size=(1, 4, 4, 1)).astype(np.float32)
            offsets = rng.uniform(-1, 1, (60, 4, 4, 1)).astype(np.float32)
            points = centre + np.float32(radius) * np.concatenate([0 * centre, offsets, np.sign(offsets)])
            bounds = around(variables, centre - np.float32(radius), centre + np.float32(radius))
            return *bounds, np.asarray(apply(variables, points))

        @settings(max_examples=20, deadline=None)
        @given(seed=st.integers(0, 10_000), radius=st.sampled_from([1e-4, 1e-3, 0.01, 0.1, 1.0]))
        def check(seed, radius):
            lower, upper, outputs = measure(seed, radius)
            tolerance = 1e-5 * (1 + np.abs(outputs).max())
            assert (outputs >= lower - tolerance).all()
            assert (outputs <= upper + tolerance).all()

        check()
        lower, upper, outputs = measure(3, 0.0)
        np.testing.assert_allclose(lower, outputs[:1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(upper, outputs[:1], rtol=1e-4, atol=1e-4)
        # They are of use, too: the smaller the box, the nearer they are.
        wide, narrow = (np.subtract(*measure(3, radius)[1::-1]) for radius in (1e-3, 1e-4))
        np.testing.assert_allclose(narrow, wide / 10, rtol=0.1)

    def test_one_affine_layer_is_exact(self):
        rng = np.random.default_rng(0)
        weights, bias = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
        lower, upper = np.sort(rng.normal(size=(2, 5, 4)), axis=0).astype(np.float32)
        corners = np.stack(np.meshgrid(*[[0, 1]] * 4), -1).reshape(-1, 1, 4)
        outputs = np.where(corners, upper, lower) @ weights + bias
        bounds = interval_bounds(lambda x: x @ weights + bias, lower, upper)
        np.testing.assert_allclose(bounds.lower, outputs.min(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(bounds.upper, outputs.max(0), rtol=1e-4, atol=1e-5)

    def test_gradients_and_vmap(self):
        """The width of an affine layer's bounds is 2 |W| r: its gradients are 2 sign(W) r and 2 |W|."""
        weights = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)

        def width(weights, radius):
            bounds = interval_bounds(lambda x: x @ weights, -radius, radius)
            return jnp.sum(bounds.upper - bounds.lower)

        radii = np.array([[0.1, 0.2], [0.3, 0.0]], np.float32)
        gradients = jax.jit(jax.vmap(jax.grad(width, argnums=(0, 1)), in_axes=(None, 0)))(weights, radii)
        np.testing.assert_allclose(gradients[0], 2 * np.sign(weights) * radii[:, :, None], atol=1e-6)
        np.testing.assert_allclose(gradients[1], np.tile(2 * np.abs(weights).sum(1), (2, 1)), rtol=1e-6)


# Over these intervals a grid of inputs holds every extremum.
LOWER = np.array([0.5, -2.0, -1.5, -0.5], np.float32)
UPPER = np.array([2.0, -0.5, 0.5, 1.0], np.float32)
EXACT = {
    "negative": lambda x: 1.0 - x,
    "cube": lambda x: x**3,
    "fourth power": lambda x: x**4,
    "square": jnp.square,
    "product with itself": lambda x: x * x,
    "absolute": jnp.abs,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "exp": jnp.exp,
    "clip": lambda x: jnp.clip(x, -1.0, 0.7),
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "leaky relu": lambda x: jax.nn.leaky_relu(x, 0.3),
    "leaky relu that falls": lambda x: jax.nn.leaky_relu(x, -1.0),
    "leaky relu with a slope each": lambda x: jax.nn.leaky_relu(x, jnp.array([2.0, -1.0, -0.5, 0.5])),
    "elu that falls": lambda x: jax.nn.elu(x, -3.0),
    "celu that is negative": lambda x: jax.nn.celu(x, -2.0),
    "whether it is zero": lambda x: x.astype(bool).astype(jnp.float32),
    "log sigmoid": jax.nn.log_sigmoid,
    "soft sign": jax.nn.soft_sign,
    "division by a negative": lambda x: x / -2.0,
    "root of what is never negative": lambda x: jnp.sqrt(jnp.abs(x)),
    "quotient": lambda x: 2.0 / (3.0 + x),
    "negative power": lambda x: (3.0 + x) ** -2,
    "inverse root": lambda x: jax.lax.rsqrt(3.0 - x),
    "complementary error function": jax.lax.erfc,
    "step": lambda x: jnp.where(x > 0.0, 5.0, -1.0),
    "chosen by a constant": lambda x: jnp.where(LOWER > 0, x, -x),
    "sum": lambda x: jnp.sum(x[1:]),
    "running sum": lambda x: jnp.cumsum(x),
    "turned": lambda x: x[::-1],
    "largest": lambda x: jnp.max(x[:3]),
    "padded": lambda x: jnp.pad(x, 1, constant_values=2.0),
    "picked": lambda x: x[np.array([2, 0])],
    "written over": lambda x: x.at[1].set(-x[0]),
    "two parts": lambda x: jnp.split(x, 2)[1],
}
LOOSE = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "difference from itself": lambda x: x - x,
    "softmax": jax.nn.softmax,
    "leaky relu of a slope that varies": lambda x: jax.nn.leaky_relu(x[:2], x[2:]),
    "kink": lambda x: jnp.where(x > 0.0, x, 3 * x),
    "quotient by what may be zero": lambda x: x / (x + 0.1),
    "log of what may be negative": lambda x: jnp.log(jnp.maximum(x, 0.0) + 1.0) * x,
    "log of a difference": lambda x: jnp.log(jnp.square(x) + 1.0 - 0.5 * jnp.square(x)),
}


@functools.cache
def results():
    """Bounds of all functions, and their values on a grid; where an interval contains zero, the grid does too."""
    functions = {**EXACT, **LOOSE}

    def every(x):
        return {name: f(x) for name, f in functions.items()}

    steps = np.linspace(LOWER, UPPER, 7).T
    steps[:, 3] = np.where((LOWER < 0) & (UPPER > 0), 0.0, steps[:, 3])
    grid = np.stack(np.meshgrid(*steps), -1).reshape(-1, 4).astype(np.float32)
    bounds = jax.jit(lambda lower, upper: interval_bounds(every, lower, upper))(LOWER, UPPER)
    return bounds, jax.jit(jax.vmap(every))(grid)


class TestOperations:
    def test_bounds_are_sound(self):
        bounds, outputs = results()
        for name, values in outputs.items():
            assert (values >= bounds.lower[name] - 1e-5).all(), name
            assert (values <= bounds.upper[name] + 1e-5).all(), name

    def test_bounds_of_single_operations_are_tight(self):
        bounds, outputs = results()
        for name in EXACT:
            values = np.asarray(outputs[name])
            np.testing.assert_allclose(bounds.lower[name], values.min(0), rtol=1e-5, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(bounds.upper[name], values.max(0), rtol=1e-5, atol=1e-5, err_msg=name)

    def test_quotients_by_zero_are_unbounded(self):
        bounds, _ = results()
        np.testing.assert_array_equal(bounds.lower["quotient by what may be zero"][2:], [-np.inf] * 2)
        np.testing.assert_array_equal(bounds.upper["quotient by what may be zero"][2:], [np.inf] * 2)


class TestActivations:
    def test_what_goes_into_activations_in_order(self):
        def network(x):
            first = jax.nn.relu(x - 1.0)
            second = jax.checkpoint(jax.nn.softplus)(2.0 * first)
            return jnp.tanh(second + 1.0), jax.nn.sigmoid(-second)

        result = network_bounds(network, np.array([0.0, 1.5]), np.array([2.0, 2.5]))
        softplus = np.log1p(np.exp([[0.0, 2.0], [1.0, 3.0]]))  # of [0, 2] and [1, 3]
        expected = [
            ([-1.0, 0.5], [1.0, 1.5]),
            ([0.0, 1.0], [2.0, 3.0]),
            (softplus[:, 0] + 1, softplus[:, 1] + 1),
            (-softplus[:, 1], -softplus[:, 0]),
        ]
        assert len(result.preactivations) == 4
        for found, (lower, upper) in zip(result.preactivations, expected, strict=True):
            np.testing.assert_allclose(found.lower, lower, rtol=1e-6)
            np.testing.assert_allclose(found.upper, upper, rtol=1e-6)
        np.testing.assert_allclose(result.lower[0], np.tanh(softplus[:, 0] + 1), rtol=1e-6)

    def test_functions_of_ones_own_may_be_declared_monotone(self):
        @jax.jit
        def smooth_step(x):
            return x / jnp.sqrt(1 + x * x)

        ends = np.array([-1.0]), np.array([2.0])
        loose, tight = (network_bounds(smooth_step, *ends, monotone=names) for names in ((), ("smooth_step",)))
        assert len(loose.preactivations) == 0
        assert len(tight.preactivations) == 1
        np.testing.assert_allclose([tight.lower[0], tight.upper[0]], [-1 / np.sqrt(2), 2 / np.sqrt(5)], rtol=1e-6)
        assert loose.lower < tight.lower

    def test_gradient_of_an_activation_is_its_own(self):
        """jax.nn.relu has gradient 0 at 0, where a maximum with 0 has 1/2."""
        gradient = jax.grad(lambda x: interval_bounds(jax.nn.relu, x, x + 1.0).lower)
        assert float(gradient(0.0)) == 0.0


class TestRefusals:
    def test_operations_without_a_rule_are_named(self):
        with pytest.raises(NotImplementedError, match=r"no rule for 'sin' of intervals, only for .*dot_general"):
            interval_bounds(jnp.sin, 0.0, 1.0)
        with pytest.raises(NotImplementedError, match="no rule for 'gather'"):
            interval_bounds(lambda x: jnp.arange(3.0)[x.astype(int)], np.zeros(1), np.ones(1))

    def test_ends_of_different_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"lower and upper must have the same shapes, got \(2,\) and \(3,\)"):
            interval_bounds(jnp.exp, np.zeros(2), np.ones(3))

    def test_constants_may_go_through_anything(self):
        bounds = interval_bounds(lambda x: x + jnp.sin(jnp.sort(jnp.array([2.0, 1.0])))[0], 0.0, 1.0)
        np.testing.assert_allclose(bounds, [np.sin(1.0), 1 + np.sin(1.0)], rtol=1e-6)
