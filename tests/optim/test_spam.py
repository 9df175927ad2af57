"""SPAM against a NumPy transcription of the paper's algorithm, closed forms and optax.adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreg.optim import scale_by_spam, spam, spike_clip, spike_score


def reference_spam(gradients, *, b1, b2, eps, threshold, reset_every, warmup_steps, grace_steps):
    """Directions of the paper's algorithm for one array, step by step in float64."""
    m = np.zeros_like(gradients[0], dtype=np.float64)
    v = np.zeros_like(m)
    since_reset = warmup_steps
    for n, gradient in enumerate(gradients, start=1):
        g = gradient.astype(np.float64)
        if n % reset_every == 0:
            m, v, since_reset = np.zeros_like(m), np.zeros_like(v), 0
        if n >= grace_steps and n % reset_every >= grace_steps:
            spikes = g**2 > threshold * v
            g[spikes] = np.sign(g[spikes]) * np.sqrt(threshold * v[spikes])
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        c = 1.0
        if since_reset < warmup_steps:
            c = 1 - 0.99 * (1 + np.cos(np.pi * since_reset / (warmup_steps + 1))) / 2
        since_reset += 1
        yield c * np.sqrt(1 - b2**n) / (1 - b1**n) * m / (np.sqrt(v) + eps)


def directions(transformation, gradients):
    state = transformation.init(gradients[0])
    update = jax.jit(transformation.update)
    for gradient in gradients:
        direction, state = update(gradient, state)
        yield direction


def spiky_gradients(steps, shape=(3, 5)):
    key_size, key_where = jax.random.split(jax.random.key(0))
    gradients = jax.random.normal(key_size, (steps, *shape))
    spikes = jax.random.bernoulli(key_where, 0.02, gradients.shape)
    return np.asarray(jnp.where(spikes, 1e3 * gradients, gradients))  # XLA compiles the unpacking of a JAX array


def test_directions_follow_the_paper_through_spikes_resets_and_warmups():
    settings = dict(b1=0.9, b2=0.99, eps=1e-6, threshold=50.0, reset_every=40, warmup_steps=12, grace_steps=7)
    gradients = spiky_gradients(130)
    ours = list(directions(scale_by_spam(**settings), gradients))
    paper = list(reference_spam(np.asarray(gradients), **settings))
    np.testing.assert_allclose(ours, paper, rtol=3e-5, atol=1e-6)


def test_without_clipping_and_resets_it_is_adam():
    gradients = spiky_gradients(60)
    ours = directions(scale_by_spam(threshold=jnp.inf, reset_every=10**9, eps=1e-12), gradients)
    adam = directions(optax.scale_by_adam(eps=1e-12), gradients)
    np.testing.assert_allclose(list(ours), list(adam), rtol=2e-5, atol=1e-7)


def test_eps_stands_outside_the_bias_correction():
    gradient = jnp.array([1e-6])
    (ours,) = directions(scale_by_spam(eps=1e-6), [gradient])
    np.testing.assert_allclose(ours, np.sqrt(0.001) / (np.sqrt(0.001) + 1), rtol=1e-4)  # 0.03065; Adam's is 0.5


def test_constant_gradients_give_unit_directions_except_after_a_reset():
    gradients = jnp.full([502, 1], 0.3)
    ours = np.concatenate(list(directions(scale_by_spam(eps=0.0), gradients)))
    np.testing.assert_allclose(ours[:499], 1.0, rtol=1e-4)
    # Step 500: zero moments with the bias correction of n = 500, times the first warmup factor.
    expected = 0.01 * np.sqrt(1 - 0.999**500) / (1 - 0.9**500) * 0.1 / np.sqrt(0.001)
    np.testing.assert_allclose(ours[499], expected, rtol=1e-4)
    assert round(float(ours[499]), 5) == 0.01984


def test_bias_correction_can_restart_with_the_moments():
    gradients = jnp.full([30, 1], 0.3)
    restarted = scale_by_spam(eps=0.0, reset_every=10, warmup_steps=0, bias_correction_after_reset=True)
    np.testing.assert_allclose(np.concatenate(list(directions(restarted, gradients))), 1.0, rtol=1e-4)


def test_spikes_do_not_hide_themselves():
    """Clipping uses the second moment before it has seen the spike."""
    gradients = jnp.ones([40, 1]).at[30].set(1e6)
    transformation = scale_by_spam(threshold=100.0, eps=0.0)
    state = transformation.init(gradients[0])
    update = jax.jit(transformation.update)
    for gradient in gradients[:31]:
        before, (_, state) = state, update(gradient, state)
    expected = 0.9 * before.mu + 0.1 * jnp.sqrt(100.0 * before.nu)
    np.testing.assert_allclose(state.mu, expected, rtol=1e-6)


