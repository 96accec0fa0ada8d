"""What names look like: of models, aliases and workers, of references to versions, and of stored things.

Each is the text of a regular expression without anchors. Python, pydantic and JavaScript read it alike.
"""

from __future__ import annotations

import secrets
import time

MODEL = "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
#: an alias starts with a letter, so that no version's number is one
ALIAS = "[A-Za-z][A-Za-z0-9_.-]{0,63}"
#: what a caller calls a version: `name`, `name@3` or `name@alias`
REF = f"{MODEL}(@{MODEL})?"
WORKER = "[A-Za-z0-9_.-]{1,64}"
#: the alias that a model's bare name means
DEFAULT = "default"


def id_of(prefix: str) -> str:
    """Return what the ids of `new_id` look like."""
    return f"{prefix}_[0-9a-f]{{1,60}}"


def new_id(prefix: str) -> str:
    """Return a new id that sorts by time, such as `job_0193a5…`: 48 bits of milliseconds, then 64 random bits."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"
