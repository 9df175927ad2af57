"""Measures a claim: tunes every arm alike, runs fresh paired seeds, judges.

Every training run is one call of the claim's ``run``. Runs are vmapped in batches of one shape, over seeds and
hyperparameters alike, and each batch is split over the devices. So an arm is compiled once, however many grid points,
seeds, variants and conditions it takes part in. Seed ``i`` is ``fold_in(key, i)`` for every arm: the same data and the
same initial parameters.
"""

import dataclasses
import inspect
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from experiments.harness import statistics
from experiments.harness.claim import Claim, Comparison, Criterion, points
from experiments.harness.results import environment

MEASURING, TUNING = 0, 1
"""Roots of the two disjoint streams of seeds."""

Figures = dict[str, Any]
RunFunction = Callable[..., Mapping[str, Any]]
OnBatch = Callable[[str, int, int], None]
"""Called with what was run, the runs done and the runs expected in all."""


class Run(NamedTuple):
    """One training run, in full: the same value is the same run, and runs only once."""

    arm: str
    stream: int
    seed: int
    settings: tuple[tuple[str, float], ...]


class Runner:
    """Executes runs in batches of one shape, remembering what has been run."""

    def __init__(
        self,
        claim: Claim,
        run: RunFunction,
        *,
        steps: int,
        batch: int,
        devices: Sequence[jax.Device],
        on_batch: OnBatch,
    ):
        self.claim = claim
        self.run = run
        self.steps = steps
        self.batch = len(devices) * math.ceil(batch / len(devices))
        self.mesh = Mesh(np.array(devices), ("runs",))
        self.on_batch = on_batch
        self.done: dict[Run, Figures] = {}
        self.compiled: dict[str, Callable] = {}

    def execute(self, runs: Iterable[Run], expected: int = 0) -> None:
        """Runs whatever is new among ``runs``; ``expected`` further runs are announced to the progress bar."""
        by_arm = defaultdict(list)
        for run in dict.fromkeys(runs):
            if run not in self.done:
                by_arm[run.arm].append(run)
        total = len(self.done) + sum(map(len, by_arm.values())) + expected
        for arm, todo in by_arm.items():
            for start in range(0, len(todo), self.batch):
                label = f"{arm or 'all arms'}, {'tuning' if todo[start].stream == TUNING else 'measuring'}"
                self.on_batch(label, len(self.done), total)
                chunk = todo[start : start + self.batch]
                self._execute_batch(arm, chunk)
                self.on_batch(label, len(self.done), total)

    def _execute_batch(self, arm: str, chunk: list[Run]) -> None:
        padded = chunk + chunk[-1:] * (self.batch - len(chunk))
        names = [name for name, _ in padded[0].settings]
        settings = {n: jnp.asarray([dict(run.settings)[n] for run in padded]) for n in names}
        streams = jnp.asarray([run.stream for run in padded])
        seeds = jnp.asarray([run.seed for run in padded])
        if arm not in self.compiled:
            self.compiled[arm] = self._compile(arm)
        figures = jax.device_get(self.compiled[arm](streams, seeds, settings))
        for position, run in enumerate(chunk):
            self.done[run] = jax.tree.map(lambda values, i=position: np.asarray(values[i]), figures)

    def _compile(self, arm: str) -> Callable:
        named = () if self.claim.same_runs else (arm,)

        def one(stream, seed, settings):
            key = jax.random.fold_in(jax.random.key(stream), seed)
            return dict(self.run(key, *named, steps=self.steps, **settings))

        over_runs = PartitionSpec("runs")
        return jax.jit(
            jax.shard_map(jax.vmap(one), mesh=self.mesh, in_specs=over_runs, out_specs=over_runs, check_vma=False)
        )


