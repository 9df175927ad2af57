"""Reliable evaluation: which aggregate of a few runs says what many runs would say?

A benchmark of 26 tasks whose scores have long tails, two of the tasks outliers in scale. 10 000 runs of each task give
the true values; from 3, 5 or 10 runs they are estimated, again and again. One seed is one such benchmark, and one run
serves all statistics.
"""

import jax
import jax.numpy as jnp

from experiments.harness.claim import Claim, Comparison, Criterion
from jaxreg.metrics import interval, iqm, mean, median, stratified_bootstrap

TASKS, TRUE_RUNS = 26, 10_000
FEW = (3, 5, 10)
BOOTSTRAP_REPS = 200
BETTER_BY = 1.15
STATISTICS = {"iqm": iqm, "median": median, "mean": mean}

CLAIM = Claim(
    slug="rliable",
    paper="Deep Reinforcement Learning at the Edge of the Statistical Precipice",
    arxiv="2108.13264",
    says="From 3 to 10 runs, the variance of the interquartile mean is at least 1.2 times smaller than that of the "
    "median; the percentile interval of the former covers the true value in 90 to 97% of the cases at 10 runs; and "
    "a comparison of medians picks the wrong one of two algorithms more often.",
    metric="variance of the estimate (geometric mean over 3, 5 and 10 runs)",
    better="lower",
    worst=1e3,
    min_effect=1 - 1 / 1.2,
    score="variance",
    also=(
        Criterion(
            metric="distance of the interval's coverage from 93.5%",
            better="lower",
            worst=1.0,
            margin=0.035,
            relative=False,
            score="coverage_error",
            baselines=("perfect_interval",),
        ),
        Criterion(
            metric="wrong picks between an algorithm and one that is 15% better",
            better="lower",
            worst=1.0,
            min_effect=0.0,
            score="wrong_picks",
        ),
    ),
    method="iqm",
    baselines=("median",),
    beside=(Comparison("against the mean", baselines=("mean",)),),
    same_runs=True,
    steps=500,
    smoke_steps=8,
    seeds=8,
)


def run(key, *, steps):
    """Estimates the true values of one benchmark ``steps`` times from each number of runs."""
    key_tasks, key_true, key_few, key_cover = jax.random.split(key, 4)
    location, spread = jax.random.normal(key_tasks, [2, TASKS])
    location = (0.7 * location - 0.5).at[:2].set(jnp.array([3.0, -4.0]))
    spread = 0.3 + 0.5 * jax.nn.sigmoid(spread)

    def sample(key, runs):
        return jnp.exp(location + spread * jax.random.normal(key, [runs, TASKS]))

    truth = {name: f(sample(key_true, TRUE_RUNS)) for name, f in STATISTICS.items()}

    def estimates(key, runs):
        """Of both algorithms; that of the second one's true value is BETTER_BY times the first one's."""
        key_a, key_b = jax.random.split(key)
        a, b = sample(key_a, runs), BETTER_BY * sample(key_b, runs)
        return {name: (f(a), f(b)) for name, f in STATISTICS.items()}

    repeated = [
        jax.vmap(lambda k, runs=runs: estimates(k, runs))(jax.random.split(jax.random.fold_in(key_few, runs), steps))
        for runs in FEW
    ]
    variance = {name: jnp.exp(jnp.mean(jnp.log(jnp.array([r[name][0].var() for r in repeated])))) for name in truth}
    wrong_picks = {name: jnp.mean(jnp.array([(r[name][0] >= r[name][1]).mean() for r in repeated])) for name in truth}

    def covered(key):
        key_sample, key_bootstrap = jax.random.split(key)
        scores = sample(key_sample, FEW[-1])
        low, high = interval(stratified_bootstrap(key_bootstrap, scores, iqm, reps=BOOTSTRAP_REPS))
        return (low <= truth["iqm"]) & (truth["iqm"] <= high)

    coverage = jax.lax.map(covered, jax.random.split(key_cover, steps)).mean()
    return {
        "variance": variance,
        "coverage_error": {"iqm": jnp.abs(coverage - 0.935), "perfect_interval": 0.0 * coverage},
        "wrong_picks": wrong_picks,
        "coverage": {"iqm": coverage},
        "bias": {name: jnp.mean(repeated[0][name][0]) - truth[name] for name in truth},
    }
