"""FRUGAL against optax.adam and signSGD at its limits, NumPy's SVD, and counts of what has state and what moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreg.optim import frugal, galore_projector, gradient_splitting

LAYERS = {f"layer{i}": {"kernel": jnp.zeros([6, 4]), "bias": jnp.zeros([4])} for i in range(8)}
MIXED = {"wide": jnp.zeros([3, 10]), "tall": jnp.zeros([8, 5]), "stack": jnp.zeros([2, 4, 6]), "bias": jnp.zeros([5])}


def normal_like(tree, seed):
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(tree))))
    return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), tree)


def directions(transformation, gradients):
    state = transformation.init(gradients[0])
    update = jax.jit(transformation.update)
    for gradient in gradients:
        direction, state = update(gradient, state)
        yield direction


def assert_close(actual, wanted, **tolerances):
    jax.tree.map(lambda a, w: np.testing.assert_allclose(a, w, **tolerances), actual, wanted)


def state_bytes(optimizer, params):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer.init(params)))


@pytest.mark.parametrize("projection", ["block", "columns", "rows", "randk"])
def test_full_density_without_new_choices_is_adam(projection):
    gradients = [normal_like(MIXED, seed) for seed in range(4)]
    ours = directions(frugal(0.1, projection=projection, density=1, update_gap=jnp.inf), gradients)
    adam = directions(optax.adam(0.1), gradients)
    for actual, wanted in zip(ours, adam, strict=True):
        assert_close(actual, wanted, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("projection", ["block", "svd", "randk"])
def test_density_zero_is_sign_descent_of_the_matrices_and_has_no_state_for_them(projection):
    gradient = normal_like(MIXED, 0)
    optimizer = frugal(0.1, projection=projection, density=0, state_free_lr_scale=0.5)
    (ours,) = directions(optimizer, [gradient])
    for name in ("wide", "tall", "stack"):
        np.testing.assert_allclose(ours[name], -0.05 * np.sign(gradient[name]), rtol=1e-6)
    np.testing.assert_allclose(ours["bias"], -0.1 * np.sign(gradient["bias"]), rtol=1e-5)  # Adam's first step
    assert state_bytes(optimizer, MIXED) == 2 * 4 * 5 + 3 * 4  # moments of the bias, and counts


@pytest.mark.parametrize("projection", ["block", "svd", "random", "columns", "rows", "randk"])
def test_projection_and_rest_add_up_to_the_gradient(projection):
    """Where the direction is the identity, as is the state-free step, nothing of the gradient may be lost."""
    gradients = [normal_like(MIXED, seed) for seed in range(3)]
    splitting = gradient_splitting(optax.identity(), projection=projection, density=0.4, update_gap=1, state_free="sgd")
    for actual, wanted in zip(directions(splitting, gradients), gradients, strict=True):
        assert_close(actual, wanted, atol=2e-6)


@pytest.mark.parametrize("projection", ["svd", "random"])
def test_what_is_projected_has_low_rank_and_the_update_has_full_rank(projection):
    gradient = {"w": np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)}

    def rank(state_free):
        splitting = gradient_splitting(
            optax.scale_by_adam(), projection=projection, density=0.25, state_free=state_free
        )
        moments = [mu for _, mu in optax.tree.get_all_with_path(splitting.init(gradient), "mu")]
        assert {leaf.shape for leaf in jax.tree.leaves(moments)} == {(12, 2)}
        (direction,) = directions(splitting, [gradient])
        return np.linalg.matrix_rank(direction["w"], tol=1e-4)

    assert rank("none") == 2
    assert rank("sign") == 8


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (2, 5, 7)])
def test_galore_projector_spans_the_best_approximation(shape):
    gradient = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    basis = np.asarray(galore_projector(gradient, rank=3))
    u, s, v = np.linalg.svd(gradient.astype(np.float64), full_matrices=False)
    best = np.einsum("...mk,...k,...kn->...mn", u[..., :3], s[..., :3], v[..., :3, :])
    b_t = np.swapaxes(basis, -1, -2)
    np.testing.assert_allclose(b_t @ basis, np.broadcast_to(np.eye(3), (*shape[:-2], 3, 3)), atol=1e-5)
    projected = gradient @ basis @ b_t if shape[-2] >= shape[-1] else basis @ b_t @ gradient
    np.testing.assert_allclose(projected, best, atol=1e-5)


def test_galore_is_adam_on_the_coordinates_of_the_present_subspace():
    """A reference in NumPy: basis and moments anew every three steps, the rest of the gradient dropped."""
    gradients = [normal_like({"w": jnp.zeros([7, 4])}, seed) for seed in range(8)]
    optimizer = frugal(1.0, projection="svd", density=0.5, update_gap=3, state_free="none")
    for n, actual in enumerate(directions(optimizer, gradients)):
        g = np.asarray(gradients[n]["w"], np.float64)
        if n % 3 == 0:
            basis = np.linalg.svd(g, full_matrices=False)[2][:2].T
            m, v = np.zeros([7, 2]), np.zeros([7, 2])
        low = g @ basis
        m, v, age = 0.9 * m + 0.1 * low, 0.999 * v + 0.001 * low**2, n % 3 + 1
        step = m / (1 - 0.9**age) / (np.sqrt(v / (1 - 0.999**age)) + 1e-8)
        np.testing.assert_allclose(actual["w"], -step @ basis.T, atol=2e-4)


def test_statistics_may_outlive_the_subspace():
    gradients = [jnp.full([4, 4], 1.0), jnp.full([4, 4], 2.0), jnp.full([4, 4], -1.0)]
    settings = dict(projection="columns", density=1, update_gap=2, state_free="none")
    kept = list(directions(frugal(1.0, reset_statistics=False, **settings), gradients))
    reset = list(directions(frugal(1.0, **settings), gradients))
    np.testing.assert_allclose(reset[2], 1.0, rtol=1e-5)  # as on a first step
    # Moments of columns 0 to 3 meet the gradient of a permutation of them, all columns being alike.
    adam = list(directions(optax.adam(1.0), gradients))
    np.testing.assert_allclose(kept[2], adam[2], rtol=1e-5)


@pytest.mark.parametrize(
    ("projection", "moved"),
    [
        ("columns", {"wide": 3 * 4, "tall": 8 * 2, "stack": 2 * 4 * 2}),
        ("rows", {"wide": 1 * 10, "tall": 3 * 5, "stack": 2 * 1 * 6}),
        ("randk", {"wide": 12, "tall": 16, "stack": 19}),
    ],
)
def test_exactly_the_chosen_part_goes_through_the_direction(projection, moved):
    splitting = gradient_splitting(
        optax.identity(), projection=projection, density=0.4, update_gap=1, state_free="none"
    )
    seen = []
    for direction in directions(splitting, [jax.tree.map(jnp.ones_like, MIXED)] * 3):
        assert {name: int((direction[name] != 0).sum()) for name in moved} == moved
        seen.append(np.asarray(direction["tall"]))
    assert not (np.array_equal(seen[0], seen[1]) and np.array_equal(seen[1], seen[2]))


class TestBlocks:
    def active(self, params, *, steps=8, **settings):
        """Names of the matrices that go through the direction, step by step."""
        splitting = gradient_splitting(optax.identity(), state_free="none", update_gap=2, **settings)
        for direction in directions(splitting, [jax.tree.map(jnp.ones_like, params)] * steps):
            matrices = {name: part["kernel"] if isinstance(part, dict) else part for name, part in direction.items()}
            shares = {name: float(jnp.mean(matrix)) for name, matrix in matrices.items() if matrix.ndim >= 2}
            assert set(shares.values()) <= {0.0, 1.0}
            yield {name for name, share in shares.items() if share}

    def test_a_quarter_of_the_tensors_is_active_until_the_next_choice(self):
        active = list(self.active(LAYERS, steps=40))
        assert {len(names) for names in active} == {2}
        assert all(first == second for first, second in zip(active[::2], active[1::2], strict=True))
        assert len(set(map(frozenset, active))) > 5
        assert set.union(*active) == set(LAYERS)

    def test_every_tensor_is_active_equally_often(self):
        counts = dict.fromkeys(LAYERS, 0)

        def once(seed):
            splitting = gradient_splitting(optax.identity(), state_free="none", seed=seed)
            gradient = jax.tree.map(jnp.ones_like, LAYERS)
            direction, _ = splitting.update(gradient, splitting.init(gradient))
            return {name: direction[name]["kernel"][0, 0] for name in LAYERS}

        counts = jax.jit(jax.vmap(once))(jnp.arange(2000))
        for name in LAYERS:
            np.testing.assert_allclose(counts[name].mean(), 0.25, atol=4.5 * np.sqrt(0.25 * 0.75 / 2000))

    def test_orders_by_hand(self):
        """Two lanes of four: layers 0 to 3 and 4 to 7."""
        orders = {
            "ascending": [(0, 4), (1, 5), (2, 6), (3, 7)],
            "descending": [(3, 7), (2, 6), (1, 5), (0, 4)],
            "mirror": [(0, 7), (1, 6), (2, 5), (3, 4)],
        }
        for order, pairs in orders.items():
            active = list(self.active(LAYERS, block_order=order))[::2]
            assert active == [{f"layer{i}" for i in pair} for pair in pairs], order

    def test_tensors_of_unequal_shapes_share_a_lane(self):
        active = list(self.active(MIXED, steps=20, density=0.4))
        assert {len(names) for names in active} == {1}
        assert set.union(*active) == {"wide", "tall", "stack"}
        optimizer = frugal(0.1, density=0.4)
        assert state_bytes(optimizer, MIXED) == 2 * 4 * (48 + 5) + 4 * 4  # the largest of the lane, and the bias

    def test_state_is_a_quarter_of_adams(self):
        params = {f"w{i}": jnp.zeros([20, 30]) for i in range(8)}
        assert state_bytes(frugal(0.1), params) == 2 * 2 * 4 * 600 + 2 * 4 + 3 * 4  # moments, lanes, counts

    def test_the_active_tensor_takes_adams_first_step_after_every_choice(self):
        gradients = [jax.tree.map(lambda p, s=s: jnp.full(p.shape, 1.0 + s), LAYERS) for s in range(6)]
        optimizer = frugal(1.0, update_gap=2, state_free="none")
        for step, updates in enumerate(directions(optimizer, gradients)):
            sizes = {float(jnp.max(jnp.abs(updates[name]["kernel"]))) for name in LAYERS}
            if step % 2 == 0:
                np.testing.assert_allclose(sorted(sizes), [0.0, 1.0], rtol=1e-5)

    def test_inactive_tensors_follow_the_sign(self):
        gradient = normal_like(LAYERS, 3)
        splitting = gradient_splitting(optax.scale(7.0), state_free_lr_scale=0.1)
        (direction,) = directions(splitting, [gradient])
        sevens = 0
        for name in LAYERS:
            g, u = gradient[name]["kernel"], direction[name]["kernel"]
            is_active = bool(jnp.allclose(u, 7 * g))
            sevens += is_active
            if not is_active:
                np.testing.assert_allclose(u, 0.1 * np.sign(g), rtol=1e-6)
        assert sevens == 2

    def test_what_is_not_active_does_not_leak(self):
        gradient = jax.tree.map(jnp.ones_like, LAYERS)
        gradient["layer2"]["kernel"] = jnp.full([6, 4], jnp.nan)
        splitting = gradient_splitting(optax.scale_by_adam(), block_order="ascending")
        (direction,) = directions(splitting, [gradient])
        assert [name for name in LAYERS if bool(jnp.isnan(direction[name]["kernel"]).any())] == ["layer2"]


def test_leaves_that_are_not_projectable_are_adams():
    gradients = [normal_like(MIXED, seed) for seed in range(3)]
    wanted = list(directions(optax.adam(0.1), gradients))
    for projectable in (dict.fromkeys(MIXED, False), lambda tree: jax.tree.map(lambda _: False, tree)):
        ours = directions(frugal(0.1, projectable=projectable), gradients)
        for actual, expected in zip(ours, wanted, strict=True):
            assert_close(actual, expected, rtol=1e-6)


def test_rounding_errors_of_the_projection_move_nothing():
    """A gradient of rank one lies in its first singular direction; what is left is rounding error."""
    gradient = jnp.outer(jnp.linspace(0.1, 1.0, 9), jnp.linspace(-1.0, 2.0, 6))
    splitting = gradient_splitting(optax.identity(), projection="svd", density=0.2)
    (direction,) = directions(splitting, [gradient])
    np.testing.assert_allclose(direction, gradient, atol=2e-6)


def test_frugal_descends_with_decoupled_weight_decay():
    params = jnp.array([[2.0, -3.0]])
    optimizer = frugal(0.1, density=0, weight_decay=0.01)
    updates, _ = optimizer.update(jnp.array([[0.5, 0.1]]), optimizer.init(params), params)
    np.testing.assert_allclose(updates, -0.1 * (1 + 0.01 * np.asarray(params)), rtol=1e-6)


def test_half_precision_parameters_keep_float32_moments():
    params = jnp.zeros([4, 4], jnp.bfloat16)
    optimizer = frugal(0.1, density=1)
    updates, state = optimizer.update(jnp.ones_like(params), optimizer.init(params))
    assert updates.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [
        ("density", 1.5, "[0, 1]"),
        ("update_gap", 0, "[1, inf]"),
        ("state_free_lr_scale", -1.0, "[0, inf)"),
        ("b1", 1.0, "[0, 1)"),
        ("b2", -0.1, "[0, 1)"),
        ("eps", -1e-8, "[0, inf)"),
        ("weight_decay", -0.1, "[0, inf)"),
    ],
)
def test_bad_hyperparameters_are_named(name, value, interval):
    with pytest.raises(ValueError, match="must be in") as error:
        frugal(1e-3, **{name: value})
    assert str(error.value) == f"{name} must be in {interval}, got {value}"


def test_projections_of_matrices_refuse_vectors():
    optimizer = frugal(1e-3, projection="svd", projectable=lambda tree: jax.tree.map(lambda _: True, tree))
    with pytest.raises(ValueError, match=r"projection 'svd' needs leaves with at least two axes, got shape \(3,\)"):
        optimizer.init(jnp.zeros(3))


def test_tensors_of_one_lane_may_be_sharded_differently():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    gradient = normal_like({"in": jnp.zeros([8, 8]), "out": jnp.zeros([8, 8])}, 0)
    shardings = {"in": NamedSharding(mesh, P("data", "model")), "out": NamedSharding(mesh, P("model", "data"))}
    optimizer = frugal(0.1, density=0.5, update_gap=1, block_order="ascending")
    wanted = list(directions(optimizer, [gradient] * 2))
    with jax.set_mesh(mesh):
        ours = list(directions(optimizer, [jax.device_put(gradient, shardings)] * 2))
    for actual, expected in zip(ours, wanted, strict=True):
        assert_close(actual, expected, rtol=1e-6)
        for name, sharding in shardings.items():
            assert actual[name].sharding.is_equivalent_to(sharding, 2)