class Plan:
    """Which runs a claim consists of."""

    def __init__(self, claim: Claim, run: RunFunction, *, comparisons: Sequence[Comparison], seed_offset: int):
        """The first of the comparisons is the one that decides."""
        self.claim = claim
        self.comparisons = comparisons
        self.seed_offset = seed_offset
        parameters = inspect.signature(run).parameters
        self.defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        # Whatever is set anywhere is an argument everywhere, so that an arm compiles once.
        self.names = {name for arm in claim.arms for name in (*claim.grid_of(arm), *claim.resolve(arm)[1])}
        self.names |= {*claim.axis, *(name for comparison in comparisons for name in comparison.settings)}
        unknown = sorted(self.names - set(parameters))
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise ValueError(f"{claim.slug}: run() has no argument {', '.join(unknown)}; it takes {list(parameters)}")

    def criteria(self, comparison: Comparison) -> tuple[Criterion, ...]:
        """By what a comparison is judged: those beside not by criteria with rivals of their own."""
        if comparison is self.comparisons[0]:
            return self.claim.criteria
        return (self.claim, *(criterion for criterion in self.claim.also if criterion.baselines is None))

    def arms(self, comparison: Comparison, criterion: Criterion) -> list[str]:
        """Who is compared, the method last."""
        baselines = comparison.baselines or criterion.baselines or self.claim.baselines
        return [*baselines, comparison.method or self.claim.method]

    def points(self, arm: str, comparison: Comparison) -> list[dict[str, float]]:
        """What is tried for an arm: its grid, but for what the comparison sets."""
        grid = self.claim.grid_of(arm)
        return points({name: values for name, values in grid.items() if name not in comparison.settings})

    def runs(self, arm: str, comparison: Comparison, point: Mapping[str, float], stream: int, seeds: int):
        """One run per point of the axis (rows) and seed (columns)."""
        base, variant = self.claim.resolve(arm)
        rows = []
        for position in points(self.claim.axis):
            given = {**variant, **comparison.settings, **point, **position}
            missing = sorted(self.names - set(given) - set(self.defaults))
            if missing:
                raise ValueError(f"{self.claim.slug}: arm {arm!r} leaves {missing} without a value")
            settings = tuple((name, given.get(name, self.defaults.get(name))) for name in sorted(self.names))
            name = "" if self.claim.same_runs else base
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
        smoke: a few steps of two seeds without the comparisons beside, to see that the claim runs. Says nothing else.
        devices: devices to split the runs over; all by default.
        on_batch: told about progress.
    """
    start = time.perf_counter()
    seeds = 2 if smoke else seeds or claim.seeds
    tuning_seeds = 2 if smoke else claim.tuning_seeds
    main = Comparison(says=claim.says)
    comparisons = [main] if smoke else [main, *claim.beside]
    plan = Plan(claim, run, comparisons=comparisons, seed_offset=seed_offset)
    devices = devices or jax.devices()
    steps = claim.smoke_steps if smoke else claim.steps
    runner = Runner(claim, run, steps=steps, batch=seeds, devices=devices, on_batch=on_batch)

    tuned = _tune(claim, plan, runner, tuning_seeds, seeds)
    runner.execute(
        r
        for comparison in comparisons
        for criterion in plan.criteria(comparison)
        for arm in plan.arms(comparison, criterion)
        for row in plan.runs(arm, comparison, tuned[_key(comparison, criterion, arm, claim)], MEASURING, seeds)
        for r in row
    )

    def judged(comparison, criterion):
        return _judge(claim, plan, runner, comparison, criterion, tuned, seeds)

    criteria = [judged(main, criterion) for criterion in claim.criteria]
    return {
        "slug": claim.slug,
        "title": claim.paper,
        "arxiv": claim.arxiv,
        "claim": claim.says,
        "finding": claim.finding,
        "verdict": statistics.conjunction([c["verdict"] for c in criteria]),
        "effect": criteria[0]["effect"],
        "interval": criteria[0]["interval"],
        "method": claim.method,
        "criteria": criteria,
        "beside": [
            {"says": comparison.says, "settings": dict(comparison.settings), **judged(comparison, criterion)}
            for comparison in comparisons[1:]
            for criterion in plan.criteria(comparison)
        ],
        "curves": _curves(claim, plan, runner, main, tuned, seeds),
        "seeds": seeds,
        "seed_offset": seed_offset,
        "tuning_seeds": tuning_seeds,
        "steps": steps,
        "smoke": smoke,
        "wall_seconds": round(time.perf_counter() - start, 1),
        **environment(devices),
    }


def _key(comparison: Comparison, criterion: Criterion, arm: str, claim: Claim) -> tuple:
    return (*claim.tuning_figure(criterion), arm, tuple(comparison.settings.items()))


def _tune(claim: Claim, plan: Plan, runner: Runner, tuning_seeds: int, seeds: int) -> dict[tuple, dict[str, float]]:
    """Each arm's best grid point, for every condition and every figure that is tuned on."""
    cases = {
        _key(comparison, criterion, arm, claim): (comparison, criterion)
        for comparison in plan.comparisons
        for criterion in plan.criteria(comparison)
        for arm in plan.arms(comparison, criterion)
    }
    wanted = {
        key: [plan.runs(key[2], comparison, point, TUNING, tuning_seeds) for point in plan.points(key[2], comparison)]
        for key, (comparison, _) in cases.items()
    }
    searched = [rows for rows_of_points in wanted.values() if len(rows_of_points) > 1 for rows in rows_of_points]
    to_measure = len({key[2:] for key in cases}) * seeds * len(points(claim.axis))
    runner.execute((run for rows in searched for row in rows for run in row), expected=to_measure)

    def losses(key):
        figure, better, arm, _ = key
        sign = 1.0 if better == "lower" else -1.0
        values = [sign * _values(runner, rows, figure, arm).mean() for rows in wanted[key]]
        return [value if math.isfinite(value) else math.inf for value in values]

    best = {}
    for key, (comparison, _) in cases.items():
        grid = plan.points(key[2], comparison)
        best[key] = (0.0, grid[0]) if len(grid) == 1 else min(zip(losses(key), grid, strict=True), key=lambda p: p[0])
    if claim.same_runs:
        for case in cases.values():
            *baselines, method = plan.arms(*case)
            strongest = min((best[_key(*case, arm, claim)] for arm in baselines), key=lambda p: p[0])
            best |= {_key(*case, arm, claim): strongest for arm in (*baselines, method)}
    return {key: point for key, (_, point) in best.items()}


