"""Log lines as JSON objects, one a line: for collectors, not for eyes."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from enum import StrEnum


class LogFormat(StrEnum):
    """Values of --log-format."""

    TEXT = "text"
    JSON = "json"


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`, and what the line has to say in fields of their own.

    A line break inside a message is \\n in JSON, so nobody can write a line of their own.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        own = getattr(record, "hal", None)
        if isinstance(own, dict):
            fields |= own
        else:
            fields["message"] = record.getMessage()
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def formatter(kind: LogFormat) -> logging.Formatter:
    if kind is LogFormat.JSON:
        return JsonFormatter()
    return logging.Formatter("%(asctime)s %(levelname)s %(message)s")
