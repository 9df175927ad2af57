"""Measure the claims of papers: `python -m experiments list|run|report`.

list [FAMILY] [--search WORDS]   what can be measured, and the committed verdicts
run SLUG...                      measure claims; prints a table, writes the result and a plot
report                           RESULTS.md, the README's table and all plots anew from the result files
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from experiments.harness import registry, results
from experiments.harness.measure import measure
from experiments.harness.progress import live_bar
from experiments.harness.signals import noted

console = Console()
USAGE_ERROR, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class List:
    """Show the claims: slug, paper, claim, committed verdict."""

    family: tyro.conf.Positional[str | None] = None
    """Only this family (a folder of experiments/)."""
    search: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-s"])] = ()
    """Only claims with all these words in title or claim."""
    out: Path = results.RESULTS
    """Where the results are."""


@dataclass(frozen=True)
class Run:
    """Measure claims. Prints a table and the verdict, writes SLUG.json and SLUG.png."""

    slugs: tyro.conf.Positional[tuple[str, ...]]
    """What to measure."""
    seeds: int | None = None
    """Measured runs per arm; by default the claim's own number."""
    seed_offset: int = 0
    """The first seed. Another offset is an independent repetition."""
    smoke: bool = False
    """A few steps of two seeds, to see that it runs. Writes files only where --out says."""
    devices: int | None = None
    """Devices to split the runs over; by default all. On a CPU every core is one."""
    out: Path | None = None
    """Directory for the results, experiments/results by default."""


@dataclass(frozen=True)
class Report:
    """Write RESULTS.md, the README's table and all plots anew, from the results and the findings in the claim files."""

    out: Path = results.RESULTS
    """Where the results are; RESULTS.md is written beside this directory, the README's table only for the default."""


def list_claims(args: List) -> int:
    """Prints the claims that match."""
    entries = registry.entries().values() if args.family is None else registry.family(args.family)
    verdicts = {result["slug"]: result["verdict"] for result in results.read_all(args.out)}
    table = Table("family", "slug", "verdict", "paper and claim", box=SIMPLE)
    for entry in entries:
        claim, _ = entry.load()
        text = f"{entry.slug} {claim.paper} {claim.says}".lower()
        if all(word.lower() in text for word in args.search):
            paper = Text(f"{claim.paper}\n", "bold").append(claim.says, "not bold")
            table.add_row(entry.family, entry.slug, verdicts.get(entry.slug, "-"), paper)
    console.print(table if table.row_count else "no claim matches")
    return 0


def run_claims(args: Run) -> int:
    """Measures the claims one after the other; each is written as soon as it is done."""
    if not args.slugs:
        raise registry.UnknownName("name at least one claim; `python -m experiments list` shows all")
    if args.seeds is not None and args.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {args.seeds}")
    entries = [registry.find(slug) for slug in dict.fromkeys(args.slugs)]
    out = args.out or (None if args.smoke else results.RESULTS)
    devices = choose_devices(args.devices)
    if out is not None:
        results.prepare(out)
    for entry in entries:
        claim, run = entry.load()
        console.rule(f"{entry.slug}: {claim.paper}")
        try:
            result = with_progress(
                measure, claim, run, seeds=args.seeds, seed_offset=args.seed_offset, smoke=args.smoke, devices=devices
            )
        except KeyboardInterrupt:
            console.print(f"interrupted while measuring {entry.slug}: nothing of it was written", style="red")
            return INTERRUPTED
        save({"family": entry.family, **result}, out)
    return 0


def save(result: dict, out: Path | None) -> None:
    """Prints a result, and writes it with its plot."""
    from experiments.harness import report  # matplotlib is slow to import

    report.show(result, console)
    if out is None:
        return
    path = out / f"{result['slug']}.json"
    results.write_json(path, result)
    report.plot(result, path.with_suffix(".png"))
    console.print(f"result: {_short(path)}\nplot:   {_short(path.with_suffix('.png'))}", soft_wrap=True)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def with_progress(function, *args, **kwargs):
    """Calls a function that reports through ``on_batch``, under a progress bar."""
    with (
        live_bar("runs", TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress,
        # Where JAX calls back into Python the exception of control-C is at times swallowed.
        noted(signal.SIGINT, patience=0) as interrupted,
    ):
        task = progress.add_task("compiling", total=None)

        def on_batch(what: str, done: int, total: int) -> None:
            if interrupted():
                raise KeyboardInterrupt
            progress.update(task, description=what, completed=done, total=total)

        return function(*args, on_batch=on_batch, **kwargs)


def choose_devices(wanted: int | None) -> list[jax.Device]:
    """The first ``wanted`` devices, or all."""
    devices = jax.devices()
    if wanted is not None and not 1 <= wanted <= len(devices):
        raise ValueError(f"--devices must be in 1..{len(devices)} ({devices[0].platform} devices here), got {wanted}")
    return devices[:wanted]


def usable_cores() -> int:
    """Cores that this process may use; where the system does not tell, as macOS, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_report(args: Report) -> int:
    """Regenerates RESULTS.md, the README's table and the plots, with the claim files' present findings."""
    from experiments.harness import family_table, report

    results.prepare(args.out)
    for slug in registry.update_findings(args.out):
        console.print(f"{slug}: finding taken over from the claim file")
    found = report.report(args.out)
    console.print(f"{len(found)} results: {_short(args.out.parent / 'RESULTS.md')} and their plots", soft_wrap=True)
    if args.out == results.RESULTS and family_table.update(results.README, found):
        console.print("README.md: the table of families is another one", soft_wrap=True)
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    commands = {List: list_claims, Run: run_claims, Report: write_report}
    args = tyro.cli(List | Run | Report, args=argv, prog="python -m experiments", description=__doc__)
    try:
        return commands[type(args)](args)
    except (registry.UnknownName, results.OutputError, results.ResultError, ValueError) as error:
        console.print(str(error), style="red", soft_wrap=True, markup=False, highlight=False)
        return USAGE_ERROR


if __name__ == "__main__":
    if jax.config.jax_num_cpu_devices < 1:  # XLA takes a CPU for one device; here every core is one
        jax.config.update("jax_num_cpu_devices", usable_cores())
    code = main()
    if code == INTERRUPTED:
        # XLA's threads may still be computing, and crash in an orderly exit that takes their memory away.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
