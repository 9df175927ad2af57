"""Training runs, executed many at a time.

Runs are executed in batches of one shape, over seeds and hyperparameters alike, and each batch is split over the
devices, which take their shares vmapped. So an arm is compiled once, however many grid points, seeds, variants and
conditions it takes part in. Seed ``i`` is ``fold_in(key, i)`` for every arm: the same data and the same initial
parameters.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from experiments.harness.claim import Claim
from jaxreg.typing import Array, Int

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
    """Executes runs in batches of one shape, remembering what has been run.

    Args:
        claim: what is claimed.
        run: the claim's function.
        steps: of one run.
        batch: runs executed together, rounded up to the same share for every device. A share of one is not vmapped, so
            that its conditions cost one branch.
        devices: to split the runs over.
        on_batch: told about progress.
    """

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
        self.share = math.ceil(batch / len(devices))
        self.batch = len(devices) * self.share
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
        one = functools.partial(self.run_once, arm)

        def a_share(*runs):
            return jax.vmap(one)(*runs) if self.share > 1 else jax.lax.map(lambda run: one(*run), runs)

        over_runs = PartitionSpec("runs")
        return jax.jit(jax.shard_map(a_share, mesh=self.mesh, in_specs=over_runs, out_specs=over_runs, check_vma=False))

    def run_once(self, arm: str, stream: Int[Array, ""], seed: Int[Array, ""], settings: Figures) -> Figures:
        """One run, to be traced: everything but the arm may be an array."""
        key = jax.random.fold_in(jax.random.key(stream), seed)
        named = () if self.claim.same_runs else (arm,)
        return dict(self.run(key, *named, steps=self.steps, **settings))
