"""Finds the claim files: `experiments/FAMILY/SLUG.py`, each with a CLAIM and a run()."""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.harness import results
from experiments.harness.claim import Claim

ROOT = Path(__file__).resolve().parents[1]
NOT_FAMILIES = {"harness", "benchmarks", "results"}


class UnknownName(Exception):
    """There is no claim or family of that name."""


@dataclass(frozen=True)
class Entry:
    """A claim file."""

    slug: str
    family: str

    def load(self) -> tuple[Claim, Callable]:
        """The claim and its run function."""
        module = importlib.import_module(f"experiments.{self.family}.{self.slug}")
        if module.CLAIM.slug != self.slug:
            raise ValueError(f"experiments/{self.family}/{self.slug}.py declares the slug {module.CLAIM.slug!r}")
        return module.CLAIM, module.run


def entries() -> dict[str, Entry]:
    """Every claim file by slug, family by family."""
    files = sorted(ROOT.glob("*/*.py"))
    found = [Entry(path.stem, path.parent.name) for path in files if path.parent.name not in NOT_FAMILIES]
    return {entry.slug: entry for entry in found if entry.slug != "__init__"}


def find(slug: str) -> Entry:
    """The claim file of a slug.

    Raises:
        UnknownName: there is none; the message suggests near matches.
    """
    known = entries()
    if slug in known:
        return known[slug]
    raise UnknownName(f"no claim is called {slug!r}{_suggestion(slug, list(known))}")


def family(name: str) -> list[Entry]:
    """The claim files of a family.

    Raises:
        UnknownName: there is no such family.
    """
    members = [entry for entry in entries().values() if entry.family == name]
    if members:
        return members
    families = sorted({entry.family for entry in entries().values()})
    raise UnknownName(f"no family is called {name!r}; there are {', '.join(families)}")


def _suggestion(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return "; `python -m experiments list` shows all"


def update_findings(directory: Path) -> list[str]:
    """Takes what claim files say of their findings over into the results: that is written after the measurement.

    Args:
        directory: of the result files; those of claims that no longer exist are left alone.

    Returns:
        The slugs whose finding was another.
    """
    known, updated = entries(), []
    for result in results.read_all(directory):
        slug = result["slug"]
        finding = known[slug].load()[0].finding if slug in known else result["finding"]
        if finding != result["finding"]:
            results.write_json(directory / f"{slug}.json", {**result, "finding": finding})
            updated.append(slug)
    return updated
