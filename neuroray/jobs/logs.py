"""How jobs speak while they work: progress bars and text on a terminal, quiet elsewhere, JSON lines on request."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

_JSON_VARIABLE = "NEURORAY_LOG"


class _JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and whatever came as `extra={"facts": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logging(*, as_json: bool, debug: bool = False) -> None:
    """Sends this package's log to standard error; what other libraries log stays at warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(message)s"))
    logger = logging.getLogger("neuroray")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
    os.environ[_JSON_VARIABLE] = "json" if as_json else "text"


def progress[T](items: Iterable[T], *, total: int | None = None, label: str, unit: str = "scan") -> Iterable[T]:
    """The same items, with a bar on a terminal; with JSON logs, or where nobody watches, nothing is drawn."""
    from tqdm import tqdm

    quiet = os.environ.get(_JSON_VARIABLE) == "json" or not sys.stderr.isatty()
    return tqdm(items, total=total, desc=label, unit=unit, disable=quiet, leave=False)
