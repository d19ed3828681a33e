"""What a benchmark gives: figures, some with a goal, as a table for people and as JSON for programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number and, where it has one, the goal that it is held to."""

    name: str
    value: float
    unit: str = ""
    """"s" for seconds; a count or a share has none."""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the goal is met; without a goal it is."""
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    @property
    def goal(self) -> str:
        """The goal in a few characters, empty where there is none."""
        if self.at_least is not None:
            return f"≥ {self.at_least:,}"
        return f"≤ {self.at_most:,}" if self.at_most is not None else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; goal and met are null where there is no goal."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit or None,
            "goal": self.goal or None,
            "met": self.met if self.goal else None,
        }


def table(title: str, figures: Sequence[Figure]) -> str:
    """The figures of one benchmark as a table in Markdown."""
    lines = [f"| {title} | value | goal | met |", "| :-- | --: | --: | :-- |"]
    for figure in figures:
        met = ("yes" if figure.met else "**no**") if figure.goal else ""
        lines.append(f"| {figure.name} | {_shown(figure)} | {figure.goal} | {met} |")
    return "\n".join(lines)


def _shown(figure: Figure) -> str:
    if isinstance(figure.value, int):
        return f"{figure.value:,}"
    return f"{figure.value:.1f} s" if figure.unit == "s" else f"{figure.value:.3f}"
