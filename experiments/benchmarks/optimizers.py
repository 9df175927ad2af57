"""Step time, memory and compile time of optimizers, next to ``optax.adamw``.

    python -m experiments.benchmarks optimizers                        # 25 M parameters, 98 leaves: a few minutes
    python -m experiments.benchmarks optimizers --size 1e6 --size 5e6 --size 25e6 --size 1e8
    python -m experiments.benchmarks optimizers --leaves 300 --size 25e6    # compile time of a deep network

One step is ``update`` and ``apply_updates`` under one ``jit``, parameters and state donated, on a float32 tree shaped
like a transformer's: an embedding, and matrices and vectors in every layer. Every optimizer is timed by turns with
``optax.adamw``, in pairs; the table has the median of the pairs' ratios and their quartiles. The row ``adamw`` is
adamw against itself: its distance from 1 is the noise. Where PyTorch is installed its optimizers are timed against the
same peer, those of ``pytorch_optimizer`` too. Results are written to
``experiments/results/benchmarks/optimizers_<backend>.json``.

On a CPU XLA compiles one loop over memory for each array that a step writes: ``v``, ``m`` and the parameters, three a
leaf, for adamw as for SPAM; it has no loops with several outputs. SPAM's loop for ``m`` also reads ``v``, which makes
11 passes of an array instead of 10. AdamP's time depends on the gradients: random ones are never orthogonal enough to a
weight to be projected, those of normalized layers mostly are; so it has two rows. What a step stores on its way is in
the column "temp": XLA asks for that memory anew at every step. In training it is what the backward pass has just used;
in a benchmark it would come fresh from the operating system, page by page, which takes longer than the step. So the
benchmarks keep the memory they have been given (see :mod:`experiments.benchmarks.__main__`).
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import torch_peers
from experiments.benchmarks.timing import paired_ratio
from experiments.harness import results
from jaxreg import optim

RATE = 1e-4

OPTIMIZERS: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": lambda: optax.adamw(RATE, weight_decay=1e-2),
    "spam": lambda: optim.spam(RATE, weight_decay=1e-2),
    "spam, density 0.25": lambda: optim.spam(RATE, weight_decay=1e-2, density=0.25),
    "stable_spam": lambda: optim.stable_spam(RATE, weight_decay=1e-2),
    "adamp": lambda: optim.adamp(RATE, weight_decay=1e-2),
    "adamp, all projected": lambda: optim.adamp(RATE, weight_decay=1e-2, delta=1e6),
    "frugal": lambda: optim.frugal(RATE, weight_decay=1e-2),
    "adam8bit": lambda: optim.adam8bit(RATE, weight_decay=1e-2),
    "adam8bit, blocks of 256": lambda: optim.adam8bit(RATE, weight_decay=1e-2, block_size=256),
    "quantize_state(lion)": lambda: optim.quantize_state(optax.lion(RATE, weight_decay=1e-2)),
    "momentum_reset(adam)": lambda: optim.momentum_reset(optax.adam(RATE)),
}

RESULTS = results.RESULTS / "benchmarks"


def main(
    size: Annotated[tuple[float, ...], tyro.conf.UseAppendAction] = (),
    leaves: int = 98,
    repeats: int = 40,
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    out: Path = RESULTS,
) -> int:
    """Optimizers: time of a step, bytes of state, time to compile, as ratios to optax.adamw.

    Args:
        size: number of parameters, at least 10000; give it several times for several tables. 25 million by default.
        leaves: number of arrays they are spread over, at least 10; rounded to whole layers.
        repeats: pairs of samples to time for each optimizer.
        only: name of an optimizer to time; give it several times for several. All of them by default.
        out: directory for the JSON file.

    Returns:
        The exit code: 0, or 2 where an argument cannot be used.
    """
    sizes = size or (25e6,)
    torch_optimizers = torch_peers.available()
    try:
        _check(sizes=sizes, leaves=leaves, repeats=repeats, only=only, names=[*OPTIMIZERS, *torch_optimizers])
        results.prepare(out)
    except (ValueError, results.OutputError) as error:
        print(error, file=sys.stderr)
        return 2
    tables = []
    for number in sizes:
        shapes = transformer_shapes(int(number), leaves)
        _compile(OPTIMIZERS["adamw"](), shapes)  # what JAX itself does only once is nobody's compile time
        rows = []
        with Console(stderr=True).status("") as status:
            for name in only or (*OPTIMIZERS, *torch_optimizers):
                status.update(f"timing {name}")
                if name in OPTIMIZERS:
                    rows.append(measure(name, shapes, repeats=repeats))
                else:
                    rows.append(measure_torch(name, torch_optimizers[name], shapes, repeats=repeats))
        tables.append({"parameters": _size(shapes), "leaves": len(jax.tree.leaves(shapes)), "rows": rows})
        # Rich takes what is no terminal for one of 80 columns.
        console = Console(width=None if sys.stdout.isatty() else 100)
        console.print(table(tables[-1], backend=jax.default_backend()))
    result = {
        "benchmark": "optimizers",
        **results.environment(jax.devices()[:1]),
        **torch_peers.versions(),
        "repeats": repeats,
        "peer": "optax.adamw",
        "tables": tables,
    }
    path = out / f"optimizers_{result['backend']}.json"
    results.write_json(path, result)
    print(path)
    return 0


def transformer_shapes(size: int, leaves: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A float32 tree like a transformer's: eight arrays a layer, an embedding and a last norm.

    Three quarters of the parameters are in the layers, the embedding has the rest.

    Args:
        size: number of parameters, met to within one row of the embedding.
        leaves: number of arrays, met to within one layer.
    """
    layers = max(1, round((leaves - 2) / 8))
    width = max(8, int(math.sqrt(0.75 * size / (12 * layers))) // 8 * 8)
    layer = {
        "norm1": [width],
        "qkv": [width, 3 * width],
        "qkv_bias": [3 * width],
        "out": [width, width],
        "norm2": [width],
        "up": [width, 4 * width],
        "up_bias": [4 * width],
        "down": [4 * width, width],
    }
    shapes = {f"layer{i}": layer for i in range(layers)} | {"norm": [width]}
    rest = size - sum(math.prod(shape) for shape in jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, list)))
    shapes["embedding"] = [max(1, rest // width), width]
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=lambda x: isinstance(x, list)
    )


def random_like(shapes: Mapping, *leading: int) -> Mapping:
    """Normally distributed float32 arrays of given shapes, with further leading axes."""
    rng = np.random.default_rng(0)  # JAX would compile a program for every shape
    return jax.tree.map(lambda leaf: jnp.array(rng.standard_normal((*leading, *leaf.shape), np.float32)), shapes)


def measure(name: str, shapes: Mapping, *, repeats: int) -> dict[str, object]:
    """The row of one optimizer."""
    optimizer, peer = OPTIMIZERS[name](), OPTIMIZERS["adamw"]()
    peer_step, peer_compile_seconds = _compile(peer, shapes)
    step, compile_seconds = _compile(optimizer, shapes)
    gradients = random_like(shapes)
    ratio = paired_ratio(_stepper(step, optimizer, gradients), _stepper(peer_step, peer, gradients), repeats=repeats)
    return {
        "name": name,
        **ratio.figures(name="step_ms"),
        "state_bytes_per_parameter": round(_bytes(jax.eval_shape(optimizer.init, shapes)) / _size(shapes), 3),
        "temp_bytes_per_parameter": round(step.memory_analysis().temp_size_in_bytes / _size(shapes), 3),
        "compile_s": round(compile_seconds, 3),
        "peer_compile_s": round(peer_compile_seconds, 3),
    }


def measure_torch(name: str, make: Callable, shapes: Mapping, *, repeats: int) -> dict[str, object]:
    """The row of one of PyTorch's optimizers."""
    peer = OPTIMIZERS["adamw"]()
    peer_step, _ = _compile(peer, shapes)
    advance, state_bytes = torch_peers.stepper(make, [leaf.shape for leaf in jax.tree.leaves(shapes)])
    ratio = paired_ratio(advance, _stepper(peer_step, peer, random_like(shapes)), repeats=repeats)
    return {
        "name": name,
        **ratio.figures(name="step_ms"),
        "state_bytes_per_parameter": round(state_bytes() / _size(shapes), 3),
    }


def table(result: Mapping, *, backend: str) -> Table:
    """The rows as a table for the terminal; milliseconds a step, bytes a parameter."""
    title = f"{result['parameters'] / 1e6:.3g} M parameters in {result['leaves']} leaves, {backend}"
    grid = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    grid.add_column("optimizer", no_wrap=True, min_width=max(len(row["name"]) for row in result["rows"]))
    for header in ("ms", "/ adamw", "quartiles", "state", "temp", "compile s", "/ adamw"):
        grid.add_column(header, justify="right", no_wrap=True)
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        compiled = "compile_s" in row
        grid.add_row(
            row["name"],
            f"{row['step_ms']:.2f}",
            f"{row['ratio']:.3f}",
            f"{low:.2f}-{high:.2f}",
            f"{row['state_bytes_per_parameter']:.2f}",
            f"{row['temp_bytes_per_parameter']:.2f}" if compiled else "-",
            f"{row['compile_s']:.2f}" if compiled else "-",
            f"{row['compile_s'] / row['peer_compile_s']:.2f}" if compiled else "-",
        )
    return grid


def _compile(optimizer, shapes):
    """The step as an executable, and the seconds from Python to there: tracing, lowering, compiling."""

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    start = time.perf_counter()
    state = jax.eval_shape(optimizer.init, shapes)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(shapes, state, shapes).compile()
    return compiled, time.perf_counter() - start


def _stepper(step, optimizer, gradients):
    params = jax.tree.map(jnp.array, gradients)
    state = jax.jit(optimizer.init)(params)

    def advance():
        nonlocal params, state
        params, state = jax.block_until_ready(step(params, state, gradients))

    return advance


def _size(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _check(*, sizes, leaves, repeats, only, names):
    for name, value, least in (
        *(("size", size, 10_000) for size in sizes),
        ("leaves", leaves, 10),
        ("repeats", repeats, 1),
    ):
        if not value >= least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    for name in only:
        if name not in names:
            raise ValueError(f"--only: no optimizer {name!r}; there are {', '.join(map(repr, names))}")