def test_spike_clip_by_hand():
    gradient, second_moment = jnp.array([100.0, -100.0, 70.0, 0.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(spike_clip(gradient, second_moment), [70.71068, -70.71068, 70.0, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(spike_clip(gradient, second_moment, threshold=jnp.inf), gradient)


def test_spike_score_by_hand():
    gradients = jnp.array([[1.0, 0.0], [-1.0, 0.0], [98.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(spike_score(gradients), [[0.04, 0], [0.04, 0], [3.92, 0], [0, 0]], rtol=1e-6)


class TestSparseMomentum:
    params = {"w": jnp.zeros([30, 10]), "b": jnp.zeros([7]), "scale": jnp.zeros([])}

    def gradients(self, step):
        return jax.tree.map(lambda p: jnp.full(p.shape, 1.0 + step), self.params)

    def moved(self, *, density, steps, reset_every=3):
        transformation = scale_by_spam(density=density, reset_every=reset_every, warmup_steps=0)
        for updates in directions(transformation, [self.gradients(step) for step in range(steps)]):
            yield jax.tree.map(lambda u: np.asarray(u) != 0, updates)

    @pytest.mark.parametrize("density", [0.1, 0.25, 0.7, 1.0])
    def test_exactly_the_chosen_part_moves(self, density):
        for moved in self.moved(density=density, steps=4):
            assert {name: int(m.sum()) for name, m in moved.items()} == {
                "w": int(density * 300), "b": max(1, int(density * 7)), "scale": 1}  # fmt: skip

    def test_entries_are_drawn_anew_at_a_reset_and_only_then(self):
        moved = [m["w"] for m in self.moved(density=0.5, steps=7)]
        # Steps n = 1, 2 | 3, 4, 5 | 6, 7.
        assert (moved[0] == moved[1]).all()
        assert (moved[2] == moved[3]).all()
        assert (moved[2] == moved[4]).all()
        assert not (moved[1] == moved[2]).all()
        assert not (moved[4] == moved[5]).all()

    def test_seeds_choose_other_entries(self):
        def moved(seed):
            transformation = scale_by_spam(density=0.5, seed=seed)
            return transformation.update(jnp.ones(40), transformation.init(jnp.ones(40)))[0] != 0

        first, second, again = jax.jit(jax.vmap(moved))(jnp.array([0, 1, 0]))
        assert (first == again).all()
        assert not (first == second).all()

    def test_full_density_is_dense_spam(self):
        gradients = spiky_gradients(30)
        settings = dict(threshold=50.0, reset_every=9, warmup_steps=3, grace_steps=2)
        sparse = list(directions(scale_by_spam(density=1.0, **settings), gradients))
        dense = list(directions(scale_by_spam(**settings), gradients))
        np.testing.assert_allclose(sparse, dense, rtol=1e-6)

    def test_state_shrinks_with_density(self):
        params = jnp.zeros(10_000)
        nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(scale_by_spam(density=0.25).init(params)))
        assert nbytes == 4 + 4 + 9 * 2_500


def test_spam_descends_with_decoupled_weight_decay():
    params = jnp.array([2.0, -3.0])
    gradient = jnp.array([0.5, 0.1])
    optimizer = spam(0.1, weight_decay=0.01, eps=0.0)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates, -0.1 * (np.sign(gradient) + 0.01 * np.asarray(params)), rtol=1e-4)


def test_half_precision_parameters_keep_float32_moments():
    params = jnp.zeros([4], jnp.bfloat16)
    transformation = scale_by_spam()
    updates, state = transformation.update(jnp.ones_like(params), transformation.init(params))
    assert updates.dtype == jnp.bfloat16
    assert state.nu.dtype == state.mu.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [
        ("b1", 1.0, "[0, 1)"),
        ("b2", -0.1, "[0, 1)"),
        ("eps", -1e-8, "[0, inf)"),
        ("threshold", 0.0, "(0, inf]"),
        ("reset_every", 0, "[1, inf)"),
        ("warmup_steps", -1, "[0, inf)"),
        ("grace_steps", -1, "[0, inf)"),
        ("density", 0.0, "(0, 1]"),
        ("weight_decay", -0.1, "[0, inf)"),
    ],
)
def test_bad_hyperparameters_are_named(name, value, interval):
    with pytest.raises(ValueError, match="must be in") as error:
        spam(1e-3, **{name: value})
    assert str(error.value) == f"{name} must be in {interval}, got {value}"
