"""Combines the checkpoints of a run into weights that are better than the last ones, if there are such.

    python -m experiments.consistency                                     # a run that keeps enough of them
    python -m experiments.combine runs/digits-ict --method lcsc --window 20
    python -m experiments.combine runs/digits-ict --method ema --gamma 0.5 --gamma 0.9
    python -m experiments.consistency generate --workdir runs/digits-ict/combined/lcsc

The same for language models of experiments.pretrain, with --keep 20 --checkpoint-every 10 or so. Methods: uniform, the
mean; ema, the best moving average; soup, the greedy soup; lcsc, an evolutionary search over the coefficients; random, a
random search as long as that. They choose by the loss on some held-out batches, or by samples of some noise and the
examples trained on; what is reported is the loss on others, or samples of other noise and held-out examples. In
WORKDIR/combined/METHOD are then config.json and a checkpoint like any other of the run, but for its parameters,
combination.json, coefficients.png and, of models that make samples, samples_last.png and samples_combined.png, from the
same noise. The run's own checkpoints are only read.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.harness import results
from experiments.harness.checkpoints import CheckpointError
from experiments.harness.coefficient_search import Effort
from experiments.harness.combinable_runs import open_run
from experiments.harness.combination import combine, console
from experiments.harness.run_settings import DeviceSettings
from experiments.harness.training_run import CONFIG


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
    search_batches: int | None = None,
    report_batches: int | None = None,
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
        search_batches: batches to choose by, of held-out text or of samples; 2 or 8 by default.
        report_batches: other ones, for what is reported; 4 or 32 by default.
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
        run = open_run(
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
