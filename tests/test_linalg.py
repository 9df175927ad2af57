import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.linalg import eigh, largest_entry, over_largest, root, svd, tree_inner, unit_vectors

MATRICES = jax.random.normal(jax.random.key(0), [3, 4, 4])
MATRICES = MATRICES + MATRICES.swapaxes(1, 2)


def test_eigh_alone_and_vmapped():
    for values, vectors, matrix in zip(*jax.jit(jax.vmap(eigh))(MATRICES), MATRICES, strict=True):
        np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-5)
    np.testing.assert_allclose(eigh(jnp.diag(jnp.array([2.0, -1.0])))[0], [-1.0, 2.0])


def test_eigh_is_differentiable():
    """Through the values, and through the first vector up to its sign."""

    def smooth(matrix, solve):
        values, vectors = solve(matrix)
        return jnp.sum(jnp.tanh(values)) + jnp.sum(jnp.square(vectors[:, 0]) * jnp.arange(4.0))

    ours = jax.jit(jax.vmap(jax.grad(lambda m: smooth(m, eigh))))(MATRICES)
    for gradient, matrix in zip(ours, MATRICES, strict=True):
        np.testing.assert_allclose(gradient, jax.grad(lambda m: smooth(m, jnp.linalg.eigh))(matrix), atol=1e-4)


def test_svd_alone_and_vmapped():
    wide = jax.random.normal(jax.random.key(1), [2, 3, 5])
    for left, values, right, matrix in zip(*jax.jit(jax.vmap(svd))(wide), wide, strict=True):
        np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-5)
        np.testing.assert_allclose(left * values @ right, matrix, atol=1e-5)
    np.testing.assert_allclose(svd(jnp.diag(jnp.array([2.0, 3.0])))[1], [3.0, 2.0])


@pytest.mark.parametrize(("solve", "name"), [(eigh, "eigh"), (svd, "svd")])
def test_a_solver_under_vmap_takes_one_matrix_at_a_time(solve, name):
    """A solver for a batch can wait for ever for the threads of the CPU."""
    ranks = _operand_ranks(jax.make_jaxpr(jax.vmap(jax.vmap(solve)))(MATRICES[None]).jaxpr, name)
    assert ranks == [2]


def test_products_of_trees_under_vmap_are_no_loop():
    jaxpr = jax.make_jaxpr(jax.vmap(tree_inner))({"w": MATRICES}, {"w": MATRICES}).jaxpr
    np.testing.assert_allclose(
        jax.vmap(tree_inner)({"w": MATRICES}, {"w": MATRICES}), np.sum(np.square(MATRICES), axis=(1, 2)), rtol=1e-6
    )
    assert _operand_ranks(jaxpr, "scan") == _operand_ranks(jaxpr, "while") == []


def _operand_ranks(jaxpr, name):
    """The rank of the first operand of every use of a primitive, those in inner programs included."""
    ranks = [equation.invars[0].aval.ndim for equation in jaxpr.eqns if equation.primitive.name == name]
    parameters = jax.tree.leaves([equation.params for equation in jaxpr.eqns])
    inner = [getattr(parameter, "jaxpr", parameter) for parameter in parameters if hasattr(parameter, "eqns")]
    return ranks + [rank for program in inner for rank in _operand_ranks(program, name)]


def test_unit_vectors_of_any_length():
    directions = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    expected = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    for scale in (1e-30, 1.0, 1e30):
        np.testing.assert_allclose(unit_vectors(scale * directions), expected, rtol=1e-5)
    value, gradient = jax.value_and_grad(lambda x: unit_vectors(x).sum())(jnp.zeros(3))
    assert float(value) == 0.0
    assert np.isfinite(gradient).all()
    assert unit_vectors(jnp.zeros([2, 0])).shape == (2, 0)


def test_roots_are_flat_at_zero():
    x = jnp.array([4.0, 0.0, -1e-9, jnp.nan])
    np.testing.assert_array_equal(root(x), [2.0, 0.0, 0.0, np.nan])
    np.testing.assert_array_equal(jax.vmap(jax.grad(root))(x), [0.25, 0.0, 0.0, np.nan])


def test_trees_are_vectors():
    a = {"w": jnp.array([[1.0, -2.0], [0.0, 4.0]]), "b": jnp.array(3.0)}
    b = {"w": jnp.array([[2.0, 1.0], [5.0, -1.0]]), "b": jnp.array(-2.0)}
    assert float(tree_inner(a, b)) == 2 - 2 - 4 - 6
    assert float(largest_entry(a)) == 4
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(4 * x, y), over_largest(a), a)


def test_products_have_the_precision_of_the_trees_but_at_least_float32():
    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
            product = tree_inner({"w": jnp.ones(3, dtype)}, {"w": jnp.ones(3, dtype)})
            assert product.dtype == jnp.promote_types(dtype, jnp.float32)


def test_trees_without_entries_or_of_zeros_have_no_largest():
    assert float(tree_inner({}, {})) == float(largest_entry({})) == 0
    assert over_largest({}) == {}
    zeros = {"w": jnp.zeros([2])}
    jax.tree.map(np.testing.assert_array_equal, over_largest(zeros), zeros)
    assert over_largest({"w": jnp.array([1e-37, 0.0])})["w"][0] == 1
