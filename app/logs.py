"""Logs: one JSON object a line on standard error, from this code and from every library."""

from __future__ import annotations

import logging
import logging.config

import structlog

_SHARED: list[structlog.types.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def configure(level: str) -> None:
    """Send every logger's lines through one JSON formatter."""
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": _SHARED,
        "processors": [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ],
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": formatter, "line": {"format": "%(message)s"}},
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "formatter": "json"},
                "lines": {"class": "logging.StreamHandler", "formatter": "line"},
            },
            "root": {"handlers": ["stderr"], "level": level.upper()},
            "loggers": {
                # the service's own line for each request, with its id, comes as JSON
                "fitserve.access": {"handlers": ["lines"], "propagate": False},
                "uvicorn.access": {"level": "CRITICAL"},
                "uvicorn.error": {"level": "WARNING"},
                "alembic": {"level": "WARNING"},
                # DBOS adds a handler of its own where there is none
                "dbos": {"handlers": ["stderr"], "level": "ERROR", "propagate": False},
            },
        }
    )
