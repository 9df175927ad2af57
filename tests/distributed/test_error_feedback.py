"""Error feedback against the published equations in NumPy, against identities, and on eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxreg.distributed import (
    ErrorFeedbackState,
    bytes_sent,
    econtrol,
    ef14,
    ef21,
    ef21_pp,
    ef21_sgd,
    ef21_w,
    stacked,
)
from jaxreg.optim import Compressor, rand_k, stochastic_rounding, topk

CLIENTS, SIZE = 8, 30
WEIGHTS = np.arange(1, CLIENTS + 1) / np.sum(np.arange(1, CLIENTS + 1))


def threshold(level):
    """Keeps what is larger than an absolute level: not homogeneous."""
    return Compressor(lambda key, v: jnp.where(jnp.abs(v) > level, v, 0), lambda key, m, d: m, lambda d: 0.0)


METHODS = {
    "econtrol": functools.partial(econtrol, eta=0.03),
    "ef14": ef14,
    "ef21": ef21,
    "ef21_w": functools.partial(ef21_w, weights=WEIGHTS),
    "ef21_sgd": ef21_sgd,
    "ef21_sgd_weighted": functools.partial(ef21_sgd, weights=WEIGHTS),
    "ef21_pp": functools.partial(ef21_pp, participation=0.5),
}


def gradients(rounds=6, clients=CLIENTS, size=SIZE, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(rounds, clients, size)).astype(dtype)


def play(method, history, state=None):
    """The updates of every round and the last state; gradients are ``[rounds, clients, size]``."""
    state = method.init(jnp.asarray(history[0, 0])) if state is None else state

    @jax.jit
    def rounds(state, history):
        return jax.lax.scan(lambda state, g: method.update(g, state)[::-1], state, history)

    state, updates = rounds(state, history)
    return updates, state


def numpy_topk(vector, k):
    kept = np.argsort(-np.abs(vector), kind="stable")[:k]
    return np.where(np.isin(np.arange(vector.size), kept), vector, 0.0)


def published(name, history, k, *, eta=0.03, weights=WEIGHTS):
    """The equations, client by client, in float64."""
    n = history.shape[1]
    e, h, updates = np.zeros(history.shape[1:]), np.zeros(history.shape[1:]), []
    for g in history.astype(np.float64):
        for i in range(n):
            if name == "econtrol":
                sent = numpy_topk(eta * e[i] + g[i] - h[i], k)
                e[i] += g[i] - h[i] - sent
                h[i] += sent
            elif name == "ef14":
                h[i] = numpy_topk(e[i] + g[i], k)
                e[i] += g[i] - h[i]
            elif name == "ef21":
                h[i] += numpy_topk(g[i] - h[i], k)
            else:
                h[i] += numpy_topk(g[i] / (n * weights[i]) - h[i], k)
        updates.append(weights @ h if name == "ef21_w" else h.mean(0))
    return np.array(updates), e, h


# The equations


@pytest.mark.parametrize("name", ["econtrol", "ef14", "ef21", "ef21_w"])
def test_methods_follow_their_equations(name):
    with jax.enable_x64(True):
        history = gradients(40, dtype=np.float64)
        updates, state = play(stacked(METHODS[name](compressor=topk(3)), clients=CLIENTS), history)
        wanted, e, h = published(name, history, 3)
        np.testing.assert_allclose(updates, wanted, rtol=1e-11, atol=1e-12)
        assert (state.error is None) == (name in ("ef21", "ef21_w"))
        if state.error is not None:
            np.testing.assert_allclose(state.error, e, rtol=1e-11, atol=1e-12)
        if state.estimate is not None:
            np.testing.assert_allclose(state.estimate, h, rtol=1e-11, atol=1e-12)
        assert state.count == 40


def test_econtrol_by_hand():
    """0.5 e + g - h = (2, 2): a tie, which the lower index wins."""
    method = econtrol(compressor=topk(1), eta=0.5, axis_name=None)
    h = jnp.array([0.0, 1.0])
    update, state = method.update(jnp.array([1.0, 3.0]), ErrorFeedbackState(jnp.array(0), h, jnp.array([2.0, 0.0]), h))
    np.testing.assert_array_equal(state.error, [1.0, 2.0])
    np.testing.assert_array_equal(state.estimate, [2.0, 1.0])
    np.testing.assert_array_equal(update, [2.0, 1.0])


@pytest.mark.parametrize("eta", [0.0, 0.1, 1.0])
def test_the_virtual_iterate_of_econtrol_moves_by_the_mean_gradient(eta):
    """z = x - lr mean(e) moves by -lr mean(g), whatever e and h are at first."""
    with jax.enable_x64(True):
        history = gradients(20, dtype=np.float64)
        e, h = gradients(2, seed=1, dtype=np.float64)
        method = stacked(econtrol(compressor=topk(2), eta=eta), clients=CLIENTS)
        updates, state = play(method, history, ErrorFeedbackState(jnp.array(0), h.mean(0), e, h))
        moved = -np.sum(updates, axis=0) - (np.mean(state.error, axis=0) - e.mean(0))
        np.testing.assert_allclose(moved, -history.mean(1).sum(0), atol=1e-11)


@pytest.mark.parametrize("name", ["ef14", "ef21", "econtrol"])
def test_what_is_applied_and_what_is_left_add_up(name):
    """Mean squares of the estimates' errors stay bounded; nothing is lost for good."""
    gradient = np.broadcast_to(gradients(1)[0], (400, CLIENTS, SIZE))
    updates, _ = play(stacked(METHODS[name](compressor=topk(3)), clients=CLIENTS), gradient)
    np.testing.assert_allclose(updates[200:].mean(0), gradient[0].mean(0), atol=0.02)


