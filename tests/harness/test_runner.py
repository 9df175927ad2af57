"""Runs on a CPU are executed one after the other, elsewhere vmapped: the same figures, for every claim."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import registry
from experiments.harness.measure import Plan
from experiments.harness.runner import MEASURING, TUNING, Runner

STREAMS, SEEDS = jnp.array([TUNING, MEASURING, MEASURING]), jnp.array([0, 0, 7])


def runner_of(slug, *, batch):
    """A runner as a smoke run has it on one device, and runs of the claimed method."""
    claim, run = registry.find(slug).load()
    plan = Plan(claim, run, seed_offset=0, smoke=True)
    runner = Runner(
        claim,
        functools.partial(run, **claim.smoke_sizes),
        steps=claim.smoke_steps,
        batch=batch,
        devices=jax.devices()[:1],
        on_batch=lambda what, done, total: None,
    )
    *_, case = plan.cases(plan.main, claim)
    (one, *_), *_ = plan.runs(case, plan.points(case)[0], MEASURING, 1)
    return runner, [
        one._replace(stream=int(stream), seed=int(seed)) for stream, seed in zip(STREAMS, SEEDS, strict=True)
    ]


@pytest.mark.parametrize("slug", ["wsd_s", "corrupted_grokking"])  # an arm for each run, and one run for all arms
def test_vmapped_runs_have_the_figures_of_runs_one_after_the_other(slug):
    one_by_one, runs = runner_of(slug, batch=1)
    together, _ = runner_of(slug, batch=len(SEEDS))
    assert (one_by_one.batch, together.batch) == (1, len(SEEDS))
    one_by_one.execute(runs)
    together.execute(runs)
    assert list(one_by_one.done) == list(together.done) == runs
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    for run in runs:
        jax.tree.map(close, one_by_one.done[run], together.done[run])
    scores = [jax.tree.leaves(one_by_one.done[run])[0] for run in runs]
    assert not np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[1], scores[2])


@pytest.mark.parametrize("slug", registry.entries())
def test_runs_of_every_claim_can_be_vmapped(slug):
    runner, runs = runner_of(slug, batch=len(SEEDS))
    settings = {name: jnp.full(len(SEEDS), value) for name, value in runs[0].settings}
    together = jax.vmap(functools.partial(runner.run_once, runs[0].arm))
    figures = jax.eval_shape(together, STREAMS, SEEDS, settings)
    assert jax.tree.leaves(figures)
    assert all(figure.shape[0] == len(SEEDS) for figure in jax.tree.leaves(figures))
