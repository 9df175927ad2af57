"""The learning-rate schedule that would have been best for a run that was logged.

    python -m experiments.refine metrics.jsonl                 # of SGD, from a log with "gradient_norm" on its lines
    python -m experiments.refine metrics.jsonl --power 1       # of Adam, if what was logged is the l1 norm
    python -m experiments.refine norms.npy --out refined.json

It takes seconds and writes the schedule as JSON, with a plot beside it. In the next run, with the peak tuned anew:

    schedule = read_schedule("metrics.refined.json", peak=0.1)    # from experiments.refine
    optimizer = optax.sgd(schedule)
"""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.harness import results
from experiments.harness.figures import save
from experiments.harness.journal import read_journal
from jaxreg.schedules import as_schedule, refine_schedule


def read_norms(path: Path, *, field: str) -> np.ndarray:
    """Gradient norms of a run, one a step.

    Args:
        path: a log of JSON objects, one a line (.jsonl), of which those without the field are left out; an array
            (.npy); or text with one number a line. A torn last line of a log is left out, too.
        field: name of the norm in a line of JSON.

    Returns:
        The norms.

    Raises:
        ValueError: there is no such file, or it does not hold at least two finite numbers that are not negative.
    """
    lines = read_journal(path) if path.suffix == ".jsonl" else None
    try:
        if path.suffix == ".npy":
            norms = np.asarray(np.load(path), np.float64)
        elif lines is not None:
            norms = np.array([line[field] for line in lines if field in line], np.float64)
        else:
            norms = np.array(path.read_text().split(), np.float64)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not hold numbers: {error}") from error
    if norms.ndim != 1 or norms.size < 2:
        wanted = f' with "{field}"' if path.suffix == ".jsonl" else ""
        raise ValueError(f"{path} must hold one norm a step{wanted}, and two at least; got shape {norms.shape}")
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms >= 0)))
    if bad.size:
        raise ValueError(f"norms must be finite and not negative, got {norms[bad[0]]} as norm {bad[0] + 1} of {path}")
    return norms


def read_schedule(path: Path | str, *, peak: float) -> optax.Schedule:
    """A schedule that this command has written.

    Args:
        path: of the JSON file.
        peak: the largest learning rate.

    Returns:
        The learning rate as a function of the step.
    """
    return as_schedule(jnp.array(json.loads(Path(path).read_text())["rates"]), peak)


def main(
    log: tyro.conf.Positional[Path],
    field: str = "gradient_norm",
    smoothing: float = 0.1,
    power: float = 2.0,
    out: Path | None = None,
) -> int:
    """Refine a learning-rate schedule from a run's gradient norms.

    Args:
        log: the norms: .jsonl, .npy, or text with one number a line.
        field: what they are called in a line of JSON.
        smoothing: width of the median filter, as a part of the run.
        power: 2 for SGD and Euclidean norms, 1 for Adam and l1 norms.
        out: where to write, by default LOG.refined.json.

    Returns:
        The exit code: 0, or 2 where something cannot be used.
    """
    out = out or log.with_suffix(".refined.json")
    try:
        norms = read_norms(log, field=field)
        results.prepare(out.parent)
        rates = np.asarray(refine_schedule(jnp.asarray(norms, jnp.float32), smoothing=smoothing, power=power))
    except (ValueError, results.OutputError) as error:
        print(error, file=sys.stderr)
        return 2
    content = {"log": log.name, "field": field, "smoothing": smoothing, "power": power, "rates": rates.tolist()}
    results.write_json(out, content)
    _plot(norms, rates, out.with_suffix(".png"))
    warmup = int(np.argmax(rates))
    print(f"{len(rates)} steps, largest after {warmup} ({100 * warmup / len(rates):.0f}% warmup)")
    print(f"schedule: {out}\nplot:     {out.with_suffix('.png')}")
    return 0


def _plot(norms, rates, path):
    import matplotlib.pyplot as plt  # slow to import

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(6, 5), layout="constrained")
    above.plot(norms, lw=0.8)
    above.set(ylabel="gradient norm", yscale="log")
    below.plot(rates, label="refined")
    below.plot(np.linspace(1, 0, len(rates)), "--", color="gray", label="linear decay")
    below.set(ylabel="learning rate / peak", xlabel="step")
    below.legend()
    save(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.refine"))
