"""The table of the README: what each family gives, from how many papers, and how many of their claims hold."""

import importlib
from pathlib import Path
from typing import Any

from experiments.harness.results import write_atomically

BEGIN, END = "<!-- families: written by `python -m experiments report` -->", "<!-- families: end -->"


def family_table(results: list[dict[str, Any]]) -> str:
    """The table in Markdown; what a family gives is the first line of its package's docstring."""
    lines = [
        "| family | what it gives | papers | hold | inconclusive | fail |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    for family in sorted({result["family"] for result in results}):
        lines.append(_row(f"`jaxreg.{family}`", gives(family), [r for r in results if r["family"] == family]))
    return "\n".join([*lines, _row("all", "", results)])


def gives(family: str) -> str:
    """What a subpackage of jaxreg says of itself in one line."""
    return importlib.import_module(f"jaxreg.{family}").__doc__.partition("\n")[0].rstrip(".")


def update(readme: Path, results: list[dict[str, Any]]) -> bool:
    """Writes the table anew between its two comments.

    Returns:
        Whether it was another one.

    Raises:
        ValueError: the file has no place for it.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{readme.name} must have the lines {BEGIN} and {END}, got no such place for the table")
    new = f"{before}{begin}\n{family_table(results)}\n{end}{after}"
    if new == text:
        return False
    write_atomically(readme, lambda file: file.write(new.encode()))
    return True


def _row(name: str, says: str, results: list[dict[str, Any]]) -> str:
    counts = [sum(r["verdict"] == verdict for r in results) for verdict in ("holds", "inconclusive", "fails")]
    return "| " + " | ".join([name, says, *map(str, [len(results), *counts])]) + " |"