# How the methods are related


def test_econtrol_without_feedback_is_ef21():
    ours, _ = play(stacked(econtrol(compressor=topk(2), eta=0.0), clients=CLIENTS), gradients())
    theirs, _ = play(stacked(ef21(compressor=topk(2)), clients=CLIENTS), gradients())
    np.testing.assert_array_equal(ours, theirs)


def test_econtrol_with_forgotten_estimates_is_ef14():
    method = stacked(econtrol(compressor=topk(2), eta=1.0), clients=CLIENTS)
    update, state = jax.jit(method.update), method.init(jnp.zeros(SIZE))
    wanted, _ = play(stacked(ef14(compressor=topk(2)), clients=CLIENTS), gradients())
    for gradient, direction in zip(gradients(), wanted, strict=True):
        ours, state = update(gradient, state)
        np.testing.assert_allclose(ours, direction, rtol=1e-6, atol=1e-7)
        state = state._replace(average=jnp.zeros(SIZE), estimate=jnp.zeros([CLIENTS, SIZE]))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ef21_pp"])
def test_without_compression_it_is_the_mean_gradient(name):
    updates, state = play(stacked(METHODS[name](compressor=topk(SIZE)), clients=CLIENTS), gradients())
    np.testing.assert_allclose(updates, gradients().mean(1), atol=2e-6)
    if state.error is not None:
        np.testing.assert_allclose(state.error, np.zeros([CLIENTS, SIZE]), atol=2e-6)


def test_weights_make_no_difference_to_a_homogeneous_compressor_only():
    with jax.enable_x64(True):
        history = gradients(40, dtype=np.float64)
        for compressor, same in ((topk(2), True), (threshold(1.0), False)):
            weighted, _ = play(stacked(ef21_w(compressor=compressor, weights=WEIGHTS), clients=CLIENTS), history)
            plain, _ = play(stacked(ef21(compressor=compressor), clients=CLIENTS), history)
            assert np.allclose(weighted, plain, rtol=0, atol=1e-14) == same


def test_a_weight_is_a_number_of_clones():
    """Client i in N_i copies of N / (n N_i) f_i each: the problem is the same, and plain EF21 on it is EF21-W."""
    copies = np.array([1, 3, 2])
    with jax.enable_x64(True):
        history = gradients(30, clients=3, dtype=np.float64)
        clones = np.repeat(history * (copies.sum() / (3 * copies))[:, None], copies, axis=1)
        weighted = ef21_w(compressor=threshold(1.0), weights=copies / copies.sum())
        ours, _ = play(stacked(weighted, clients=3), history)
        cloned, _ = play(stacked(ef21(compressor=threshold(1.0)), clients=6), clones)
        np.testing.assert_allclose(ours, cloned, atol=1e-13)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ef21_sgd_takes_the_step_of_ef21(weights):
    ours, _ = play(stacked(ef21_sgd(compressor=topk(2), weights=weights), clients=CLIENTS), gradients())
    plain = ef21(compressor=topk(2)) if weights is None else ef21_w(compressor=topk(2), weights=weights)
    np.testing.assert_array_equal(ours, play(stacked(plain, clients=CLIENTS), gradients())[0])


