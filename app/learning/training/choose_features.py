"""The columns that a network learns from, and how many features they become. Knows columns by their descriptions."""

from __future__ import annotations

from collections.abc import Mapping

from app.errors import Invalid
from app.learning.spec import Features
from app.learning.tables.describe_column import ColumnDescription


def choose_features(
    features: Features, columns: Mapping[str, ColumnDescription], target: str
) -> tuple[list[str], list[str]]:
    """Choose the feature columns.

    Args:
        columns: the descriptions by name.

    Returns:
        The names of the columns that are used, and warnings about those that are left out.

    Raises:
        Invalid: a named column does not exist or cannot be used, or no column is left.
    """
    _check_names(features, columns, target)
    used, warnings = [], []
    for name, column in columns.items():
        is_included = features.include is None or name in features.include
        if name == target or name in features.exclude or not is_included:
            continue
        if column["kind"] in ("text", "datetime"):
            if features.include is not None:
                raise Invalid.at(
                    ("features", "include"),
                    f"Column {name!r} is {column['kind']}; PATCH its kind to categorical to use it.",
                )
            warnings.append(f"column {name!r} is {column['kind']} and is left out")
        elif column["unique"] == 0:
            warnings.append(f"column {name!r} has no values and is left out")
        else:
            used.append(name)
    if not used:
        raise Invalid.at(("features",), "Expected at least one column to learn from, got none.")
    return used, warnings


def _check_names(features: Features, columns: Mapping[str, ColumnDescription], target: str) -> None:
    for side, names in (("include", features.include or []), ("exclude", features.exclude)):
        for i, name in enumerate(names):
            if name not in columns:
                raise Invalid.at(("features", side, i), f"There is no column {name[:80]!r}.")
    if target in (features.include or []):
        raise Invalid.at(("features", "include"), f"The target {target!r} cannot be a feature too.")


def encoded_width(column: ColumnDescription, encoding: str | None) -> int:
    """Return the number of features that a column becomes, as far as its statistics say."""
    marks = 1 if encoding == "auto" and column["missing"] else 0
    return marks + (column["unique"] if column["kind"] == "categorical" else 1)
