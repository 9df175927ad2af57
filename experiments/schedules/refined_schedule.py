"""Refinement: logistic regressions by SGD, the schedule made of the gradient norms of a first run with linear decay.

Two problems are real, two have features whose scales are heavy-tailed. Each has scikit-learn's customary penalty,
without which the real ones, being separable, have no minimum. The harness tunes one learning rate for all problems;
here every problem and schedule needs its own, so each measured run tunes it first, on four runs with other draws.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets

from experiments.harness.claim import Claim, Comparison
from jaxreg.schedules import as_schedule, linear_decay, refine_schedule

BATCH, TUNING_RUNS = 16, 4
LEARNING_RATES = 2.0 ** np.arange(-7, 5)
PROBLEMS = ("breast_cancer", "wine", "pareto", "lognormal")

CLAIM = Claim(
    slug="refined_schedule",
    paper="When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement",
    arxiv="2310.07831",
    says="Averaged over four logistic regressions, the logarithm of the excess training loss of SGD's last iterate is "
    "lower with the schedule refined from the gradient norms of a run with linear decay than with linear decay.",
    metric="log excess training loss",
    better="lower",
    worst=float(np.log(np.log(2))),
    min_effect=0.0,
    relative=False,
    method="refined",
    baselines=("linear",),
    variants={"refined_power_1": ("refined", {"power": 1.0})},
    beside=(
        *(
            Comparison(f"{name} alone", settings={"problem": position}, baselines=("linear",))
            for position, name in enumerate(PROBLEMS)
        ),
        Comparison("linear decay against cosine", method="linear", baselines=("cosine",)),
        Comparison("refined against cosine", baselines=("cosine",)),
        Comparison("refined with weights 1/G, not 1/G^2, against linear decay", method="refined_power_1"),
        Comparison("refined, at its peak from the start, against linear decay", method="refined_without_warmup"),
    ),
    finding="Refinement is worse than linear decay on average and better on none of the problems. Gradient norms fall "
    "early, because the iterate approaches the minimum, and refinement answers with a warmup for a seventh to a third "
    "of the run. That is a part of the reason only: without the warmup it remains worse, and it is the less bad the "
    "smaller the power of the norms in its weights. Why its annealing is worse too is open.",
    steps=1000,
    seeds=16,
)


@functools.cache
def load(name):
    """Features with a constant one, labels -1 or 1, and the least penalized loss."""
    if name == "breast_cancer":
        x, y = sklearn.datasets.load_breast_cancer(return_X_y=True)
        x = (x - x.mean(0)) / x.std(0)
    elif name == "wine":
        x, y = sklearn.datasets.load_wine(return_X_y=True)
        x, y = (x - x.mean(0)) / x.std(0), y == 1
    else:
        rng = np.random.default_rng(0)
        z, direction = rng.normal(size=(1000, 20)), rng.normal(size=20)
        scales = rng.pareto(1.5, size=20) + 1 if name == "pareto" else rng.lognormal(sigma=1.5, size=20)
        x = z * scales / np.sqrt(np.mean(scales**2))
        y = rng.random(1000) < 1 / (1 + np.exp(-2 * z @ direction / np.linalg.norm(direction)))
    x, y = np.c_[x, np.ones(len(x))], np.where(y, 1.0, -1.0)
    # Newton's method in float64: the excess loss can be small.
    w, n = np.zeros(x.shape[1]), len(x)
    value = np.inf
    for _ in range(100):
        p = 1 / (1 + np.exp(y * (x @ w)))
        gradient, hessian = w / n - x.T @ (y * p) / n, np.eye(len(w)) / n + (x.T * (p * (1 - p))) @ x / n
        value, before = np.mean(np.logaddexp(0, -y * (x @ w))) + w @ w / (2 * n), value
        if before - value < 1e-15:
            break
        w = w - np.linalg.solve(hessian, gradient)
    return x.astype(np.float32), y.astype(np.float32), value


def excess(problem, w, rows=slice(None)):
    """Mean loss on some of the examples and penalty, less the least that is possible on all."""
    x, y, least = load(problem)
    margins = jnp.asarray(y)[rows] * (jnp.asarray(x)[rows] @ w)
    return jax.nn.softplus(-margins).mean() + jnp.sum(w**2) / (2 * len(x)) - least


def descend(key, problem, schedule, steps):
    """SGD from zero: the last iterate's log excess loss, and the norms of the gradients it met."""
    x, _, _ = load(problem)

    def step(w, n):
        rows = jax.random.randint(jax.random.fold_in(key, n), [BATCH], 0, len(x))
        gradient = jax.grad(lambda w: excess(problem, w, rows))(w)
        return w - schedule(n) * gradient, jnp.linalg.norm(gradient)

    w, norms = jax.lax.scan(step, jnp.zeros(x.shape[1]), jnp.arange(steps))
    return jnp.log(excess(problem, w)), norms


def tune(key, problem, schedule_of, steps):
    """The best of the learning rates for a schedule."""
    grid = jnp.asarray(LEARNING_RATES, jnp.float32)

    def score(key, learning_rate):
        return descend(key, problem, schedule_of(learning_rate), steps)[0]

    scores = jax.vmap(jax.vmap(score, (None, 0)), (0, None))(jax.random.split(key, TUNING_RUNS), grid)
    return grid[jnp.argmin(jnp.where(jnp.isfinite(scores), scores, CLAIM.worst).mean(0))]


def run(key, arm, *, steps, problem=-1, power=2.0):
    """Solves every problem once; the score is that of one of them, or by default the mean of all."""
    scores, figures = [], {}
    for name in PROBLEMS:
        key_tune, key_probe, key_run = jax.random.split(key, 3)
        if arm == "cosine":
            schedule_of = functools.partial(optax.cosine_decay_schedule, decay_steps=steps)
        else:
            schedule_of = functools.partial(linear_decay, total_steps=steps)
        learning_rate = tune(key_tune, name, schedule_of, steps)
        if arm.startswith("refined"):
            _, norms = descend(key_probe, name, schedule_of(learning_rate), steps)
            values = refine_schedule(norms, power=power)
            if arm == "refined_without_warmup":
                values = jnp.where(jnp.arange(steps) < jnp.argmax(values), 1.0, values)
            schedule_of = functools.partial(as_schedule, values)
            learning_rate = tune(key_tune, name, schedule_of, steps)
            figures[f"{name}_peak_at"] = jnp.argmax(values) / steps
        scores.append(descend(key_run, name, schedule_of(learning_rate), steps)[0])
        figures |= {name: scores[-1], f"{name}_log2_learning_rate": jnp.log2(learning_rate)}
    scores = jnp.stack(scores)
    return {"score": jnp.where(problem < 0, scores.mean(), scores[problem]), **figures}
