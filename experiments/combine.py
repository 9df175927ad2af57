"""Combines the checkpoints of a run into weights that are better than the last ones, if there are such.

    python -m experiments.pretrain --keep 20 --checkpoint-every 10        # a run that keeps enough of them
    python -m experiments.combine runs/tiny --method lcsc --window 20
    python -m experiments.combine runs/tiny --method ema --gamma 0.5 --gamma 0.9
    python -m experiments.pretrain generate --workdir runs/tiny/combined/lcsc

Methods: uniform, the mean; ema, the best moving average; soup, the greedy soup; lcsc, an evolutionary search over the
coefficients; random, a random search as long as that. They choose by the loss on some held-out batches, and what is
reported is the loss on others. In WORKDIR/combined/METHOD are then config.json and a checkpoint like any other of the
run, but for its parameters, combination.json and coefficients.png. The run's own checkpoints are only read.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from experiments.harness import results
from experiments.harness.checkpoints import CheckpointError
from experiments.harness.coefficient_search import Effort
from experiments.harness.combination import combine, console
from experiments.harness.pretraining import Pretraining
from experiments.harness.run_settings import DeviceSettings
from experiments.harness.training_run import CONFIG
from experiments.pretrain import read_settings
from jaxreg.validation import check_range


class LanguageModel:
    """A run of :mod:`experiments.pretrain`, judged by its loss on held-out text.

    Args:
        workdir: the run's directory.
        search_batches: held-out batches for the search.
        report_batches: other ones, for what is reported.
        devices: where.

    Raises:
        ValueError: it is not the directory of a run, or its held-out text is too short for so many batches.
    """

    metric = "loss (nats a token)"

    def __init__(self, workdir: Path, *, search_batches: int, report_batches: int, devices: DeviceSettings):
        check_range("search_batches", search_batches, "[1, inf)")
        check_range("report_batches", report_batches, "[1, inf)")
        run = Pretraining(read_settings(workdir), devices)
        self.shapes = run.shapes()
        total = search_batches + report_batches
        batches = run.corpus.validation(total)
        _check_disjoint(batches, total, run.settings.model.context, in_memory=len(run.corpus.text) > 0)
        rows = [run.placement.rows(batch.tokens) for batch in batches]
        # Spread over the text: its beginning and its end are of different kinds.
        search = set(np.linspace(0, total - 1, search_batches).round().astype(int).tolist())
        self._search = [part for number, part in enumerate(rows) if number in search]
        self._report = [part for number, part in enumerate(rows) if number not in search]
        self._mean = run.placement.compile_mean(run.validation_loss)

    def fitness(self, params: Any) -> float:
        return self._loss(params, self._search)

    def report(self, params: Any) -> dict[str, float]:
        return {"loss": self._loss(params, self._report)}

    def _loss(self, params, batches):
        return float(np.mean(jax.device_get([self._mean(params, rows) for rows in batches])))


def _check_disjoint(batches, total, context, *, in_memory):
    if in_memory:
        distances = np.diff(np.sort(np.concatenate([batch.positions for batch in batches])))
        alike = bool((distances < context).any())
    else:
        tokens = np.concatenate([batch.tokens for batch in batches])
        alike = len(np.unique(tokens, axis=0)) < len(tokens)
    if alike:
        raise ValueError(
            "search_batches and report_batches must be fewer, for the held-out text is too short for "
            f"{total} batches of different rows"
        )


def main(
    workdir: tyro.conf.Positional[Path] = Path("runs/tiny"),
    method: Literal["uniform", "ema", "soup", "lcsc", "random"] = "lcsc",
    window: int | None = None,
    stride: int = 1,
    first: int | None = None,
    gamma: Annotated[tuple[float, ...], tyro.conf.UseAppendAction] = (),
    epochs: int = 20,
    children: int = 16,
    mutation_std: float = 0.03,
    search_batches: int = 2,
    report_batches: int = 4,
    memory: float = 4.0,
    skip_bad: bool = False,
    seed: int = 0,
    devices: int | None = None,
    fsdp: int = 1,
    out: Path | None = None,
) -> int:
    """Combine the checkpoints of a run.

    Args:
        workdir: the run's directory.
        method: how to choose the coefficients.
        window: how many checkpoints at most, the newest; all by default.
        stride: take every how manyth of them.
        first: step of the oldest to take.
        gamma: for ema: a decay from one checkpoint to the next; may be given several times. 22 between 0.2 and 0.99
            by default.
        epochs: rounds of a search.
        children: evaluations in each.
        mutation_std: of lcsc, the size of its changes.
        search_batches: held-out batches to choose by.
        report_batches: other held-out batches, for what is reported.
        memory: gigabytes that checkpoints may take; if they need more, they are read anew for every few combinations.
        skip_bad: leave out checkpoints that are missing, damaged, not finite or of another model.
        seed: of the search.
        devices: how many; all by default.
        fsdp: over how many of them parameters are spread.
        out: directory for the combination, WORKDIR/combined/METHOD by default.

    Returns:
        The exit code: 0, or 2 where something cannot be used.
    """
    try:
        run = LanguageModel(
            workdir,
            search_batches=search_batches,
            report_batches=report_batches,
            devices=DeviceSettings(devices=devices, fsdp=fsdp),
        )
        combine(
            run,
            workdir,
            out or workdir / "combined" / method,
            carry=[CONFIG],
            method=method,
            last=window,
            stride=stride,
            first=first,
            gammas=gamma,
            effort=Effort(epochs, children, mutation_std),
            memory_bytes=1e9 * memory,
            skip_bad=skip_bad,
            seed=seed,
        )
    except (ValueError, CheckpointError, results.OutputError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.combine"))
