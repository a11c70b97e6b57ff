"""One line of the log for each HTTP request, and lines of the log as text or JSON.

A line tells who, what, how much and how long, never a prompt, an answer, a header or a key.
"""

import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from .options import ServerOptions
from .tracing import Tracer
from .visit import Visit

log = logging.getLogger("radixmesh.requests")

_FIELDS = "fields"  # of a log record: what the line tells, by name
# asked every few seconds by machines; told only when they go wrong, or with log_level=debug
_QUIET = frozenset({"/health", "/ping", "/metrics", "/engine_state"})


@dataclass(slots=True)
class Journal:
    """Writes down each visit once it is over, and tells the tracer of it, if there is one."""

    enabled: bool = True
    tracer: Tracer | None = None

    def note(self, visit: Visit) -> None:
        """Write a line for `visit`, which has ended."""
        quiet = visit.route in _QUIET and visit.status < 400
        if self.tracer is not None and not quiet:
            self.tracer.note(visit)
        if self.enabled and log.isEnabledFor(level := logging.DEBUG if quiet else logging.INFO):
            fields = visit_fields(visit)
            text = " ".join(f"{name}={_plain(value)}" for name, value in fields.items())
            log.log(level, "request %s", text, extra={_FIELDS: fields})

    def close(self) -> None:
        """Send what the tracer still has."""
        if self.tracer is not None:
            self.tracer.close()


def visit_fields(visit: Visit) -> dict[str, str | int | float]:
    """What is told of a visit, by name; tokens only of one that reached the engine. Times in milliseconds."""
    fields: dict[str, str | int | float | None] = {
        "id": visit.id or None,
        "key": visit.key_name,
        "method": visit.method,
        "route": visit.route,
        "status": visit.status,
    }
    if visit.prompt_tokens:
        fields |= {
            "prompt_tokens": visit.prompt_tokens,
            "cached_tokens": visit.cached_tokens,
            "output_tokens": visit.output_tokens,
            "queue_ms": _ms(visit.queued),
            "ttft_ms": _ms(visit.first_token),
        }
    fields |= {"total_ms": _ms(visit.total), "finish": ",".join(sorted(set(visit.finish_reasons))) or None}
    return {name: value for name, value in fields.items() if value is not None}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)


def _plain(value: str | int | float) -> str:
    """The value as one word: an id may be of the client's making."""
    text = str(value)
    return text if text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, logger, message; of a request its fields too."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields: dict[str, Any] = getattr(record, _FIELDS, {})
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": "request" if fields else record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(options: ServerOptions) -> None:
    """Send this process's log to stderr as the options say."""
    handler = logging.StreamHandler()
    is_json = options.log_format == "json"
    handler.setFormatter(JsonFormatter() if is_json else logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=options.log_level.upper(), handlers=[handler], force=True)
