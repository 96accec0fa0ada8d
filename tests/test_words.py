"""Plain words and small files: docstrings, comments, names of tests, sizes, and dictionaries that could be records.

A room is a package of `app/` with its tests, or a module right below `app/`; `scenarios`, `bench` and `tests` (the files
right below `tests/`) are rooms too. `NOT_YET` has the rules that a room does not keep yet. Once a room keeps a rule,
take the rule out of the room's line (`ALL - {"comments"}`), and in the end take out the line.

    pytest tests/test_words.py                           hold the rules that are kept
    ALL_WORDS=1 pytest tests/test_words.py -k jobs       list what is left in one room, whatever `NOT_YET` says
"""

from __future__ import annotations

import ast
import os
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

import pytest

from tests.service import ROOT

ALL = {"docstrings", "comments", "test names", "sizes", "dictionaries", "excepts"}
#: comments keep the lines apart, so that git merges what several people take out
NOT_YET: dict[str, set[str]] = {
    # work
    "serving": ALL,
    "scenarios": ALL,
    # tables and networks
    "learning": ALL,
    # database and store
    "records": ALL,
    "storage": ALL,
    # shared by answers
    "metrics": ALL,
    # shared by all
    "settings": ALL,
    "errors": ALL,
    "wiring": ALL,
    "names": ALL,
    # measurements
    "bench": ALL,
    # shared by tests
    "tests": ALL,
}

#: a docstring says what a function returns, or what is true, and not what the function gives or tells
UNWANTED_START = re.compile(r"(Gives?|Tells?)\b")
#: a comment begins with the thing that it is about: with "the cache" or "this file", not with "it", "this is" or "each takes"
BARE_PRONOUN = re.compile(
    r"""
    # words that never have their noun behind them; None is a value
    (?!None\b)(its?|they|their|them|he|she|his|her|him|who|whom|whose|whoever|what|whatever|which|none|others)\b
    # words that may have it there, as in "this file", and have not: the comment ends, or no noun can follow
    |(this|that|these|those|one|each|all|some|any|both|another|either|neither|many|few)\b
      (?!\ (?!(is|are|was|were|be|has|have|had|can|could|may|might|must|will|would|shall|should|do|does|did|not|never
               |also|only|of|in|on|at|to|for|from|by|with|without|after|before|between|beyond|as|and|or|but|so|than
               |then|still|already|that|which|who|whose|if|when|where|while|there|here|it|they)\b)\w)
    # a singular one of these before a verb: "each takes"; nouns and adjectives in s end otherwise: process, axis, previous
    |(this|that|one|each|any|another|either|neither)\ \w*[^\W siu]s\b(?!')
    """,
    re.VERBOSE | re.IGNORECASE,
)
MOST_NAME_CHARACTERS = 70
MOST_LINES, MOST_MEDIAN_LINES = 300, 150
LONG_FILE = f"Longer than {MOST_LINES} lines because "
MOST_BROAD_EXCEPTS = 5
#: how often `dict[str, Any]` may stand in these rooms together
MOST_DICTIONARIES = {
    ("api",): 24,
    ("learning",): 12,
    ("records",): 8,
    ("jobs", "ingest", "serving"): 6,
    ("cli", "client"): 4,
    ("http", "fast_path", "metrics", "server"): 4,
}
MOST_DICTIONARIES_ELSEWHERE = 2

FILES = sorted(path for top in ("app", "bench", "tests") for path in (ROOT / top).rglob("*.py"))


def room_of(path: Path) -> str:
    top, *below = path.relative_to(ROOT).with_suffix("").parts
    if top == "bench" or (top == "tests" and len(below) == 1):
        return top
    return below[0]


ROOMS = sorted({room_of(path) for path in FILES})


def keeps(room: str, rule: str) -> bool:
    return "ALL_WORDS" in os.environ or rule not in NOT_YET.get(room, set())


def rooms(rule: str) -> pytest.MarkDecorator:
    """Run a test for each room that keeps a rule."""
    return pytest.mark.parametrize("room", [room for room in ROOMS if keeps(room, rule)])