class TestPartialParticipation:
    def test_when_all_speak_it_is_ef21(self):
        ours, _ = play(stacked(ef21_pp(compressor=topk(2), participation=1.0), clients=CLIENTS), gradients())
        np.testing.assert_array_equal(ours, play(stacked(ef21(compressor=topk(2)), clients=CLIENTS), gradients())[0])

    def test_the_silent_keep_their_estimates_and_all_know_who_spoke(self):
        """Without compression an estimate is the client's gradient of the last round in which it spoke."""
        method = stacked(ef21_pp(compressor=topk(1), participation=0.3), clients=200)
        update, state = jax.jit(method.update), method.init(jnp.zeros(1))
        last, spoke = np.zeros(200), []
        for round in range(20):
            direction, state = update(jnp.full([200, 1], round + 1.0), state)
            estimate = np.asarray(state.estimate)[:, 0].round(4)
            spoke.append(estimate == round + 1)
            np.testing.assert_array_equal(estimate, np.where(spoke[-1], round + 1, last))
            np.testing.assert_allclose(direction, [estimate.mean()], rtol=1e-4)
            last = estimate
        np.testing.assert_allclose(np.mean(spoke), 0.3, atol=5 * np.sqrt(0.21 / 4000))
        assert len({tuple(row) for row in np.asarray(spoke)}) == 20

    def test_weights(self):
        method = ef21_pp(compressor=topk(SIZE), participation=1.0, weights=WEIGHTS)
        updates, _ = play(stacked(method, clients=CLIENTS), gradients())
        np.testing.assert_allclose(updates, gradients().mean(1), atol=2e-6)


# What it is for


@pytest.mark.parametrize("compressor", [topk(1), rand_k(1), stochastic_rounding()], ids=["topk", "rand_k", "8-bit"])
def test_it_converges_where_compressed_gradients_do_not(compressor):
    """Two clients whose large gradients cancel: what is left to learn is in the entry that is never the largest."""
    targets = jnp.array([[10.0, 1.0], [-10.0, 1.0]])
    method = stacked(ef21(compressor=compressor), clients=2)

    def step(carry, _):
        params, state = carry
        update, state = method.update(params - targets, state)
        return (params - 0.05 * update, state), None

    params = jnp.zeros(2)
    (params, _), _ = jax.jit(lambda: jax.lax.scan(step, (params, method.init(params)), length=1000))()
    np.testing.assert_allclose(params, [0.0, 1.0], atol=1e-4)


def test_trees_are_compressed_as_a_whole_and_keep_their_precision():
    tree = {"a": jnp.array([1.0, -5.0], jnp.bfloat16), "b": [jnp.array([[3.0], [0.5]]), jnp.array(-4.0)], "c": None}
    method = ef21(compressor=topk(2), axis_name=None)
    update, state = method.update(tree, method.init(tree))
    wanted = {"a": jnp.array([0.0, -5.0], jnp.bfloat16), "b": [jnp.zeros([2, 1]), jnp.array(-4.0)], "c": None}
    jax.tree.map(np.testing.assert_array_equal, update, wanted)
    assert jax.tree.map(jnp.result_type, update) == jax.tree.map(jnp.result_type, wanted)
    assert state.estimate.dtype == jnp.float32
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    assert jax.tree.map(jnp.shape, method.init(shapes)) == jax.tree.map(jnp.shape, state)


def test_any_optimizer_can_follow():
    """Adam's first step is the sign of what it is given."""
    gradient = gradients(1)[0]
    optimizer = optax.chain(stacked(ef21(compressor=topk(2)), clients=CLIENTS), optax.adam(0.1))
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(gradient[0]))
    direction = np.mean([numpy_topk(row, 2) for row in gradient], axis=0)
    np.testing.assert_allclose(updates, -0.1 * np.sign(direction), atol=1e-6)


@pytest.mark.parametrize("tree", [{}, {"none": None}, [jnp.zeros([0, 3])]], ids=str)
def test_empty_trees(tree):
    method = econtrol(compressor=topk(2), eta=0.1, axis_name=None)
    update, _ = method.update(tree, method.init(tree))
    assert jax.tree.map(jnp.shape, update) == jax.tree.map(jnp.shape, tree)


# On eight devices