def _values(runner: Runner, rows: list[list[Run]], figure: str, arm: str) -> np.ndarray:
    """A figure of the arm, with axes [axis point, seed, ...]."""

    def value(run):
        figures = runner.done[run]
        if figure not in figures:
            raise KeyError(f"{runner.claim.slug}: run() returned no figure {figure!r}, only {sorted(figures)}")
        return figures[figure][arm] if isinstance(figures[figure], dict) else figures[figure]

    return np.array([[value(run) for run in row] for row in rows], dtype=np.float64)


def _has(figure: Any, arm: str) -> bool:
    return not isinstance(figure, dict) or arm in figure


def _judge(
    claim: Claim,
    plan: Plan,
    runner: Runner,
    comparison: Comparison,
    criterion: Criterion,
    tuned: dict[tuple, dict[str, float]],
    seeds: int,
) -> dict[str, Any]:
    *baselines, method = plan.arms(comparison, criterion)
    scores, arms = {}, {}
    for arm in (*baselines, method):
        point = tuned[_key(comparison, criterion, arm, claim)]
        rows = plan.runs(arm, comparison, point, MEASURING, seeds)
        raw = _values(runner, rows, criterion.score, arm)
        scores[arm] = statistics.bounded(raw, criterion.better, criterion.worst).mean(axis=0)
        score, low, high = statistics.summary(scores[arm])
        example = runner.done[rows[0][0]]
        others = [n for n in sorted(example.keys() - {criterion.score, "curve"}) if _has(example[n], arm)]
        arms[arm] = {
            "score": score,
            "interval": [low, high],
            "scores": scores[arm].tolist(),
            "diverged": statistics.count_diverged(raw),
            "tuned": point,
            "figures": {name: _values(runner, rows, name, arm).mean(axis=(0, 1)).tolist() for name in others},
        }
    effects = {arm: statistics.paired_effect(scores[method], scores[arm], criterion) for arm in baselines}
    better = min if criterion.better == "lower" else max
    strongest = better(baselines, key=lambda arm: arms[arm]["score"])
    effect = effects[strongest]
    for arm in baselines:
        arms[arm]["effect"] = effects[arm].effect
    rule = dataclasses.asdict(criterion)
    return {
        **{name: rule[name] for name in ("metric", "better", "worst", "min_effect", "margin", "relative")},
        "method": method,
        "strongest": strongest,
        "effect": effect.effect,
        "interval": [effect.low, effect.high],
        "probability_of_improvement": effect.probability_of_improvement,
        "verdict": statistics.judge(effect, criterion),
        "arms": arms,
    }


def _curves(claim: Claim, plan: Plan, runner: Runner, main: Comparison, tuned, seeds: int) -> dict[str, list]:
    """Quartiles over seeds of each arm's learning curve: ``{arm: [lower, median, upper]}``."""
    curves = {}
    for arm in plan.arms(main, claim):
        rows = plan.runs(arm, main, tuned[_key(main, claim, arm, claim)], MEASURING, seeds)
        if "curve" in runner.done[rows[0][0]]:
            values = np.nan_to_num(_values(runner, rows, "curve", arm), nan=claim.worst, posinf=claim.worst)
            values = statistics.bounded(values, claim.better, claim.worst)
            curves[arm] = np.quantile(values, [0.25, 0.5, 0.75], axis=(0, 1)).round(5).tolist()
    return curves
