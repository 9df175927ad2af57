"""What the trainer costs beside a minimal loop, and what it makes of the hardware.

    python -m experiments.benchmarks pretrain                                        # `tiny` on a CPU
    python -m experiments.benchmarks pretrain --preset 130m --dtype bfloat16 --context 1024 --batch 32   # on a GPU

The peer is the loop that anybody writes first: the same model, batches that are in memory already, `optax.adamw` and
one jitted step that returns the loss, which nobody looks at. The trainer reads its corpus, takes norms of every layer,
watches for spikes and writes its journal. Model-FLOPs utilisation counts what the model needs, not what rematerialised
layers do twice, against the speed of a large product of matrices in the same precision, measured here too. Peak memory
is that of a step, as XLA has laid it out: parameters, optimizer state, batch and all that is computed on the way. All
run on one device; on a CPU all keep their memory from step to step, as the trainer does (see
:func:`experiments.harness.memory.keep_memory`), without which the minimal loop takes half as long again or more. Where
PyTorch happens to be installed its loop is in the table, with the same model and `AdamW`.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import torch_llama, torch_peers
from experiments.benchmarks.timing import paired_ratio
from experiments.harness import results
from experiments.harness.feed import Feed
from experiments.harness.journal import Journal
from experiments.harness.llama import flops_per_token, parameter_count
from experiments.harness.placement import bytes_needed
from experiments.harness.pretraining import DataSettings, ModelSettings, OptimizationSettings, Pretraining, Settings
from experiments.harness.run_settings import DeviceSettings
from experiments.harness.spikes import SpikeRecorder
from experiments.harness.trainer import Upkeep, fit

RESULTS = results.RESULTS / "benchmarks"
OPTIMIZERS = ("adamw", "spam", "stable_spam", "adam8bit")
MINIMAL = "minimal loop: adamw"
ENDLESS = 10**9
ONE = DeviceSettings(devices=1)


def main(
    model: tyro.conf.OmitArgPrefixes[ModelSettings] = ModelSettings(),
    batch: int | None = None,
    repeats: int = 10,
    steps: int = 20,
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    out: Path = RESULTS,
) -> int:
    """Pretraining: time of a step, as a ratio to a minimal loop; tokens a second, FLOPs utilisation, peak memory.

    Args:
        model: what is trained.
        batch: rows of a batch; the preset's by default.
        repeats: pairs of samples to time for each optimizer.
        steps: steps in a sample; a run does not begin and end every few of them.
        only: name of an optimizer to time; give it several times for several. All of them by default.
        out: directory for the JSON file.

    Returns:
        The exit code: 0, or 2 where an argument cannot be used.
    """
    try:
        for name, value in (("repeats", repeats), ("steps", steps)):
            if value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        settings = Settings(model, DataSettings(batch=batch), OptimizationSettings(schedule="constant")).complete()
        for name in only:
            if name not in OPTIMIZERS:
                raise ValueError(f"--only: no optimizer {name!r}; there are {', '.join(map(repr, OPTIMIZERS))}")
        results.prepare(out)
    except (ValueError, results.OutputError) as error:
        print(error, file=sys.stderr)
        return 2
    run = Pretraining(settings, ONE)
    peak = matrix_flops_per_second(settings.model.dtype)
    rows = []
    peer = minimal_loop(run, steps)
    with Console(stderr=True).status("") as status:
        for name in only or OPTIMIZERS:
            status.update(f"timing {name}")
            rows.append(measure(name, settings, peer, repeats=repeats, steps=steps, peak=peak))
        if torch_llama.available():
            status.update("timing PyTorch")
            rows.append(
                _row(
                    "PyTorch: AdamW",
                    torch_llama.stepper(run.config, _rows(run), steps),
                    peer,
                    run,
                    repeats,
                    steps,
                    peak,
                    peak_bytes=None,
                )
            )
    result = {
        "benchmark": "pretrain",
        **results.environment(jax.devices()[:1]),
        **torch_peers.versions(),
        "repeats": repeats,
        "peer": MINIMAL,
        "parameters": parameter_count(run.config),
        "model": dataclasses.asdict(settings.model),
        "batch": settings.data.batch,
        "matrix_tflops_per_second": round(peak / 1e12, 4),
        "rows": rows,
    }
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table(result))
    path = out / f"pretrain_{settings.model.preset}_{result['backend']}.json"
    results.write_json(path, result)
    print(path)
    return 0


def measure(name: str, settings: Settings, peer: Callable, *, repeats: int, steps: int, peak: float) -> dict[str, Any]:
    """The row of the trainer with one optimizer."""
    optimization = dataclasses.replace(settings.optimization, optimizer=name)
    run = Pretraining(dataclasses.replace(settings, optimization=optimization), ONE)
    rows = run.placement.rows(_rows(run, 1)[0])
    step = run.placement.compile(run.step())
    peak_bytes = bytes_needed(step.lower(run.shapes(), rows).compile())
    with trainer(run, step, steps) as candidate:
        return _row(f"trainer: {name}", candidate, peer, run, repeats, steps, peak, peak_bytes)


@contextmanager
def trainer(run: Pretraining, step: Callable, steps: int) -> Iterator[Callable[[], None]]:
    """A function that takes some compiled steps with the trainer, journal and all."""
    feed, state, done = Feed(run.corpus.train), run.create(), 0
    with tempfile.TemporaryDirectory() as workdir, Journal(workdir) as journal, SpikeRecorder(workdir) as recorder:

        def advance():
            nonlocal state, done
            done += steps
            state = fit(
                state, step, feed, steps=done, placement=run.placement, upkeep=Upkeep(evaluate_every=ENDLESS),
                journal=journal, recorder=recorder,
            )  # fmt: skip

        yield advance


def minimal_loop(run: Pretraining, steps: int) -> Callable[[], None]:
    """A function that takes steps with the least one can do."""
    optimizer = optax.adamw(run.settings.optimization.learning_rate)

    def step(params, state, rows):
        loss, gradients = jax.value_and_grad(run.validation_loss)(params, rows)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    compiled = jax.jit(step, donate_argnums=(0, 1))
    params = jax.jit(run.init_params)()
    state = optimizer.init(params)
    batches = [jnp.asarray(rows) for rows in _rows(run)]

    def advance():
        nonlocal params, state
        for number in range(steps):
            params, state, loss = compiled(params, state, batches[number % len(batches)])
        jax.block_until_ready((params, loss))

    return advance


def matrix_flops_per_second(dtype: str, size: int | None = None) -> float:
    """The speed of a product of two large square matrices, the best of a few."""
    size = size or (8192 if jax.default_backend() == "gpu" else 2048)
    matrix = jnp.ones([size, size], dtype)
    product = jax.jit(lambda matrix: matrix @ matrix)
    product(matrix).block_until_ready()

    def seconds():
        start = time.perf_counter()
        for _ in range(5):
            out = product(matrix)
        out.block_until_ready()
        return (time.perf_counter() - start) / 5

    return 2 * size**3 / min(seconds() for _ in range(5))


def table(result: dict[str, Any]) -> Table:
    """The rows as a table for the terminal."""
    model = result["model"]
    grid = Table(
        title=f"{model['preset']}: {result['parameters'] / 1e6:.3g} M parameters, {result['batch']} x "
        f"{model['context']} tokens, {model['dtype']}, {result['backend']}",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    grid.add_column("", no_wrap=True)
    for header in ("ms", "/ minimal", "quartiles", "tokens/s", "MFU", "peak GB"):
        grid.add_column(header, justify="right", no_wrap=True)
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        memory = row["peak_bytes"]
        grid.add_row(
            row["name"],
            f"{row['step_ms']:.1f}",
            f"{row['ratio']:.3f}",
            f"{low:.2f}-{high:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['flops_utilisation']:.1%}",
            "-" if memory is None else f"{memory / 1e9:.2f}",
        )
    return grid


def _row(name, candidate, peer, run, repeats, steps, peak, peak_bytes):
    ratio = paired_ratio(candidate, peer, repeats=repeats)
    tokens = run.settings.data.batch * run.settings.model.context
    seconds = ratio.seconds / steps
    return {
        "name": name,
        **ratio.figures(name="step_ms", steps=steps),
        "tokens_per_second": round(tokens / seconds),
        "flops_utilisation": round(tokens * flops_per_token(run.config) / seconds / peak, 4),
        "peak_bytes": peak_bytes,
    }


def _rows(run, batches=4):
    feed = run.corpus.train()
    return [next(feed).tokens for _ in range(batches)]
