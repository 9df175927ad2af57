"""Shared-seed training against quadratics whose projected gradients are known, and itself on eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxreg.distributed import (
    adapt_scale,
    apply_projected,
    bytes_sent,
    decode_byte,
    encode_byte,
    machine_key,
    perturbation,
    projected_gradient,
    shared_seed_init,
    shared_seed_round,
)

MACHINES, SAMPLES = 8, 3
BASE = jax.random.key(5)
PARAMS = {"w": np.array([[1.0, -2.0, 0.3], [0.5, 3.0, 0.1]], np.float32), "b": np.array([0.3, -0.7], np.float32)}


def quadratic(params, target):
    return 0.5 * sum(jnp.sum((1 + i) * (x - target) ** 2) for i, x in enumerate(jax.tree.leaves(params)))


def flat(tree):
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree)])


def targets(rounds, machines=MACHINES):
    return np.random.default_rng(0).normal(size=(rounds, machines, SAMPLES)).astype(np.float32)


# Directions


def test_directions_are_standard_normal_and_follow_from_the_key():
    shapes = {"a": jnp.zeros([100, 100]), "b": jnp.zeros([100, 100])}
    direction = perturbation(BASE, shapes)
    assert abs(np.mean(flat(direction))) < 5 / np.sqrt(20_000)
    assert abs(np.mean(flat(direction) ** 2) - 1) < 5 * np.sqrt(2 / 20_000)
    assert abs(np.corrcoef(direction["a"].ravel(), direction["b"].ravel())[0, 1]) < 0.05
    jax.tree.map(np.testing.assert_array_equal, direction, jax.jit(perturbation)(BASE, shapes))


def test_every_direction_of_every_machine_and_round_has_its_own_key():
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(4)] * 3), -1).reshape(-1, 3)
    drawn = jax.vmap(lambda place: jax.random.uniform(machine_key(BASE, *place)))(grid)
    assert len(np.unique(drawn)) == 64


@pytest.mark.parametrize("eps", [1e-3, 1.0, 100.0])
def test_the_projected_gradient_of_a_quadratic_is_exact(eps):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS)
        gradient, direction = jax.grad(quadratic)(params, 0.2), perturbation(BASE, params)
        ours = projected_gradient(quadratic, params, BASE, 0.2, eps=eps)
        np.testing.assert_allclose(ours, flat(gradient) @ flat(direction), rtol=1e-9)


def test_directions_weighed_by_their_projections_average_to_the_gradient():
    keys = jax.random.split(BASE, 20_000)

    def one(key):
        g = projected_gradient(quadratic, PARAMS, key, 0.2, eps=0.1)
        return jax.tree.map(lambda z: g * z, perturbation(key, PARAMS))

    estimates = jax.jit(jax.vmap(one))(keys)
    for estimate, wanted in zip(
        jax.tree.leaves(estimates), jax.tree.leaves(jax.grad(quadratic)(PARAMS, 0.2)), strict=True
    ):
        standard_error = np.std(estimate, axis=0) / np.sqrt(len(keys))
        assert (np.abs(np.mean(estimate, axis=0) - wanted) < 5 * standard_error).all()


def test_the_step_is_the_sum_over_directions():
    keys = jax.random.split(BASE, 5)
    projected = jnp.array([1.0, -2.0, 0.5, 0.0, 3.0])
    moved = apply_projected(PARAMS, keys, projected, lr=0.1)
    wanted = flat(PARAMS) - 0.1 / 5 * sum(
        float(g) * flat(perturbation(k, PARAMS)) for g, k in zip(projected, keys, strict=True)
    )
    np.testing.assert_allclose(flat(moved), wanted, rtol=1e-5, atol=1e-6)


def test_half_precision_parameters():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
    assert projected_gradient(quadratic, params, BASE, 0.2).dtype == jnp.float32
    moved = apply_projected(params, jax.random.split(BASE, 2), jnp.array([1.0, -2.0]), lr=0.1)
    assert {x.dtype for x in jax.tree.leaves(moved)} == {jnp.dtype(jnp.bfloat16)}


# Bytes


def test_bytes_by_hand():
    levels = encode_byte(jnp.array([0.0, 0.24, 0.26, -0.26, 63.5, 64.0, 1e9, -1e9]), scale=0.5)
    assert levels.dtype == jnp.int8
    np.testing.assert_array_equal(levels, [0, 0, 1, -1, 127, 127, 127, -127])
    np.testing.assert_array_equal(decode_byte(levels, scale=0.5), [0, 0, 0.5, -0.5, 63.5, 63.5, 63.5, -63.5])


@pytest.mark.parametrize(
    ("levels", "memory", "factor"),
    [
        ([127, -3], 0.9, 2.0),
        ([-127, 0], 0.9, 2.0),
        ([126, 0], 0.9, 126 / 127),
        ([3, -60], 0.9, 0.9),
        ([3, -60], 1.0, 1.0),
        ([-128, 0], 0.9, 0.9),
    ],
)
def test_the_scale_follows_the_largest_byte(levels, memory, factor):
    scale = adapt_scale(jnp.array(levels, jnp.int8), scale=0.5, memory=memory)
    np.testing.assert_allclose(scale, 0.5 * factor, rtol=1e-6)


def test_a_scale_that_is_too_small_recovers():
    state = shared_seed_init(PARAMS, scale=1e-6)
    batch = jnp.zeros([SAMPLES])
    step = jax.jit(lambda s: shared_seed_round(quadratic, s, batch, base=BASE, lr=1e-9, axis_name=None))
    sizes = []
    for round in range(40):
        keys = [machine_key(BASE, round, 0, j) for j in range(SAMPLES)]
        sizes.append(max(abs(float(projected_gradient(quadratic, PARAMS, k, 0.0, eps=1e-3))) for k in keys))
        state = step(state)
    assert max(sizes) / 127 / 3 < state.scale < 2 * max(sizes) / 127


# Rounds


@functools.cache
def compiled(lr):
    def machine(state, batch, present):
        return shared_seed_round(quadratic, state, batch, base=BASE, lr=lr, eps=0.1, present=present)

    return jax.jit(jax.vmap(machine, in_axes=(None, 0, 0), out_axes=None, axis_name="machines"))


def stacked(state, batch, *, present=None, lr=0.02):
    """All machines on one device."""
    return compiled(lr)(state, batch, np.ones(len(batch), bool) if present is None else present)


def test_rounds_follow_the_paper():
    """Projected gradients of the quadratic in closed form, coded by hand; two roundings may fall the other way."""
    state, x = shared_seed_init(PARAMS, scale=0.05), flat(PARAMS).astype(np.float64)
    curvature = np.repeat([1.0, 2.0], [2, 6])
    for round, batch in enumerate(targets(4)):
        scale, total = float(state.scale), 0.0
        for machine in range(MACHINES):
            for sample in range(SAMPLES):
                z = flat(perturbation(machine_key(BASE, round, machine, sample), PARAMS)).astype(np.float64)
                g = curvature * (x - batch[machine, sample]) @ z
                total = total + np.clip(np.round(g / scale), -127, 127) * scale * z
        x = x - 0.02 / (MACHINES * SAMPLES) * total
        state = stacked(state, batch)
        np.testing.assert_allclose(flat(state.params), x, atol=1e-4)
        x = flat(state.params).astype(np.float64)
    assert state.round == 4


def test_many_machines_are_one_machine_with_all_their_samples():
    """Given the same keys and batches."""
    batch = targets(1)[0]
    keys = jnp.stack([machine_key(BASE, 0, i, j) for i in range(MACHINES) for j in range(SAMPLES)])
    measure = functools.partial(projected_gradient, quadratic, PARAMS, eps=0.1)
    levels = encode_byte(jax.vmap(measure)(keys, batch.ravel()), scale=0.1)
    alone = apply_projected(PARAMS, keys, decode_byte(levels, scale=0.1), lr=0.02)
    together = stacked(shared_seed_init(PARAMS, scale=0.1), batch).params
    np.testing.assert_allclose(flat(together), flat(alone), atol=2e-5)


def test_absent_machines_count_for_nothing():
    """Eight of which the last five are away, and three: the same keys, so the same step."""
    batch, state = targets(1)[0], shared_seed_init(PARAMS, scale=0.1)
    some = stacked(state, batch, present=np.arange(MACHINES) < 3)
    three = stacked(state, batch[:3])
    np.testing.assert_allclose(flat(some.params), flat(three.params), rtol=1e-6)
    np.testing.assert_allclose(some.scale, three.scale)
    nobody = stacked(state, batch, present=np.zeros(MACHINES, bool))
    np.testing.assert_array_equal(flat(nobody.params), flat(PARAMS))


def test_it_minimises():
    state = shared_seed_init(PARAMS)
    for _ in range(300):
        state = stacked(state, np.ones([MACHINES, SAMPLES], np.float32), lr=0.05)
    assert quadratic(state.params, 1.0) < 1e-3 * quadratic(PARAMS, 1.0)


# On eight devices


def on_devices(state, batch):
    return shared_seed_round(quadratic, state, batch, base=BASE, lr=0.02, eps=0.1, axis_name="devices")


@functools.cache
def sharded():
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    axes = dict(mesh=mesh, in_specs=(P(), P("devices")), out_specs=P(), check_vma=False)
    return jax.jit(jax.shard_map(lambda state, batch: on_devices(state, batch[0]), **axes))


def test_shard_map_gives_what_one_device_gives():
    state = wanted = shared_seed_init(PARAMS, scale=0.1)
    for batch in targets(5):
        state, wanted = sharded()(state, batch), stacked(wanted, batch)
        np.testing.assert_allclose(flat(state.params), flat(wanted.params), rtol=1e-5, atol=2e-5)


def test_machines_stay_equal_to_the_bit_and_a_late_one_catches_up_by_a_copy():
    step = jax.pmap(on_devices, axis_name="devices")
    state = jax.tree.map(lambda x: jnp.stack([x] * MACHINES), shared_seed_init(PARAMS, scale=0.1))
    wanted = shared_seed_init(PARAMS, scale=0.1)
    for round, batch in enumerate(targets(6)):
        if round == 3:  # the last machine lost everything, and copies the state of the first
            state = jax.tree.map(lambda x: x.at[-1].set(x[0]), state)
        state, wanted = step(state, batch), stacked(wanted, batch)
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape)), state)
    np.testing.assert_allclose(flat(jax.tree.map(lambda x: x[0], state.params)), flat(wanted.params), atol=2e-5)


def test_a_direction_costs_a_byte():
    state = shared_seed_init(PARAMS)
    assert bytes_sent(sharded(), state, targets(1)[0]) == SAMPLES
    assert bytes_sent(on_devices, state, targets(1)[0, 0], axes={"devices": 8}) == SAMPLES


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: projected_gradient(quadratic, PARAMS, BASE, 0.0, eps=0.0), r"eps must be in \(0, inf\)"),
        (lambda: encode_byte(jnp.ones(2), scale=0.0), r"scale must be in \(0, inf\)"),
        (lambda: decode_byte(jnp.ones(2, jnp.int8), scale=-1.0), r"scale must be in \(0, inf\)"),
        (lambda: adapt_scale(jnp.ones(2, jnp.int8), scale=1.0, memory=0.0), r"memory must be in \(0, 1\]"),
        (lambda: shared_seed_init(PARAMS, scale=0.0), r"scale must be in \(0, inf\)"),
        (
            lambda: apply_projected(PARAMS, jax.random.split(BASE, 2), jnp.ones(2), lr=0.0),
            r"lr must be in \(0, inf\)",
        ),
    ],
)
def test_bad_numbers_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