def files(room: str, top: str = "") -> list[Path]:
    return [path for path in FILES if room_of(path) == room and path.relative_to(ROOT).parts[0].startswith(top)]


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Return each comment's first line; comments on lines that follow each other are one comment."""
    last = 0
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type != tokenize.COMMENT:
                continue
            number, is_alone = token.start[0], token.line.lstrip().startswith("#")
            if not (is_alone and number == last + 1):
                yield number, token.string.lstrip("#:").strip()
            last = number if is_alone else 0


def broad_excepts(path: Path) -> list[str]:
    nodes = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ExceptHandler)]
    return [
        place(path, node.lineno)
        for node in nodes
        if node.type is None or re.search(r"\b(Base)?Exception\b", ast.unparse(node.type))
    ]


@rooms("docstrings")
def test_no_docstring_begins_with_give_or_tell(room: str) -> None:
    wrong = [
        f"{place(path, line)}: {text.splitlines()[0]}"
        for path in files(room)
        for line, text in docstrings(path)
        if UNWANTED_START.match(text)
    ]

    assert not wrong, "\n".join(wrong)


@rooms("comments")
def test_no_comment_begins_with_a_bare_pronoun(room: str) -> None:
    wrong = [
        f"{place(path, line)}: {text}"
        for path in files(room)
        for line, text in comments(path)
        if BARE_PRONOUN.match(text)
    ]

    assert not wrong, "\n".join(wrong)


@rooms("test names")
def test_names_of_tests_are_short(room: str) -> None:
    functions = [
        (path, node)
        for path in files(room, "tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]

    wrong = [
        f"{place(path, function.lineno)}: {function.name} has {len(function.name)} characters"
        for path, function in functions
        if len(function.name) > MOST_NAME_CHARACTERS
    ]

    assert not wrong, "\n".join(wrong)


@rooms("sizes")
def test_a_long_file_says_why(room: str) -> None:
    lines = {path: count_lines(path) for top in ("app", "bench") for path in files(room, top)}

    wrong = [
        f"{path.relative_to(ROOT)}: {count} lines"
        for path, count in lines.items()
        if count > MOST_LINES and LONG_FILE not in " ".join((ast.get_docstring(parsed(path)) or "").split())
    ]

    assert not wrong, "\n".join(wrong)


def test_half_of_the_files_are_short() -> None:
    assert median(count_lines(path) for path in FILES if path.is_relative_to(ROOT / "app")) <= MOST_MEDIAN_LINES


def test_few_handlers_catch_every_exception() -> None:
    broad = [
        handler
        for room in ROOMS
        if keeps(room, "excepts")
        for path in files(room, "app")
        for handler in broad_excepts(path)
    ]

    assert len(broad) <= MOST_BROAD_EXCEPTS, "\n".join(broad)


@pytest.mark.parametrize("group", [*MOST_DICTIONARIES, ("elsewhere",)], ids=" ".join)
def test_few_dictionaries_stand_where_a_record_could(group: tuple[str, ...]) -> None:
    named = {room for rooms in MOST_DICTIONARIES for room in rooms}
    counts = {
        room: sum(path.read_text(encoding="utf-8").count("dict[str, Any]") for path in files(room, "app"))
        for room in (group if group in MOST_DICTIONARIES else set(ROOMS) - named)
        if keeps(room, "dictionaries")
    }

    assert sum(counts.values()) <= MOST_DICTIONARIES.get(group, MOST_DICTIONARIES_ELSEWHERE), counts


def test_the_list_of_what_is_left_names_rooms_and_rules() -> None:
    assert set() == set(NOT_YET) - set(ROOMS)
    assert set() == set().union(*NOT_YET.values()) - ALL


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("it is read once", True),
        ("their jobs were there first", True),
        ("what is sent again", True),
        ("those of small uploads", True),
        ("each takes a tenth of a second", True),
        ("one that was deleted", True),
        ("this is another device", True),
        ("this", True),
        ("this file is read once", False),
        ("each process waits", False),
        ("one axis of the array", False),
        ("each is loaded at once", True),
        ("some, at a time", True),
        ("all names are of our own schema", False),
        ("it", True),
        ("items are read once", False),
        ("these protocols have no other status", False),
        ("another server's protocol", False),
        ("the cache keeps it", False),
        ("None where there is no value", False),
        ("`that` is a name here", False),
    ],
)
def test_a_determiner_with_its_noun_is_no_bare_pronoun(comment: str, expected: bool) -> None:
    assert expected == bool(BARE_PRONOUN.match(comment))
