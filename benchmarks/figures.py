"""What a benchmark gives: figures, some with a goal, as a table for people and as JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


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

    @property
    def shown(self) -> str:
        """The value as a person reads it."""
        if isinstance(self.value, int):
            return f"{self.value:,}"
        if self.unit == "s":
            return f"{self.value:.1f} s"
        if self.value >= 1_000:
            return f"{self.value:,.0f}"
        # Close to 1, as cosines are, what is missing is what counts.
        return f"{self.value:.5f}" if 0.99 <= self.value < 1 else f"{self.value:.3f}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; met is null where there is no goal."""
        return asdict(self) | {"met": self.met if self.goal else None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of to_json."""
        return cls(**{name: value[name] for name in ("name", "value", "unit", "at_least", "at_most")})


def table(title: str, figures: Sequence[Figure]) -> str:
    """The figures of one benchmark as a table in Markdown."""
    lines = [f"| {title} | value | goal | met |", "| :-- | --: | --: | :-- |"]
    for figure in figures:
        met = ("yes" if figure.met else "**no**") if figure.goal else ""
        lines.append(f"| {figure.name} | {figure.shown} | {figure.goal} | {met} |")
    return "\n".join(lines)
