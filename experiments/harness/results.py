"""Results on disk: written whole or not at all, read with a clear error."""

import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

RESULTS = Path(__file__).resolve().parents[1] / "results"
README = RESULTS.parents[1] / "README.md"

REQUIRED = {
    *("family", "slug", "title", "arxiv", "claim", "finding", "verdict", "effect", "interval", "method", "criteria"),
    *("beside", "curves", "seeds", "seed_offset", "steps", "smoke", "wall_seconds", "backend"),
}
"""What a result must hold."""


class OutputError(Exception):
    """The output directory cannot be used."""


class ResultError(Exception):
    """A result file cannot be read."""


def prepare(directory: Path) -> Path:
    """Creates the directory and tries to write there, so that hours of work are not lost for want of a permission.

    Raises:
        OutputError: nothing can be written there, or it is an address such as ``gs://bucket/run``.
    """
    check_local(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to the output directory {directory}: {error.strerror}") from error
    return directory


def check_local(directory: Path) -> None:
    """Raises an OutputError if a directory is an address such as ``gs://bucket/run``."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(directory)):  # of the slashes a path keeps one
        raise OutputError(f"the directory must be in a file system of this machine, got {directory}")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces a file in one step: whoever reads, or kills this process, finds the old file or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON atomically, NaN and infinity as null: JSON knows neither."""
    text = json.dumps(finite(content), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def finite(value: Any) -> Any:
    """A value as JSON knows it: arrays as lists, NaN and infinity as None.

    Args:
        value: a number, a text, None, an array, or dictionaries, lists and tuples of these.
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_all(directory: Path) -> list[dict[str, Any]]:
    """All results in a directory, in the order of their names.

    Raises:
        ResultError: a file is not a result.
    """
    results = []
    for path in sorted(directory.glob("*.json")):
        try:
            result = json.loads(path.read_text())
        except ValueError as error:
            raise ResultError(f"{path} is not a result of a claim: {error}") from error
        missing = REQUIRED - set(result if isinstance(result, dict) else ())
        if missing:
            raise ResultError(f"{path} is not a result of a claim: it lacks {', '.join(sorted(missing))}")
        results.append(result)
    return results


def environment(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """What a measurement was made with; nothing that identifies the machine."""
    packages = ("jaxreg", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
    return {
        "backend": devices[0].platform,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
