"""Measures a claim: tunes every arm alike, runs fresh paired seeds, judges."""

import dataclasses
import functools
import inspect
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.harness import statistics
from experiments.harness.claim import Claim, Comparison, Criterion, Direction, points
from experiments.harness.results import environment
from experiments.harness.runner import MEASURING, TUNING, OnBatch, Run, RunFunction, Runner


class Case(NamedTuple):
    """What an arm is tuned for: a figure, under a condition."""

    arm: str
    figure: str
    better: Direction
    settings: tuple[tuple[str, float], ...]


Tuned = Mapping[Case, Mapping[str, float]]
"""The hyperparameters chosen for each case."""


class Plan:
    """Which runs a claim consists of."""

    def __init__(self, claim: Claim, run: RunFunction, *, seed_offset: int, smoke: bool):
        self.claim = claim
        self.seed_offset = seed_offset
        self.smoke = smoke
        self.main = Comparison(says=claim.says)
        self.beside = () if smoke else claim.beside
        parameters = inspect.signature(run).parameters
        self.defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        # Whatever is set anywhere is an argument everywhere, so that an arm compiles once.
        self.names = {name for arm in claim.arms for name in (*claim.grid_of(arm), *claim.resolve(arm)[1])}
        self.names |= {*claim.axis, *(name for comparison in self.beside for name in comparison.settings)}
        unknown = sorted((self.names | set(claim.smoke_sizes)) - set(parameters))
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise ValueError(f"{claim.slug}: run() has no argument {', '.join(unknown)}; it takes {list(parameters)}")

    def judgements(self) -> Iterator[tuple[Comparison, Criterion]]:
        """Everything that gets an effect: all criteria on the claim itself, and those with its rivals on the rest."""
        yield from ((self.main, criterion) for criterion in self.claim.criteria)
        shared = (self.claim, *(criterion for criterion in self.claim.also if criterion.baselines is None))
        yield from ((comparison, criterion) for comparison in self.beside for criterion in shared)

    def cases(self, comparison: Comparison, criterion: Criterion) -> list[Case]:
        """Who is compared, the method last."""
        baselines = comparison.baselines or criterion.baselines or self.claim.baselines
        figure, better = self.claim.tuning_figure(criterion)
        settings = tuple(sorted(comparison.settings.items()))
        return [Case(arm, figure, better, settings) for arm in (*baselines, comparison.method or self.claim.method)]

    def all_cases(self) -> list[Case]:
        """Every case once."""
        return list(dict.fromkeys(case for judgement in self.judgements() for case in self.cases(*judgement)))

    def points(self, case: Case) -> list[dict[str, float]]:
        """What is tried: the arm's grid, but for what the condition fixes; of it two ends are enough to see it run."""
        fixed = dict(case.settings)
        found = points({name: grid for name, grid in self.claim.grid_of(case.arm).items() if name not in fixed})
        return [found[0], *found[1:][-1:]] if self.smoke else found

    def runs(self, case: Case, point: Mapping[str, float], stream: int, seeds: int) -> list[list[Run]]:
        """One run per point of the axis, but for what the condition fixes (rows), and seed (columns)."""
        arm, variant = self.claim.resolve(case.arm)
        fixed = dict(case.settings)
        rows = []
        for position in points({name: values for name, values in self.claim.axis.items() if name not in fixed}):
            given = {**self.defaults, **variant, **fixed, **point, **position}
            missing = sorted(self.names - set(given))
            if missing:
                raise ValueError(f"{self.claim.slug}: arm {case.arm!r} leaves {missing} without a value")
            settings = tuple((name, given[name]) for name in sorted(self.names))
            name = "" if self.claim.same_runs else arm
            rows.append([Run(name, stream, self.seed_offset + seed, settings) for seed in range(seeds)])
        return rows


