"""How the operator's log is written: one line an event, as JSON or as text, with the run it is about.

Callers pass `extra={"run": "namespace/name", "attempt": 1}`; everything goes to stderr.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

_FIELDS = ("run", "attempt")
_LOUD = {
    # One line for each request and each event of every object.
    "httpx2": logging.WARNING,
    "httpcore2": logging.WARNING,
    "kopf": logging.WARNING,
    "asyncio": logging.WARNING,
}


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextLines(logging.Formatter):
    """For people: time, level, message, then what it is about."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback follows below."""
        about = "".join(f" {name}={value}" for name, value in _about(record).items())
        line = f"{_time(record)} {record.levelname.lower()} {record.getMessage()}{about}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(form: str) -> None:
    """Write the log to stderr, form "json" or "text"."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name, level in _LOUD.items():
        logging.getLogger(name).setLevel(level)


def _about(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
