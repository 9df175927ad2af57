"""Lipschitz bounds on edges and everywhere: a constrained problem with a known answer, and NumPy's singular values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from jaxreg.penalties import (
    dual_ascent,
    dual_init,
    neighbor_edges,
    pairwise_lipschitz_violation,
    project_spectral,
    spectral_norm_bound,
)

RNG = np.random.default_rng(0)
NORM = jax.jit(spectral_norm_bound)


class TestNeighborEdges:
    def test_are_those_of_a_search_tree(self):
        x = RNG.normal(size=(12, 3)).astype(np.float32)
        _, nearest = cKDTree(x).query(x, k=4)
        expected = {(i, j) for i, row in enumerate(nearest) for j in row[1:]}
        edges = neighbor_edges(x, neighbors=3)
        assert edges.shape == (36, 2)
        assert set(map(tuple, np.asarray(edges))) == expected

    def test_of_equal_points_are_not_with_themselves(self):
        edges = np.asarray(neighbor_edges(np.zeros((3, 2), np.float32), neighbors=2))
        assert {tuple(edge) for edge in edges} == {(i, j) for i in range(3) for j in range(3) if i != j}

    @pytest.mark.parametrize("neighbors", [0, 3])
    def test_there_must_be_so_many(self, neighbors):
        with pytest.raises(ValueError, match=f"neighbors must be from 1 to 2 for 3 points, got {neighbors}"):
            neighbor_edges(np.zeros((3, 2), np.float32), neighbors=neighbors)


class TestViolation:
    def test_by_hand(self):
        inputs = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], np.float32)
        outputs = np.array([[0.0], [6.0], [1.0]], np.float32)
        edges = np.array([[0, 1], [1, 0], [0, 2], [1, 1]])
        violation = pairwise_lipschitz_violation(outputs, inputs, edges, bound=2.0)
        np.testing.assert_allclose(violation, [36 - 100, 36 - 100, 1.0, 0.0])

    @pytest.mark.parametrize(("bound", "slope", "active"), [(1.0, 1.0, True), (3.0, 2.0, False)])
    def test_primal_dual_descent_finds_the_constrained_slope(self, bound, slope, active):
        """A line k x fitted to 2 x: k = min(alpha, 2), and by stationarity sum(lambda d^2) = mean(x^2) (2 - k) / k."""
        x = jnp.asarray(RNG.uniform(-1, 1, (10, 1)), jnp.float32)
        edges = neighbor_edges(x, neighbors=2)

        def step(_, state):
            k, multipliers = state

            def lagrangian(k):
                violation = pairwise_lipschitz_violation(k * x, x, edges, bound=bound)
                return jnp.mean(jnp.square(k * x - 2 * x)) + multipliers @ violation, violation

            gradient, violation = jax.grad(lagrangian, has_aux=True)(k)
            return k - 0.1 * gradient, dual_ascent(multipliers, violation, learning_rate=1.0)

        k, multipliers = jax.lax.fori_loop(0, 4000, step, (jnp.zeros([]), dual_init(len(edges))))
        np.testing.assert_allclose(k, slope, rtol=1e-3)
        distances = np.square(x[edges[:, 0]] - x[edges[:, 1]])[:, 0]
        np.testing.assert_allclose(multipliers @ distances, np.mean(np.square(x)) * (2 - slope) / slope, rtol=5e-3)
        assert bool((multipliers > 0).any()) is active


def test_multipliers_rise_with_violations_and_are_never_negative():
    raised = dual_ascent(jnp.array([0.0, 1.0, 1.0]), jnp.array([-1.0, 2.0, -3.0]), learning_rate=0.5)
    np.testing.assert_allclose(raised, [0.0, 2.0, 0.0])
    gradient = jax.grad(lambda v: dual_ascent(dual_init(2), v, learning_rate=0.5).sum())(jnp.ones(2))
    np.testing.assert_array_equal(gradient, 0.0)
    with pytest.raises(ValueError, match=r"learning_rate must be in \(0, inf\), got 0"):
        dual_ascent(dual_init(1), jnp.ones(1), learning_rate=0)


class TestSpectralNormBound:
    @pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
    def test_is_barely_above_the_largest_singular_value(self, scale):
        for matrix in (RNG.normal(size=(20, 7)), np.eye(7, 20), np.outer(np.arange(20.0), np.ones(7))):
            matrix = (scale * matrix).astype(np.float32).reshape(20, 7)
            exact = np.linalg.norm(matrix.astype(np.float64), 2)
            bound = float(NORM(matrix))
            assert exact <= bound <= exact * 7 ** (2.0**-9) * (1 + 1e-4)

    def test_of_zero_is_zero_with_a_finite_gradient(self):
        value, gradient = jax.jit(jax.value_and_grad(spectral_norm_bound))(jnp.zeros([20, 7]))
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradient, 0.0)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (16, 16):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(2)(x)


class TestProjectSpectral:
    x = jnp.asarray(RNG.normal(size=(50, 3)), jnp.float32)
    params = jax.tree.map(lambda leaf: 3 * leaf + 0.1, Network().init(jax.random.key(0), jnp.ones([1, 3])))

    def test_no_slope_exceeds_the_bound(self):
        project = jax.jit(project_spectral)
        slope = jax.jit(jax.vmap(jax.jacobian(Network().apply, argnums=1), in_axes=(None, 0)))
        assert np.linalg.norm(slope(self.params, self.x), 2, axis=(1, 2)).max() > 1.5
        projected = project(self.params, bound=1.5)
        assert np.linalg.norm(slope(projected, self.x), 2, axis=(1, 2)).max() <= 1.5
        kernels = [layer["kernel"] for layer in projected["params"].values()]
        product = np.prod([np.linalg.norm(kernel, 2) for kernel in kernels])
        assert 0.97 * 1.5 < product <= 1.5

    def test_leaves_what_is_below_the_bound_and_biases(self):
        untouched = project_spectral(self.params, bound=1e6)
        jax.tree.map(np.testing.assert_array_equal, untouched, self.params)
        scaled = project_spectral(self.params, bound=0.1)
        for name, layer in scaled["params"].items():
            np.testing.assert_array_equal(layer["bias"], self.params["params"][name]["bias"])

    def test_rounding_does_not_exceed_the_bound(self):
        """Nearest to 0.3 in bfloat16 is 0.30078; a matrix of rank one has its norm in few entries' direction."""
        factors = np.sign(RNG.normal(size=(40, 2, 64)))
        kernels = np.einsum("ni,nj->nij", *np.moveaxis(factors, 1, 0)).astype(jnp.bfloat16)
        project = jax.jit(jax.vmap(lambda kernel: project_spectral({"kernel": kernel}, bound=0.3)["kernel"]))
        for given in (jnp.ones([1, 1, 1], jnp.bfloat16), kernels):
            once = project(given)
            norms = np.linalg.norm(np.asarray(once, np.float64), 2, axis=(1, 2))
            assert once.dtype == jnp.bfloat16
            assert (norms <= 0.3).all()
            assert (norms >= 0.28).all()
            np.testing.assert_array_equal(project(once), once)

    def test_there_must_be_layers(self):
        with pytest.raises(ValueError, match="params must have matrices named 'kernel'"):
            project_spectral({"bias": jnp.ones(3)}, bound=1.0)
