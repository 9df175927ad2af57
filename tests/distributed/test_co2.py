"""CO2 against its round written out in NumPy, known special cases, and itself on eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxreg.distributed import Co2State, bytes_sent, co2_init, co2_round, local_steps, round_time

WORKERS, TAU = 8, 3
START = {"w": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "b": np.array([0.3, -0.7], np.float32)}
LAYOUT = Co2State(params=P(), previous=P(), momentum=P(), pending=P("devices"))


def loss(params, batch):
    """A quadratic whose minimum each batch moves."""
    return 0.5 * sum(jnp.sum((1 + i) * (x - batch) ** 2) for i, x in enumerate(jax.tree.leaves(params)))


def batches(rounds, workers=WORKERS, tau=TAU):
    return np.random.default_rng(0).normal(size=(rounds, workers, tau)).astype(np.float32)


def play(history, *, rate=0.1, start=START, **options):
    """The parameters after every round, on one device."""

    @jax.jit
    def step(state, batch):
        results, _ = local_steps(loss, state.params, optax.sgd(rate), batch)
        params, state = co2_round(state, results, **options)
        return state, params

    return jax.lax.scan(step, co2_init(start), history)[1]


def flat(params, lead=1):
    return np.concatenate([np.asarray(x, np.float64).reshape(*x.shape[:lead], -1) for x in jax.tree.leaves(params)], -1)


CURVATURE = np.repeat([1.0, 2.0], [2, 4])  # of the entries of "b" and "w", in the order of the tree's leaves


def published(
    history, *, rate=0.1, outer_lr=1.0, outer_momentum=0.5, clip=1.0, clip_by="value", gap_penalty="adaptive"
):
    """The round in NumPy, all workers in a loop."""
    x = old = flat(START, 0)
    pending, m, points = x, np.zeros(6), []
    for round in history:
        progress = old - pending
        if gap_penalty == "adaptive":
            penalty = 1 + (np.linalg.norm(x - old) / np.linalg.norm(progress) if progress.any() else 0)
        else:
            penalty = gap_penalty
        m = outer_momentum * m + progress / penalty
        m = np.clip(m, -clip, clip) if clip_by == "value" else m * min(1, clip / max(np.linalg.norm(m), 1e-30))
        ends = []
        for worker in round:
            y = x
            for target in worker:
                y = y - rate * CURVATURE * (y - target)
            ends.append(y)
        pending, old, x = np.mean(ends, axis=0), x, x - outer_lr * m
        points.append(x)
    return np.array(points)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(gap_penalty=2.0, outer_momentum=0.0, outer_lr=0.7),
        dict(clip=0.05),
        dict(clip=0.1, clip_by="norm", gap_penalty=1.0),
        dict(clip=np.inf, gap_penalty=1.0),
    ],
    ids=str,
)
def test_rounds_follow_the_paper(options):
    history = batches(8)
    np.testing.assert_allclose(flat(play(history, **options)), published(history, **options), rtol=1e-5, atol=1e-5)


def test_one_worker_and_one_step_are_sgd_with_gradients_one_step_old():
    history = batches(10, workers=1, tau=1)
    ours = flat(play(history, outer_momentum=0.0, gap_penalty=1.0, clip=np.inf))
    points = [flat(START, 0)] * 2
    for target in history[:-1, 0, 0]:
        points.append(points[-1] - 0.1 * CURVATURE * (points[-2] - target))
    np.testing.assert_allclose(ours, points[1:], rtol=1e-5, atol=1e-6)


def test_fresh_averages_are_local_sgd():
    """If what is pending were of the round that ends, the workers would go on from their mean."""
    results, _ = local_steps(loss, START, optax.sgd(0.1), batches(1)[0])
    fresh = jax.tree.map(lambda y: y.mean(0, keepdims=True), results)
    state = co2_init(START)._replace(pending=fresh)
    params, _ = co2_round(state, results, outer_momentum=0.0, gap_penalty=1.0, clip=np.inf)
    np.testing.assert_allclose(flat(params, 0), flat(results).mean(0), rtol=1e-6)


def test_the_first_round_moves_nothing():
    points = play(batches(1))
    jax.tree.map(lambda x, start: np.testing.assert_array_equal(x[0], start), points, START)


def test_a_point_that_has_not_moved_has_no_gap():
    results, _ = local_steps(loss, START, optax.sgd(0.1), batches(1)[0])
    _, state = co2_round(co2_init(START), results)
    adaptive, _ = co2_round(state, results)
    constant, _ = co2_round(state, results, gap_penalty=1.0)
    jax.tree.map(np.testing.assert_array_equal, adaptive, constant)


def test_nothing_waits_for_the_results_of_the_round():
    """What is averaged and applied is there before the workers have finished: not even a NaN of theirs is seen."""
    results, _ = local_steps(loss, START, optax.sgd(0.1), batches(1)[0])
    _, state = co2_round(co2_init(START), results)
    lost = jax.tree.map(lambda y: jnp.full_like(y, jnp.nan), results)
    params, after = co2_round(state, lost)
    assert np.isfinite(flat(params, 0)).all()
    assert np.isnan(flat(after.pending)).all()


def test_half_precision_accumulates_in_float32():
    start = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), START)
    state = co2_init(start)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    params, state = co2_round(state, jax.tree.map(lambda x: x[None], start))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


class TestLocalSteps:
    def test_workers_walk_alone(self):
        """Momentum SGD, worker by worker, in NumPy."""
        history = batches(1)[0]
        results, _ = local_steps(loss, START, optax.sgd(0.1, momentum=0.9), history)
        for worker, targets in enumerate(history):
            y, trace = flat(START, 0), np.zeros(6)
            for target in targets:
                trace = 0.9 * trace + CURVATURE * (y - target)
                y = y - 0.1 * trace
            np.testing.assert_allclose(flat(results)[worker], y, rtol=1e-5, atol=1e-6)

    def test_optimizer_states_stay_with_their_workers(self):
        """Two rounds from where the first ended are one round of twice the steps, if the momentum is kept."""
        optimizer, history = optax.sgd(0.1, momentum=0.9), batches(1, workers=1, tau=6)[0]
        results, states = local_steps(loss, START, optimizer, history[:, :3])
        middle = jax.tree.map(lambda y: y[0], results)
        kept, _ = local_steps(loss, middle, optimizer, history[:, 3:], states)
        afresh, _ = local_steps(loss, middle, optimizer, history[:, 3:])
        wanted, _ = local_steps(loss, START, optimizer, history)
        np.testing.assert_allclose(flat(kept), flat(wanted), rtol=1e-5)
        assert not np.allclose(flat(afresh), flat(wanted), rtol=1e-3)


# On eight devices


def train_round(state, batch):
    results, _ = local_steps(loss, state.params, optax.sgd(0.1), batch)
    return co2_round(state, results, axis_name="devices")


@functools.cache
def sharded(check_vma=True):
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    on_devices = functools.partial(jax.shard_map, mesh=mesh, check_vma=check_vma)
    step = on_devices(train_round, in_specs=(LAYOUT, P("devices")), out_specs=(P(), LAYOUT))
    return jax.jit(step), on_devices(co2_init, in_specs=P(), out_specs=LAYOUT)(START)


@pytest.mark.parametrize(("workers", "check_vma"), [(8, True), (8, False), (16, True)])
def test_shard_map_gives_what_one_device_gives(workers, check_vma):
    step, state = sharded(check_vma)
    history = batches(5, workers=workers)
    for batch, wanted in zip(history, flat(play(history)), strict=True):
        params, state = step(state, batch)
        np.testing.assert_allclose(flat(params, 0), wanted, rtol=2e-6, atol=1e-6)


def test_pmap_gives_what_one_device_gives():
    history = batches(5)
    step = jax.pmap(train_round, axis_name="devices")
    state = jax.tree.map(lambda x: jnp.stack([x] * WORKERS), co2_init(START))
    for batch, wanted in zip(history, flat(play(history)), strict=True):
        params, state = step(state, batch[:, None])
        np.testing.assert_allclose(flat(params), [wanted] * WORKERS, rtol=2e-6, atol=1e-6)


def test_a_round_sends_the_parameters_once():
    """Whatever the number of workers and of their steps, for which nothing is exchanged."""
    step, state = sharded()
    for workers in (8, 16):
        assert bytes_sent(step, state, batches(1, workers=workers)[0]) == 4 * 6


# Round times


@pytest.mark.parametrize(
    ("t_comm", "tau", "overlapped", "seconds"),
    [(3.0, 12, True, 12.0), (30.0, 12, True, 30.0), (3.0, 12, False, 48.0), (0.0, 5, True, 5.0), (0.0, 5, False, 5.0)],
)
def test_round_time(t_comm, tau, overlapped, seconds):
    np.testing.assert_allclose(round_time(1.0, t_comm, tau=tau, overlapped=overlapped), seconds)


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [
        ("outer_lr", 0.0, "(0, inf)"),
        ("outer_momentum", 1.0, "[0, 1)"),
        ("clip", 0.0, "(0, inf]"),
        ("gap_penalty", 0.5, "[1, inf)"),
    ],
)
def test_bad_hyperparameters_are_named(name, value, interval):
    results = jax.tree.map(lambda x: x[None], START)
    with pytest.raises(ValueError, match=f"{name} must be in") as error:
        co2_round(co2_init(START), results, **{name: value})
    assert str(error.value) == f"{name} must be in {interval}, got {value}"
