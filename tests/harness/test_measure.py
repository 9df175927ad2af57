"""The harness on claims whose outcome is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness.claim import Claim, Comparison, Criterion
from experiments.harness.measure import measure

BEST = {"good": 0.1, "bad": 1.0}


def claim(**changes):
    fields = dict(
        slug="example",
        paper="An example",
        arxiv="0000.00000",
        says="good beats bad",
        metric="loss",
        better="lower",
        worst=50.0,
        min_effect=0.1,
        method="good",
        baselines=("bad",),
        grid={"learning_rate": (0.01, 0.1, 1.0)},
        steps=7,
    )
    return Claim(**{**fields, **changes})


def run(key, arm, *, learning_rate, steps, gain=2.0, extra=0.0):
    """Best at BEST[arm]; seeds differ by a number that both arms share."""
    seed_effect = jax.random.uniform(key)
    loss = 10 + seed_effect + jnp.square(jnp.log10(learning_rate / BEST[arm])) - gain * (arm == "good") + extra
    return {"score": loss, "curve": jnp.linspace(20, loss, 4), "steps_seen": jnp.float32(steps)}


def uniforms(stream, seeds):
    return [float(jax.random.uniform(jax.random.fold_in(jax.random.key(stream), i))) for i in seeds]


def test_every_arm_gets_its_own_best_point_and_fresh_seeds():
    result = measure(claim(), run, seeds=6, seed_offset=3)
    arms = result["criteria"][0]["arms"]
    assert arms["good"]["tuned"] == {"learning_rate": 0.1}
    assert arms["bad"]["tuned"] == {"learning_rate": 1.0}
    measured = np.array(uniforms(0, range(3, 9)))
    np.testing.assert_allclose(arms["bad"]["scores"], 10 + measured, rtol=1e-6)
    np.testing.assert_allclose(arms["good"]["scores"], 8 + measured, rtol=1e-6)
    assert result["verdict"] == "holds"
    assert result["criteria"][0]["strongest"] == "bad"
    assert arms["good"]["figures"]["steps_seen"] == result["steps"] == 7
    assert [len(curve) for curve in result["curves"].values()] == [3, 3]


def test_learning_curves_are_kept_of_the_claim_and_of_what_asks_for_them():
    beside = (
        Comparison("on Mars", settings={"extra": 1.0, "learning_rate": 1.0}, curves=True),
        Comparison("on Venus", settings={"extra": 2.0}),
    )
    result = measure(claim(beside=beside), run, seeds=1)
    mars, venus = result["beside"]
    last = 11 + uniforms(0, [0])[0]  # of the baseline, whose best rate is 1
    for quartile in mars["curves"]["bad"]:
        np.testing.assert_allclose(quartile, np.linspace(20, last, 4), atol=1e-4)
    np.testing.assert_allclose(result["curves"]["bad"][1][-1], last - 1, atol=1e-4)
    assert list(mars["curves"]) == ["bad", "good"]
    assert "curves" not in venus


def test_fewer_seeds_are_a_prefix_of_more():
    few, more = (measure(claim(), run, seeds=seeds)["criteria"][0]["arms"]["good"]["scores"] for seeds in (3, 6))
    np.testing.assert_allclose(more[:3], few, rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_results_do_not_depend_on_the_number_of_devices(devices):
    one = measure(claim(), run, seeds=4, devices=jax.devices()[:1])
    several = measure(claim(), run, seeds=4, devices=jax.devices()[:devices])
    assert several["devices"].startswith(f"{devices} x")
    for arm in ("good", "bad"):
        np.testing.assert_allclose(
            several["criteria"][0]["arms"][arm]["scores"], one["criteria"][0]["arms"][arm]["scores"], rtol=1e-6
        )


def test_every_arm_is_traced_once_whatever_takes_part():
    traces = []

    @functools.wraps(run)
    def counted(key, arm, **settings):
        traces.append(arm)
        return run(key, arm, **settings)

    beside = (Comparison("harder", settings={"extra": 1.0}), Comparison("weaker", method="weak"))
    measure(claim(beside=beside, variants={"weak": ("good", {"gain": 0.0})}), counted, seeds=5)
    assert sorted(traces) == ["bad", "good"]


def test_comparisons_beside_have_their_own_effect_and_no_part_in_the_verdict():
    beside = (
        Comparison("harder for all", settings={"extra": 10.0}),
        Comparison("without its gain", method="weak"),
    )
    result = measure(claim(beside=beside, variants={"weak": ("good", {"gain": 0.0})}), run, seeds=4)
    harder, weak = result["beside"]
    assert harder["settings"] == {"extra": 10.0}
    seeds = np.array(uniforms(0, range(4)))
    np.testing.assert_allclose(harder["effect"], 2 / (20 + np.sort(seeds)[1:3].mean()), rtol=1e-5)
    np.testing.assert_allclose(weak["effect"], 0.0, atol=1e-6)
    assert weak["verdict"] == "fails"
    assert result["verdict"] == "holds"


def test_a_comparison_can_fix_what_is_tuned_otherwise():
    beside = (Comparison("both at 0.01", settings={"learning_rate": 0.01}),)
    (fixed,) = measure(claim(beside=beside), run, seeds=4)["beside"]
    seeds = np.array(uniforms(0, range(4)))
    np.testing.assert_allclose(fixed["arms"]["good"]["scores"], 8 + 1 + seeds, rtol=1e-6)
    np.testing.assert_allclose(fixed["arms"]["bad"]["scores"], 10 + 4 + seeds, rtol=1e-6)


def test_the_axis_of_a_claim_is_averaged_over_and_not_tuned():
    result = measure(claim(grid={}, axis={"learning_rate": (0.1, 1.0)}), run, seeds=4)
    arms = result["criteria"][0]["arms"]
    assert arms["good"]["tuned"] == {}
    np.testing.assert_allclose(arms["good"]["scores"], 8.5 + np.array(uniforms(0, range(4))), rtol=1e-6)


def test_a_condition_can_fix_the_axis_of_a_claim():
    beside = (Comparison("at the lower rate", settings={"learning_rate": 0.1}),)
    (fixed,) = measure(claim(grid={}, axis={"learning_rate": (0.1, 1.0)}, beside=beside), run, seeds=4)["beside"]
    alone = measure(claim(grid={}, axis={"learning_rate": (0.1,)}), run, seeds=4)["criteria"][0]
    assert fixed["arms"]["good"]["scores"] == alone["arms"]["good"]["scores"]


def test_non_inferiority():
    def same(key, arm, **settings):
        return run(key, "bad", **settings)

    result = measure(claim(min_effect=None, margin=0.01), same, seeds=4)
    assert result["effect"] == 0.0
    assert result["verdict"] == "holds"


def test_a_diverged_run_scores_worst_in_tuning_and_measuring():
    def diverging(key, arm, *, learning_rate, steps):
        figures = run(key, arm, learning_rate=learning_rate, steps=steps)
        # The baseline's best learning rate diverges for some seeds, the method's for none.
        lost = (arm == "bad") & (learning_rate > 0.5) & (jax.random.uniform(key) < 0.5)
        return {**figures, "score": jnp.where(lost, jnp.nan, figures["score"])}

    assert min(uniforms(1, range(4))) < 0.5, "the tuning seeds have to contain a diverging one"
    result = measure(claim(), diverging, seeds=8)
    assert result["criteria"][0]["arms"]["bad"]["tuned"] == {"learning_rate": 0.1}

    def lost_everywhere(key, arm, **settings):
        figures = run(key, arm, **settings)
        return {**figures, "score": jnp.where(arm == "bad", jnp.nan, figures["score"])}

    bad = measure(claim(), lost_everywhere, seeds=4)["criteria"][0]["arms"]["bad"]
    assert bad["diverged"] == 4
    assert bad["scores"] == [50.0] * 4


def test_tuning_can_look_at_another_figure():
    def with_held_out(key, arm, *, learning_rate, steps):
        figures = run(key, arm, learning_rate=learning_rate, steps=steps)
        return {**figures, "held_out": learning_rate}

    result = measure(claim(tuned_on=("held_out", "higher")), with_held_out, seeds=2)
    assert {a["tuned"]["learning_rate"] for a in result["criteria"][0]["arms"].values()} == {1.0}


def test_a_further_criterion_can_have_its_own_tuning_and_refute_the_claim():
    def with_error(key, arm, *, learning_rate, steps):
        figures = run(key, arm, learning_rate=learning_rate, steps=steps)
        return {**figures, "error": learning_rate + 0.1 * (arm == "good")}

    error = Criterion("error", "lower", 1.0, margin=0.01, relative=False, score="error", tuned_on=("error", "lower"))
    result = measure(claim(also=(error,)), with_error, seeds=4)
    first, second = result["criteria"]
    assert first["verdict"] == "holds"
    assert {a["tuned"]["learning_rate"] for a in second["arms"].values()} == {0.01}
    assert second["verdict"] == result["verdict"] == "fails"


def test_methods_after_training_share_their_runs_tuned_for_the_strongest_baseline():
    calls = []

    def shared(key, *, learning_rate, steps):
        calls.append(1)
        arms = ("weak", "bad", "good")
        losses = {"weak": 30.0, "bad": 10 + jnp.square(jnp.log10(learning_rate)), "good": 5 + learning_rate}
        return {"score": {arm: losses[arm] + jax.random.uniform(key) for arm in arms}}

    result = measure(claim(same_runs=True, baselines=("weak", "bad")), shared, seeds=4)
    assert len(calls) == 1
    arms = result["criteria"][0]["arms"]
    assert {a["tuned"]["learning_rate"] for a in arms.values()} == {1.0}
    np.testing.assert_allclose(arms["good"]["scores"], 6 + np.array(uniforms(0, range(4))), rtol=1e-6)


def test_methods_after_training_share_their_runs_with_what_is_beside_the_claim():
    def shared(key, *, learning_rate, steps):
        losses = {"bad": jnp.square(jnp.log10(learning_rate)), "other": 1 / learning_rate, "good": 5 + learning_rate}
        return {"score": {arm: 10 - 0 * jax.random.uniform(key) + losses[arm] for arm in losses}}

    beside = (Comparison("against another", baselines=("other",)), Comparison("the other", ("bad",), "other"))
    grid = {"learning_rate": (0.1, 1.0, 10.0)}  # 1 is best for the baseline, 10 for the other
    result = measure(claim(same_runs=True, beside=beside, grid=grid), shared, seeds=2)
    arms = [arm for judged in (*result["criteria"], *result["beside"]) for arm in judged["arms"].values()]
    assert {arm["tuned"]["learning_rate"] for arm in arms} == {1.0}


def test_progress_is_reported_and_ends_at_the_total():
    reports = []
    measure(claim(), run, seeds=4, on_batch=lambda *report: reports.append(report))
    assert reports[0] == ("bad, tuning", 0, 2 * (3 * 4 + 4))
    assert reports[-1] == ("good, measuring", 32, 32)


def test_a_setting_that_run_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"run\(\) has no argument momentum"):
        measure(claim(grid={"momentum": (0.1,)}), run, seeds=2)


def test_a_figure_that_run_does_not_return_is_named():
    with pytest.raises(KeyError, match="no figure 'accuracy'"):
        measure(claim(score="accuracy"), run, seeds=2)


def test_a_smoke_run_takes_its_own_sizes_and_a_measurement_the_defaults():
    sizes = []

    def sized(key, arm, *, samples=100, **settings):
        sizes.append(samples)
        return run(key, arm, **settings)

    measure(claim(smoke_sizes={"samples": 3}), sized, smoke=True)
    assert sizes == [3, 3]  # one for each arm
    measure(claim(smoke_sizes={"samples": 3}), sized, seeds=2, devices=jax.devices()[:1])
    assert sizes[2:] == [100, 100]


def test_a_smoke_size_that_run_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"run\(\) has no argument samples"):
        measure(claim(smoke_sizes={"samples": 3}), run, smoke=True)


def test_a_smoke_run_tries_both_ends_of_the_grid_with_one_seed_on_one_device():
    reports = []
    measure(claim(), run, smoke=True, on_batch=lambda *report: reports.append(report), devices=jax.devices()[:2])
    assert reports[-1] == ("good, measuring", 8, 8)  # of each arm two tuning runs and two measured ones
    result = measure(claim(), run, smoke=True)
    assert result["devices"].startswith("1 x ")
    assert result["criteria"][0]["arms"]["bad"]["tuned"] == {"learning_rate": 1.0}  # the best of the whole grid is last


def test_a_smoke_run_is_short_and_says_so():
    result = measure(claim(beside=(Comparison("more"),)), run, smoke=True)
    assert (result["smoke"], result["seeds"], result["steps"], result["beside"]) == (True, 2, 4, [])


def test_a_claim_for_one_device_runs_on_one():
    assert measure(claim(one_device=True), run, devices=jax.devices()[:2])["devices"].startswith("1 x ")
    assert measure(claim(), run, devices=jax.devices()[:2])["devices"].startswith("2 x ")
