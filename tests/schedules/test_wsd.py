"""WSD, WSD-S and cyclic cosine against values by hand, a NumPy transcription and the river valley's theory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxreg.metrics import river_progress, river_valley_loss
from jaxreg.schedules import cyclic_cosine, wsd, wsd_s


def reference_wsd_s(t, *, peak, checkpoints, warmup_steps, decay_fraction, min_ratio, decay):
    """One learning rate, in Python floats."""
    low, start = peak * min_ratio, 0
    for end in checkpoints:
        n = round(decay_fraction * (end - start))
        if t < end:
            if t < warmup_steps:
                return peak * (t + 1) / warmup_steps
            if t < end - n:
                return peak
            x = (t - (end - n) + 1) / n
            if decay == "inverse":
                return 1 / (x / low + (1 - x) / peak)
            s = x if decay == "linear" else np.sqrt(x)
            return s * low + (1 - s) * peak
        start = end
    return low


def reference_cyclic_cosine(t, *, peak, checkpoints, warmup_steps, min_ratio):
    if t < warmup_steps:
        return peak * (t + 1) / warmup_steps
    starts = [warmup_steps, *checkpoints]
    for start, end in zip(starts, checkpoints, strict=False):
        if t < end:
            return peak * (min_ratio + (1 - min_ratio) * (1 + np.cos(np.pi * (t - start) / (end - start))) / 2)
    return peak * min_ratio


def test_inverse_decay_by_hand():
    schedule = wsd(1.0, total_steps=40, warmup_steps=0, decay_fraction=0.1, min_ratio=0.1)
    values = [schedule(t) for t in (35, 36, 37, 38, 39, 40, 1000)]
    np.testing.assert_allclose(values, [1, 1 / 3.25, 1 / 5.5, 1 / 7.75, 0.1, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(values[-3:], np.float32(0.1))


@pytest.mark.parametrize("decay", ["inverse", "linear", "sqrt"])
@pytest.mark.parametrize("decay_fraction", [0.0, 0.1, 0.29, 0.5, 1.0])
def test_wsd_s_follows_its_formula_at_every_step(decay, decay_fraction):
    settings = dict(
        checkpoints=(100, 150, 250), warmup_steps=0, decay_fraction=decay_fraction, min_ratio=0.05, decay=decay
    )
    expected = [reference_wsd_s(t, peak=0.3, **settings) for t in range(300)]
    np.testing.assert_allclose(wsd_s(0.3, **settings)(jnp.arange(300)), expected, rtol=2e-6)


@pytest.mark.parametrize("decay", ["inverse", "linear", "sqrt"])
def test_wsd_follows_its_formula_at_every_step(decay):
    schedule = wsd(0.3, total_steps=200, warmup_steps=30, decay_fraction=0.2, min_ratio=0.1, decay=decay)
    settings = dict(peak=0.3, checkpoints=(200,), warmup_steps=30, decay_fraction=0.2, min_ratio=0.1, decay=decay)
    expected = [reference_wsd_s(t, **settings) for t in range(220)]
    np.testing.assert_allclose(schedule(jnp.arange(220)), expected, rtol=2e-6)


def test_wsd_s_with_one_checkpoint_is_wsd():
    steps = jnp.arange(130)
    one = wsd_s(0.3, checkpoints=(120,), warmup_steps=10, decay_fraction=0.25)
    np.testing.assert_array_equal(one(steps), wsd(0.3, total_steps=120, warmup_steps=10, decay_fraction=0.25)(steps))


def test_decays_of_fifty_fifty_and_a_hundred_steps():
    values = np.asarray(wsd_s(1.0, checkpoints=(500, 1000, 2000), warmup_steps=50)(jnp.arange(2000)))
    decaying = 50 + np.flatnonzero(values[50:] < 1)
    np.testing.assert_array_equal(decaying, [*range(450, 500), *range(950, 1000), *range(1900, 2000)])
    np.testing.assert_array_equal(values[[499, 999, 1999]], np.float32(0.1))
    np.testing.assert_array_equal(values[[500, 1000]], 1)  # at once, without a second warmup
    np.testing.assert_allclose(values[:51], np.minimum(np.arange(1, 52) / 50, 1), rtol=2e-7)


def test_decay_lengths_are_rounded_not_cut():
    """0.29 * 100 is 28.999999999999996 in binary."""
    values = np.asarray(wsd(1.0, total_steps=100, warmup_steps=0, decay_fraction=0.29)(jnp.arange(100)))
    assert (values < 1).sum() == 29


def test_long_runs_keep_single_steps_apart():
    """float32 has no room for step numbers beyond 2^24; the step is subtracted before it is rounded."""
    end = 10**9
    schedule = wsd(1.0, total_steps=end, warmup_steps=0, decay_fraction=4e-9, min_ratio=0.1)
    values = [schedule(t) for t in range(end - 5, end + 1)]
    np.testing.assert_allclose(values, [1, 1 / 3.25, 1 / 5.5, 1 / 7.75, 0.1, 0.1], rtol=1e-6)


def test_cyclic_cosine_follows_its_formula_at_every_step():
    settings = dict(checkpoints=(100, 150, 250), warmup_steps=20, min_ratio=0.1)
    expected = [reference_cyclic_cosine(t, peak=0.3, **settings) for t in range(300)]
    np.testing.assert_allclose(cyclic_cosine(0.3, **settings)(jnp.arange(300)), expected, rtol=1e-5, atol=1e-7)


def test_cyclic_cosine_with_one_checkpoint_is_optax_cosine():
    ours = cyclic_cosine(0.3, checkpoints=(100,), warmup_steps=0, min_ratio=0.2)
    np.testing.assert_allclose(
        ours(jnp.arange(120)), optax.cosine_decay_schedule(0.3, 100, alpha=0.2)(jnp.arange(120)), rtol=1e-5
    )


SCHEDULES = {
    "wsd": lambda peak, **kw: wsd(peak, total_steps=40, warmup_steps=4, decay_fraction=0.25, **kw),
    "wsd_s": lambda peak, **kw: wsd_s(peak, checkpoints=(10, 20, 40), warmup_steps=4, decay_fraction=0.25, **kw),
    "cyclic_cosine": lambda peak, **kw: cyclic_cosine(peak, checkpoints=(10, 20, 40), warmup_steps=4, **kw),
}
every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


@every_schedule
def test_steps_may_be_python_numbers_numpy_arrays_and_traced(make):
    schedule = make(0.3)
    together = schedule(jnp.arange(45))
    assert together.dtype == jnp.float32
    np.testing.assert_array_equal([schedule(t) for t in range(45)], together)
    np.testing.assert_array_equal(schedule(np.arange(45)), together)
    _, scanned = jax.lax.scan(lambda t, _: (t + 1, schedule(t)), 0, length=45)
    np.testing.assert_allclose(scanned, together, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(schedule)(7.0), together[7], rtol=1e-6)


@every_schedule
def test_hyperparameters_may_be_traced(make):
    peaks, ratios = jnp.array([0.1, 0.7]), jnp.array([0.2, 0.01])
    steps = jnp.arange(45)
    mapped = jax.jit(jax.vmap(lambda peak, ratio: make(peak, min_ratio=ratio)(steps)))(peaks, ratios)
    alone = [make(float(peak), min_ratio=float(ratio))(steps) for peak, ratio in zip(peaks, ratios, strict=True)]
    np.testing.assert_allclose(mapped, alone, rtol=2e-6)


def test_decay_fraction_and_warmup_may_be_traced():
    def values(fraction, warmup):
        return wsd_s(1.0, checkpoints=(10, 20, 40), warmup_steps=warmup, decay_fraction=fraction)(jnp.arange(45))

    np.testing.assert_allclose(jax.jit(values)(0.25, 4), values(0.25, 4), rtol=1e-6)


@every_schedule
def test_schedules_join(make):
    joined = optax.join_schedules([make(0.3), make(0.1)], [15])
    values = [joined(t) for t in range(30)]
    np.testing.assert_allclose(values[:15], make(0.3)(jnp.arange(15)), rtol=1e-6)
    np.testing.assert_allclose(values[15:], make(0.1)(jnp.arange(15)), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(decay_fraction=-0.1), "decay_fraction must be in [0, 1], got -0.1"),
        (dict(decay_fraction=1.1), "decay_fraction must be in [0, 1], got 1.1"),
        (dict(min_ratio=0.0), "min_ratio must be in (0, 1], got 0.0"),
        (dict(min_ratio=1.5), "min_ratio must be in (0, 1], got 1.5"),
        (dict(min_ratio=-0.1, decay="linear"), "min_ratio must be in [0, 1], got -0.1"),
        (dict(warmup_steps=-1), "warmup_steps must be in [0, 90], got -1"),
        (dict(warmup_steps=91), "warmup_steps must be in [0, 90], got 91"),
        (dict(checkpoints=()), "checkpoints must be increasing positive step counts, got ()"),
        (dict(checkpoints=(0, 10)), "checkpoints must be increasing positive step counts, got (0, 10)"),
        (dict(checkpoints=(20, 10)), "checkpoints must be increasing positive step counts, got (20, 10)"),
    ],
)
def test_bad_hyperparameters_of_wsd_s_are_named(change, message):
    with pytest.raises(ValueError, match="must be") as error:
        wsd_s(0.1, **{"checkpoints": (100, 200), "warmup_steps": 10, **change})
    assert str(error.value) == message


def test_bad_hyperparameters_of_wsd_and_cyclic_cosine_are_named():
    with pytest.raises(ValueError, match=r"total_steps must be in \[1, inf\), got 0"):
        wsd(0.1, total_steps=0, warmup_steps=0)
    with pytest.raises(ValueError, match=r"min_ratio must be in \[0, 1\], got 2"):
        cyclic_cosine(0.1, checkpoints=(10,), warmup_steps=0, min_ratio=2)
    with pytest.raises(ValueError, match=r"warmup_steps must be in \[0, 9\], got 10"):
        cyclic_cosine(0.1, checkpoints=(10,), warmup_steps=10)
    with pytest.raises(ValueError, match="checkpoints must be increasing"):
        cyclic_cosine(0.1, checkpoints=(10, 10), warmup_steps=0)


def test_linear_and_sqrt_decay_to_zero():
    for decay in ("linear", "sqrt"):
        schedule = wsd(1.0, total_steps=10, warmup_steps=0, decay_fraction=0.5, min_ratio=0.0, decay=decay)
        assert schedule(9) == 0
        assert schedule(8) > 0


class TestInTheRiverValley:
    """The paper's theory: progress is the sum of the learning rates, and the last ones decide the oscillation."""

    SLOPE, SHARPNESS = 0.5, 2.0

    def test_decaying_for_a_tenth_costs_little_progress(self):
        schedule = wsd(1.0, total_steps=100_000, warmup_steps=0, decay_fraction=0.1, min_ratio=0.1)
        np.testing.assert_allclose(schedule(jnp.arange(100_000)).mean(), 0.9 + 0.1 * np.log(10) / 9, atol=1e-5)
        cosine = cyclic_cosine(1.0, checkpoints=(100_000,), warmup_steps=0, min_ratio=0.1)
        np.testing.assert_allclose(cosine(jnp.arange(100_000)).mean(), 0.55, atol=1e-5)

    def descend(self, schedule, *, steps, walkers=4000):
        settings = dict(sharpness=self.SHARPNESS, slope=self.SLOPE)
        optimizer = optax.sgd(schedule)

        def step(carry, key):
            params, state = carry
            gradients = jax.grad(lambda p: river_valley_loss(p, **settings).sum())(params)
            gradients += jnp.array([0.0, 1.0]) * jax.random.normal(key, params.shape)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.zeros([walkers, 2])
        keys = jax.random.split(jax.random.key(0), steps)
        (params, _), _ = jax.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), keys))()
        return params

    @pytest.mark.parametrize("learning_rate", [0.05, 0.4])
    def test_oscillation_settles_at_its_stationary_variance(self, learning_rate):
        y = np.asarray(self.descend(optax.constant_schedule(learning_rate), steps=200))[:, 1]
        variance = learning_rate / (self.SHARPNESS * (2 - learning_rate * self.SHARPNESS))
        np.testing.assert_allclose(np.mean(y**2), variance, rtol=5 * np.sqrt(2 / len(y)))

    def test_progress_is_slope_times_the_sum_of_learning_rates(self):
        schedule = wsd_s(0.3, checkpoints=(40, 80), warmup_steps=5, decay_fraction=0.5)
        params = self.descend(schedule, steps=80, walkers=3)
        rates = sum(reference_wsd_s(
            t, peak=0.3, checkpoints=(40, 80), warmup_steps=5, decay_fraction=0.5, min_ratio=0.1, decay="inverse"
        ) for t in range(80))  # fmt: skip
        np.testing.assert_allclose(params[:, 0], self.SLOPE * rates, rtol=1e-5)
        river, _ = river_progress(params, sharpness=self.SHARPNESS, slope=self.SLOPE)
        np.testing.assert_allclose(river, -(self.SLOPE**2) * rates, rtol=1e-5)

    def test_decay_lowers_the_loss_by_the_oscillation(self):
        """After a constant learning rate the hill's part of the loss is E[h y^2 / 2] = lr / (2 (2 - lr h))."""
        settings = dict(sharpness=self.SHARPNESS, slope=self.SLOPE)
        schedule = wsd(0.4, total_steps=300, warmup_steps=0, decay_fraction=0.2, min_ratio=0.1)
        before = river_progress(self.descend(schedule, steps=240), **settings)[1].mean()
        after = river_progress(self.descend(schedule, steps=300), **settings)[1].mean()
        np.testing.assert_allclose(before, 0.4 / (2 * 1.2), rtol=0.1)
        assert after < 0.25 * before


def test_a_run_resumes_from_a_decayed_checkpoint(tmp_path):
    """WSD-S trains on from the decayed weights: nothing but parameters and optimizer state is needed to do so."""
    checkpoints = (10, 20, 40)
    optimizer = optax.adam(wsd_s(0.1, checkpoints=checkpoints, warmup_steps=3, decay_fraction=0.4))
    step = jax.jit(lambda params, state: optimizer.update(2 * params, state, params))

    def run(params, state, steps):
        for _ in range(steps):
            updates, state = step(params, state)
            params = optax.apply_updates(params, updates)
        return params, state

    start = jnp.array([3.0, -2.0])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "decayed", run(start, optimizer.init(start), checkpoints[0]))
        checkpointer.wait_until_finished()
        decayed = checkpointer.restore(tmp_path / "decayed", jax.eval_shape(lambda: (start, optimizer.init(start))))
    rate = optax.tree.get(decayed[1], "count", filtering=lambda path, _: "Schedule" in str(path))
    assert rate == checkpoints[0]  # the next step runs at the peak again
    resumed = run(*decayed, checkpoints[-1] - checkpoints[0])
    straight = run(start, optimizer.init(start), checkpoints[-1])
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
