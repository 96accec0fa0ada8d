"""The shapes of errors: of the contract's own routes, and of the other servers' protocols."""

from __future__ import annotations

from pydantic import BaseModel


class ProblemFault(BaseModel):
    """One thing that is wrong, and where."""

    loc: list[str | int]
    message: str
    code: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: list[ProblemFault]


class PlainError(BaseModel):
    """What went wrong, in words."""

    error: str