@functools.cache
def devices():
    return jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))


def sharded(make, compressor, clients):
    """One step on eight devices, and the state to start from."""
    local = stacked(make(compressor=compressor, axis_name=("devices", "clients")), clients=clients // 8)
    layout = ErrorFeedbackState(P(), P(), P("devices"), P("devices"))
    step = jax.shard_map(
        local.update, mesh=devices(), in_specs=(P("devices"), layout), out_specs=(P(), layout), check_vma=False
    )
    return jax.jit(step), stacked(make(compressor=compressor), clients=clients).init(jnp.zeros(SIZE))


@pytest.mark.parametrize(
    ("name", "compressor"),
    [("econtrol", topk(2)), ("ef14", stochastic_rounding()), ("ef21_w", rand_k(2)), ("ef21_pp", topk(2))],
    ids=["econtrol-topk", "ef14-8-bit", "ef21_w-rand_k", "ef21_pp-topk"],
)
def test_shard_map_gives_what_one_device_gives(name, compressor):
    make = METHODS[name]
    step, state = sharded(make, compressor, CLIENTS)
    wanted, wanted_state = play(stacked(make(compressor=compressor), clients=CLIENTS), gradients(3))
    for gradient, direction in zip(gradients(3), wanted, strict=True):
        update, state = step(gradient, state)
        np.testing.assert_allclose(update, direction, rtol=1e-6, atol=1e-7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), state, wanted_state)


def test_shard_map_with_several_clients_on_a_device():
    make, compressor = functools.partial(econtrol, eta=0.1), rand_k(2)
    step, state = sharded(make, compressor, 24)
    history = gradients(3, clients=24)
    assert bytes_sent(step, history[0], state) == 3 * 2 * 4
    wanted, _ = play(stacked(make(compressor=compressor), clients=24), history)
    for gradient, direction in zip(history, wanted, strict=True):
        update, state = step(gradient, state)
        np.testing.assert_allclose(update, direction, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["econtrol", "ef21_w"])
def test_pmap_gives_what_one_device_gives(name):
    """The bare method under a user's own axis name, with an optimizer behind it."""
    make, compressor = METHODS[name], topk(2)
    optimizer = optax.chain(make(compressor=compressor, axis_name="batch"), optax.sgd(0.1))
    step = jax.pmap(optimizer.update, axis_name="batch")
    state = jax.tree.map(lambda x: jnp.stack([x] * CLIENTS), optimizer.init(jnp.zeros(SIZE)))
    wanted, _ = play(stacked(make(compressor=compressor), clients=CLIENTS), gradients(3))
    for gradient, direction in zip(gradients(3), wanted, strict=True):
        updates, state = step(gradient, state)
        np.testing.assert_array_equal(updates, np.broadcast_to(updates[0], updates.shape))
        np.testing.assert_allclose(updates[0], -0.1 * direction, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "compressor", "expected"),
    [(make, topk(2), 2 * (4 + 1)) for make in METHODS.values()]
    + [(METHODS["econtrol"], rand_k(2), 2 * 4), (METHODS["econtrol"], stochastic_rounding(), 30 + 4)],
    ids=[*METHODS, "rand_k", "8-bit"],
)
def test_only_the_message_travels(make, compressor, expected):
    """In every way to run it: the bytes of a client's message, and nothing else."""
    step, state = sharded(make, compressor, CLIENTS)
    assert bytes_sent(step, jnp.zeros([CLIENTS, SIZE]), state) == expected
    method = make(compressor=compressor)
    alone = method.init(jnp.zeros(SIZE))
    assert bytes_sent(method.update, jnp.zeros(SIZE), alone, axes={"clients": CLIENTS}) == expected


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: econtrol(compressor=topk(1), eta=1.5), r"eta must be in \[0, 1\], got 1.5"),
        (lambda: ef21_pp(compressor=topk(1), participation=0.0), r"participation must be in \(0, 1\], got 0"),
        (lambda: stacked(ef21(compressor=topk(1)), clients=0), r"clients must be in \[1, inf\), got 0"),
    ],
)
def test_bad_hyperparameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_weight_for_every_client():
    method = stacked(ef21_w(compressor=topk(1), weights=WEIGHTS), clients=3)
    with pytest.raises(ValueError, match=r"weights must be as many as clients \(3\), got 8"):
        method.update(jnp.zeros([3, 2]), method.init(jnp.zeros(2)))
