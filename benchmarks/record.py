"""Keeps what was measured last in docs/figures.json, and prints it in the docs.

python -m benchmarks.record    prints docs/figures.md, the pages of benchmarks/capacity.py and the README's
                               table anew
"""

import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import capacity
from benchmarks.figures import Figure, table
from tasks import files
from tasks.machine import cores
from tasks.settings import REPOSITORY

DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- figures: written by make bench -->", "<!-- figures end -->"
"""The README's lines around its table."""

Results = dict[str, dict[str, Any]]
"""By benchmark: date, machine, and its figures as JSON."""


def record(measured: Mapping[str, Sequence[Figure]], order: Sequence[str]) -> None:
    """Keep these figures in place of what the same benchmarks measured before, and print all anew.

    Args:
        measured: figures by benchmark.
        order: every benchmark's name, in the order of the pages; what is no benchmark any more is dropped.
    """
    held: Results = files.read_json(DOCS / "figures.json") if (DOCS / "figures.json").exists() else {}
    now = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()}
    for name, figures in measured.items():
        held[name] = now | {"figures": [figure.to_json() for figure in figures]}
    results = {name: held[name] for name in order if name in held}
    files.write_json(DOCS / "figures.json", results)
    print_pages(results)


def print_pages(results: Results) -> None:
    """Write all that shows figures anew.

    Raises:
        KeyError: a page needs a figure that is not there.
    """
    _write(DOCS / "figures.md", page(results))
    _write(README, with_table(README.read_text(encoding="utf-8"), readme_table(results)))
    for name in capacity.PAGES:
        _write(DOCS / name, capacity.page(name, results))


def page(results: Results) -> str:
    """All figures, as docs/figures.md shows them."""
    parts = [
        "# Figures\n\nWhat `make bench` measured last, each benchmark by itself with `make bench ARGS=name`."
    ]
    for name, result in results.items():
        figures = [Figure.from_json(value) for value in result["figures"]]
        parts.append(f"## {name}\n\n{result['date']}, {result['machine']}.\n\n{table(name, figures)}")
    return "\n\n".join(parts) + "\n"


def readme_table(results: Results) -> str:
    """The figures that have a goal, as the README shows them."""
    lines = ["| figure | measured | goal | `ARGS=` | measured on |", "| :-- | --: | --: | :-- | :-- |"]
    for name, result in results.items():
        for figure in map(Figure.from_json, result["figures"]):
            if figure.goal:
                measured = figure.shown if figure.met else f"**{figure.shown}**"
                source = f"{result['date']}, {result['machine']}"
                lines.append(f"| {figure.name} | {measured} | {figure.goal} | `{name}` | {source} |")
    return "\n".join(lines)


def with_table(readme: str, made: str) -> str:
    """The README with this table between its two marks.

    Raises:
        ValueError: it has not both marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md lacks {BEGIN} or {END}.")
    return f"{before}{begin}\n{made}\n{end}{after}"


def machine() -> str:
    """What this machine is, in words, as far as it bears on speed."""
    try:
        described = Path("/proc/cpuinfo").read_text()
    except OSError:
        described = ""
    model = re.search(r"^model name\s*:\s*(.+)$", described, re.MULTILINE)
    flags = set(described.split())
    bf16 = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    return f"{cores()} cores of {model[1] if model else platform.machine()} ({', '.join(bf16) or 'no bf16'})"


def _write(path: Path, text: str) -> None:
    with files.atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    print_pages(files.read_json(DOCS / "figures.json"))
