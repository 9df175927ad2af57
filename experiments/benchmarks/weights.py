"""Time and memory of combining checkpoints, next to one pass over the same bytes.

    python -m experiments.benchmarks weights                         # 50 checkpoints of 25 M parameters: 5 GB of memory
    python -m experiments.benchmarks weights --size 2e6 --population 16

Rows: one weighted sum of the stack by ``jaxreg.weights.linear_combination``, and the same as a loop over checkpoints in
Python, as it is mostly written, each timed by turns with ``jnp.sum`` over all leaves; and a population of sums at once,
timed by turns with a single one: in the memory of the last population, which is donated, as a search does it, and in
new memory, which has to be cleared where a leaf's sums are large. Below: the same sum streamed from Orbax checkpoints
on disk by a process of its own on the CPU, whose peak of memory beyond what it had before is a multiple of one
checkpoint; some 100 MB of it are compiled programs, metadata and what the C library keeps of freed memory, whatever
the size. Leaves are a transformer's. On disk there is one checkpoint only, which all steps link to. Results are
written to ``experiments/results/benchmarks/weights_<backend>.json``.
"""

import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.optimizers import RESULTS, random_like, transformer_shapes
from experiments.benchmarks.timing import Ratio, paired_ratio
from experiments.harness import results
from experiments.harness.checkpoint_stacks import combine_checkpoints
from experiments.harness.checkpoints import Checkpoints
from jaxreg.weights import linear_combination

GROUP_BYTES = 2**24
"""Read from a checkpoint at once: a small part of one."""


def main(
    size: float = 25e6,
    leaves: int = 98,
    checkpoints: int = 50,
    population: int = 16,
    repeats: int = 20,
    out: Path = RESULTS,
) -> int:
    """Weights: combining checkpoints, as a ratio to one pass over the same bytes.

    Args:
        size: number of parameters of a checkpoint, at least 10000.
        leaves: number of arrays they are spread over, at least 10; rounded to whole layers.
        checkpoints: how many are combined, at least 2.
        population: how many combinations are made at once, at least 2.
        repeats: pairs of samples to time for each row.
        out: directory for the JSON file.

    Returns:
        The exit code: 0, or 2 where an argument cannot be used.
    """
    try:
        for name, value, least in (
            ("size", size, 10_000),
            ("leaves", leaves, 10),
            ("checkpoints", checkpoints, 2),
            ("population", population, 2),
            ("repeats", repeats, 1),
        ):
            if not value >= least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        results.prepare(out)
    except (ValueError, results.OutputError) as error:
        print(error, file=sys.stderr)
        return 2
    shapes = transformer_shapes(int(size), leaves)
    with Console(stderr=True).status("") as status:
        status.update("streaming from disk")
        streamed = measure_stream(int(size), leaves, checkpoints)
        status.update("timing")
        rows = measure(shapes, checkpoints=checkpoints, population=population, repeats=repeats)
    result = {
        "benchmark": "weights",
        **results.environment(jax.devices()[:1]),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "leaves": len(jax.tree.leaves(shapes)),
        "checkpoints": checkpoints,
        "population": population,
        "repeats": repeats,
        "rows": rows,
        "stream": streamed,
    }
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table(result))
    console.print(
        f"streamed from disk: {streamed['seconds']:.2f} s, peak {streamed['peak_bytes'] / 1e6:.0f} MB = "
        f"{streamed['peak_checkpoints']:.2f} checkpoints"
    )
    path = out / f"weights_{result['backend']}.json"
    results.write_json(path, result)
    print(path)
    return 0


