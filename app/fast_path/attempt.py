"""The one guard of the fast path: a step that fails leaves the request to its route."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from app.errors import FitserveError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

logger = logging.getLogger(__name__)


def attempt(step: Callable[[*Ts], T], *arguments: *Ts) -> T | None:
    """Return what a step returns; None where it fails, so that the route answers and says what is wrong."""
    try:
        return step(*arguments)
    except FitserveError:
        return None
    except Exception:
        # a fault of the fast path must not lose a request that the route can answer, nor the other requests of a batch
        logger.exception("the fast path failed")
        return None
