"""docs/capacity.md and docs/first_fill.md: what many items take, by the figures that were measured last."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.figures import Figure
from tasks.settings import REPOSITORY, Settings

PAGES = ("capacity.md", "first_fill.md")
"""In docs/; each has its template here."""
TEMPLATES = Path(__file__).parent
_PHOTO = 28.7
"""kB of an average photo of the shop that the benchmarks have."""


def page(name: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page's template with these results of benchmarks, as docs/figures.json keeps them, and settings'
    defaults.

    Raises:
        KeyError: it names a figure that is not there.
    """
    figures = {
        (benchmark, figure.name): figure
        for benchmark, result in results.items()
        for figure in map(Figure.from_json, result["figures"])
    }
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"duration": duration, "figures": _significant}
    return environment.from_string((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")).render(
        figure=lambda benchmark, name: figures[benchmark, name].shown,
        value=lambda benchmark, name: figures[benchmark, name].value,
        source=lambda name: f"`{name}`, {results[name]['date']}, {results[name]['machine']}",
        default=lambda name: Settings.model_fields[name].default,
        log=math.log,
        photo=_PHOTO,
        slots=lambda pool: json.loads((REPOSITORY / "dags" / "pools.json").read_text())[pool]["slots"],
    )


def duration(seconds: float) -> str:
    """A time in the two units that a person would use."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes > 1 else f"{seconds:.0f} s"


def _significant(number: float, digits: int = 2) -> str:
    """The number rounded to so many digits."""
    return f"{float(f'{number:.{digits}g}'):,.15g}"