def measure(shapes: Mapping, *, checkpoints: int, population: int, repeats: int) -> list[dict[str, object]]:
    """The rows of combinations in memory."""
    stack = random_like(shapes, checkpoints)
    single = jax.random.normal(jax.random.key(1), [checkpoints])
    several = jax.random.normal(jax.random.key(2), [population, checkpoints])
    combine = jax.jit(linear_combination)
    recombine = jax.jit(
        lambda stack, rows, last: linear_combination(stack, rows), donate_argnames="last", keep_unused=True
    )
    total = jax.jit(lambda stack: [jnp.sum(leaf) for leaf in jax.tree.leaves(stack)])

    def one():
        jax.block_until_ready(combine(stack, single))

    def many():
        jax.block_until_ready(combine(stack, several))

    def many_again():
        nonlocal last
        last = jax.block_until_ready(recombine(stack, several, last))

    def read():
        jax.block_until_ready(total(stack))

    rows = [_row("one combination", "jnp.sum", paired_ratio(one, read, repeats=repeats))]
    title = f"population of {population}"
    rows.append(_row(f"{title}, new memory", "one combination", paired_ratio(many, one, repeats=max(1, repeats // 4))))
    last = combine(stack, several)
    rows.insert(1, _row(title, "one combination", paired_ratio(many_again, one, repeats=repeats)))
    numbers = single.tolist()
    del stack, last  # or the loop's checkpoints would be a second copy of all
    trees = [random_like(shapes) for _ in range(checkpoints)]

    def loop():
        combined = jax.tree.map(jnp.zeros_like, trees[0])
        for number, tree in zip(numbers, trees, strict=True):
            combined = jax.tree.map(lambda total, leaf, number=number: total + number * leaf, combined, tree)
        jax.block_until_ready(combined)

    def read_trees():
        jax.block_until_ready(total(trees))

    rows.append(_row("loop over checkpoints", "jnp.sum", paired_ratio(loop, read_trees, repeats=max(1, repeats // 4))))
    return rows


def measure_stream(size: int, leaves: int, checkpoints: int) -> dict[str, float]:
    """Seconds and peak memory of a combination that is read from disk, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        _write(Path(name) / "small", transformer_shapes(10_000, 10), 2)
        _write(Path(name) / "large", transformer_shapes(size, leaves), checkpoints)
        platform = os.environ.get("JAX_PLATFORMS")
        os.environ["JAX_PLATFORMS"] = "cpu"  # two processes would not share a GPU's memory
        try:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.apply(_stream, (name, size, leaves, checkpoints))
        finally:
            del os.environ["JAX_PLATFORMS"]
            if platform is not None:
                os.environ["JAX_PLATFORMS"] = platform


def table(result: Mapping) -> Table:
    """The rows as a table for the terminal."""
    title = (
        f"{result['checkpoints']} checkpoints of {result['parameters'] / 1e6:.3g} M parameters in "
        f"{result['leaves']} leaves, {result['backend']}"
    )
    grid = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    grid.add_column("", no_wrap=True)
    for header in ("ms", "ratio", "quartiles"):
        grid.add_column(header, justify="right", no_wrap=True)
    grid.add_column("to", no_wrap=True)
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        grid.add_row(row["name"], f"{row['ms']:.2f}", f"{row['ratio']:.3f}", f"{low:.2f}-{high:.2f}", row["peer"])
    return grid


def _row(name: str, peer: str, ratio: Ratio) -> dict[str, object]:
    return {"name": name, "peer": peer, **ratio.figures()}


def _stream(name: str, size: int, leaves: int, checkpoints: int) -> dict[str, float]:
    shapes = transformer_shapes(size, leaves)
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    # What Orbax and XLA take for any checkpoint is not told of this one.
    _read(Path(name) / "small", transformer_shapes(10_000, 10), 2)
    before = _peak()
    seconds = _read(Path(name) / "large", shapes, checkpoints)
    peak = _peak() - before
    return {"seconds": round(seconds, 3), "peak_bytes": peak, "peak_checkpoints": round(peak / one, 3)}


def _write(directory: Path, shapes: Mapping, checkpoints: int) -> None:
    with Checkpoints(directory, keep=None, asynchronous=False) as written:
        written.save(0, random_like(shapes), {})
    for step in range(1, checkpoints):
        shutil.copytree(directory / "0", directory / str(step), copy_function=os.link)


def _read(directory: Path, shapes: Mapping, checkpoints: int) -> float:
    """Seconds that a combination of checkpoints on disk takes."""
    with Checkpoints(directory, keep=None) as there:
        start = time.perf_counter()
        combined = combine_checkpoints(
            there, range(checkpoints), np.full(checkpoints, 1 / checkpoints), shapes, group_bytes=GROUP_BYTES
        )
        jax.block_until_ready(combined)
        return time.perf_counter() - start


def _peak() -> int:
    """Bytes of memory that this process had at its peak."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage tells a new process the peak of the one that started it
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
