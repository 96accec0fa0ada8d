"""Rounds of figures: their ratios with ranges, the goals that they are held to, and the tables of the README.

Knows nothing of what was measured. A figure means something beside the other figures of its own round only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.about import ROOT, digits, median

README = ROOT / "README.md"
#: a round: for each row, the figure of each contestant, None of one that was absent
Round = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Goal:
    """Bounds of a ratio of two figures, each named by its row and its contestant.

    Args:
        scale: the ratio is divided by it.
        is_of_each_round: whether the bounds hold for each round's ratio, and not only for the median.
    """

    title: str
    over: tuple[str, str]
    under: tuple[str, str]
    least: float = 0.0
    most: float = math.inf
    scale: float = 1.0
    is_of_each_round: bool = False

    def judge(self, rounds: Sequence[Round]) -> dict[str, Any]:
        """Give the ratio with its range, and whether the goal is met: None where nobody took part."""
        found = ratio(rounds, self.over, self.under, self.scale)
        if found is None:
            return {"goal": self.title, "ratio": None, "is_met": None}
        low, high = ("least", "most") if self.is_of_each_round else ("median", "median")
        return {"goal": self.title, "ratio": found, "is_met": self.least <= found[low] and found[high] <= self.most}


def ratio(
    rounds: Sequence[Round], over: tuple[str, str], under: tuple[str, str], scale: float = 1.0
) -> dict[str, float] | None:
    """Give the spread of each round's ratio of two figures, None where no round has both."""
    pairs = [(each[over[0]][over[1]], each[under[0]][under[1]]) for each in rounds]
    return spread([a / b / scale for a, b in pairs if a is not None and b is not None])


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Give the median and the range, None of nothing."""
    if not values:
        return None
    return {"median": median(values), "least": digits(min(values)), "most": digits(max(values))}


def rounded(rounds: Sequence[Round]) -> list[dict[str, dict[str, float | None]]]:
    """Give the rounds as they are written down, to three digits."""
    return [
        {row: {who: figure and digits(figure) for who, figure in found.items()} for row, found in each.items()}
        for each in rounds
    ]


def cell(found: Mapping[str, float] | None) -> str:
    """Show a spread in a table."""
    return "" if found is None else f"{found['median']:g} ({found['least']:g} to {found['most']:g})"


def verdicts(goals: Sequence[Mapping[str, Any]]) -> list[str]:
    """Show judged goals as the lines of a table."""
    words = {True: "met", False: "missed", None: "not measured"}
    lines = [f"| {goal['goal']} | {cell(goal['ratio'])} | {words[goal['is_met']]} |" for goal in goals]
    return ["| goal | ratio | |", "| --- | --- | --- |", *lines]


def embedded(text: str, page: str, part: str) -> str:
    """Put tables between the two marks of a part in a page."""
    marks = f"<!-- bench.{part}: begin -->\n", f"<!-- bench.{part}: end -->\n"
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not end:
        raise SystemExit(f"bench: expected {' and '.join(mark.strip() for mark in marks)} in the page")
    return f"{before}{begin}\n{text}\n{end}{after}"


def embed(text: str, part: str) -> None:
    """Put tables into the README."""
    README.write_text(embedded(text, README.read_text(encoding="utf-8"), part), encoding="utf-8")


def written(path: Path, text: str) -> None:
    """Write a file of results, in a folder that may be new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