def measure(
    claim: Claim,
    run: RunFunction,
    *,
    seeds: int | None = None,
    seed_offset: int = 0,
    smoke: bool = False,
    devices: Sequence[jax.Device] | None = None,
    on_batch: OnBatch = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measures a claim and returns everything that is worth keeping, ready for JSON.

    Args:
        claim: what is claimed.
        run: ``run(key, arm, *, steps, **settings) -> figures``.
        seeds: measured runs per arm; the claim's own number by default.
        seed_offset: first seed, of tuning and of measuring.
        smoke: a few steps of two seeds on one device, tuned on two points of the grid and one seed, without the
            comparisons beside, to see that the claim runs. Says nothing else.
        devices: devices to split the runs over; all by default.
        on_batch: told about progress.
    """
    start = time.perf_counter()
    seeds = 2 if smoke else seeds or claim.seeds
    tuning_seeds = 1 if smoke else claim.tuning_seeds
    steps = claim.smoke_steps if smoke else claim.steps
    devices = (devices or jax.devices())[: 1 if claim.one_device or smoke else None]
    plan = Plan(claim, run, seed_offset=seed_offset, smoke=smoke)
    if smoke:
        run = functools.partial(run, **claim.smoke_sizes)
    # Accelerators take all seeds at once, a core of a CPU one run at a time: vmapped, 25 claims took 1.17 times as long
    # on two cores, and 1.57 times as long to compile.
    batch = 1 if devices[0].platform == "cpu" else seeds
    runner = Runner(claim, run, steps=steps, batch=batch, devices=devices, on_batch=on_batch)

    conditions = {(case.arm, case.settings) for case in plan.all_cases()}
    tuned = _tune(plan, runner, tuning_seeds, expected=len(conditions) * seeds * len(points(claim.axis)))
    measured = {case: plan.runs(case, tuned[case], MEASURING, seeds) for case in plan.all_cases()}
    runner.execute(_flat(measured.values()))

    judged = [_judge(plan, runner, *judgement, tuned, measured) for judgement in plan.judgements()]
    criteria, beside = judged[: len(claim.criteria)], judged[len(claim.criteria) :]
    return {
        "slug": claim.slug,
        "title": claim.paper,
        "arxiv": claim.arxiv,
        "claim": claim.says,
        "finding": claim.finding,
        "verdict": statistics.conjunction([criterion["verdict"] for criterion in criteria]),
        "effect": criteria[0]["effect"],
        "interval": criteria[0]["interval"],
        "method": claim.method,
        "criteria": criteria,
        "beside": beside,
        "curves": _curves(plan, runner, measured, plan.main),
        "seeds": seeds,
        "seed_offset": seed_offset,
        "tuning_seeds": tuning_seeds,
        "steps": steps,
        "smoke": smoke,
        "wall_seconds": round(time.perf_counter() - start, 1),
        **environment(devices),
    }


def _flat(tables: Iterable[list[list[Run]]]) -> Iterator[Run]:
    return (run for rows in tables for row in rows for run in row)


def _tune(plan: Plan, runner: Runner, tuning_seeds: int, *, expected: int) -> Tuned:
    """Each case's best grid point. What has one point only is not run."""
    tried = {
        case: [plan.runs(case, point, TUNING, tuning_seeds) for point in plan.points(case)] for case in plan.all_cases()
    }
    runner.execute(_flat(rows for tables in tried.values() if len(tables) > 1 for rows in tables), expected)

    tuned, shared = {}, {}
    for comparison, criterion in plan.judgements():
        cases = plan.cases(comparison, criterion)
        best = {case: _best_point(plan, runner, case, criterion, tried[case]) for case in cases}
        chosen = {case: point for case, (_, point) in best.items()}
        if plan.claim.same_runs:
            # One point in each condition, whoever is compared there: the first judgement is that of the claim.
            strongest = min(cases[:-1], key=lambda case: best[case][0])
            chosen = dict.fromkeys(cases, shared.setdefault(cases[0].settings, chosen[strongest]))
        tuned |= chosen
    return tuned


def _best_point(
    plan: Plan, runner: Runner, case: Case, criterion: Criterion, tables: list[list[list[Run]]]
) -> tuple[float, dict[str, float]]:
    """The point of least loss, the first of them in a tie, and its loss."""
    grid = plan.points(case)
    if len(grid) == 1:
        return 0.0, grid[0]

    def loss(rows):
        values = _values(runner, rows, case.figure, case.arm)
        if case.figure == criterion.score:
            values = statistics.bounded(values, criterion.better, criterion.worst)
        mean = values.mean() if case.better == "lower" else -values.mean()
        return mean if math.isfinite(mean) else math.inf

    return min(((loss(rows), point) for rows, point in zip(tables, grid, strict=True)), key=lambda found: found[0])


def _values(runner: Runner, rows: list[list[Run]], figure: str, arm: str) -> np.ndarray:
    """A figure of the arm, with axes [axis point, seed, ...]."""

    def value(run):
        figures = runner.done[run]
        if figure not in figures:
            raise KeyError(f"{runner.claim.slug}: run() returned no figure {figure!r}, only {sorted(figures)}")
        return figures[figure][arm] if isinstance(figures[figure], dict) else figures[figure]

    return np.array([[value(run) for run in row] for row in rows], dtype=np.float64)


def _judge(
    plan: Plan,
    runner: Runner,
    comparison: Comparison,
    criterion: Criterion,
    tuned: Tuned,
    measured: Mapping[Case, list[list[Run]]],
) -> dict[str, Any]:
    cases = plan.cases(comparison, criterion)
    scores, arms = {}, {}
    for case in cases:
        arm, rows = case.arm, measured[case]
        raw = _values(runner, rows, criterion.score, arm)
        scores[arm] = statistics.bounded(raw, criterion.better, criterion.worst).mean(axis=0)
        score, low, high = statistics.summary(scores[arm])
        arms[arm] = {
            "score": score,
            "interval": [low, high],
            "scores": scores[arm].tolist(),
            "diverged": statistics.count_diverged(raw),
            "tuned": dict(tuned[case]),
            "figures": {
                name: _values(runner, rows, name, arm).mean(axis=(0, 1)).tolist()
                for name, figure in sorted(runner.done[rows[0][0]].items())
                if name not in (criterion.score, "curve") and (not isinstance(figure, dict) or arm in figure)
            },
        }
    *baselines, method = (case.arm for case in cases)
    effects = {arm: statistics.paired_effect(scores[method], scores[arm], criterion) for arm in baselines}
    for arm in baselines:
        arms[arm]["effect"] = effects[arm].effect
    better = min if criterion.better == "lower" else max
    strongest = better(baselines, key=lambda arm: arms[arm]["score"])
    effect = effects[strongest]
    rule = dataclasses.asdict(criterion)
    plotted = comparison.curves and criterion is plan.claim
    return {
        "says": comparison.says,
        "settings": dict(comparison.settings),
        **{name: rule[name] for name in ("metric", "better", "worst", "min_effect", "margin", "relative")},
        "method": method,
        "strongest": strongest,
        "effect": effect.effect,
        "interval": [effect.low, effect.high],
        "probability_of_improvement": effect.probability_of_improvement,
        "verdict": statistics.judge(effect, criterion),
        "arms": arms,
        **({"curves": _curves(plan, runner, measured, comparison)} if plotted else {}),
    }


def _curves(
    plan: Plan, runner: Runner, measured: Mapping[Case, list[list[Run]]], comparison: Comparison
) -> dict[str, list]:
    """Quartiles over seeds of each arm's learning curve: ``{arm: [lower, median, upper]}``."""
    curves, claim = {}, plan.claim
    for case in plan.cases(comparison, claim):
        rows = measured[case]
        if "curve" in runner.done[rows[0][0]]:
            values = statistics.bounded(_values(runner, rows, "curve", case.arm), claim.better, claim.worst)
            curves[case.arm] = np.quantile(values, [0.25, 0.5, 0.75], axis=(0, 1)).round(5).tolist()
    return curves
