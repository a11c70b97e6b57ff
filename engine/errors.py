"""Every error that a user can meet.

RadixMeshError
├── ConfigError         an option that cannot be honoured, found before anything starts
├── ModelError          a model that cannot be found, read or served
├── RequestError        one request is refused; carries the HTTP status and the field at fault
│   ├── QueueFullError      429: the waiting queue is at its bound, or the request waited too long
│   ├── NotServingError     503: shutting down, or the engine is gone
│   └── GrammarError        a grammar does not compile, or cannot go on
└── EngineDeadError     the engine process ended; every open request ends with it

Each message is one sentence that names the field, the value and what would be accepted.
"""


class RadixMeshError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(RadixMeshError):
    """An engine or server option is wrong, or cannot be honoured here."""


class ModelError(RadixMeshError):
    """A model cannot be found, read or served."""


class RequestError(RadixMeshError):
    """One request is refused. Nothing else in the engine is touched.

    `field` is the parameter at fault in the caller's own words; `status` the HTTP status; `retry_after` the
    seconds after which the same request may be served, for statuses that ask to come again.
    """

    status = 400
    retry_after = 1.0

    def __init__(self, message: str, field: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.field = field
        if status is not None:
            self.status = status


class QueueFullError(RequestError):
    """The waiting queue is at its bound, in requests or in seconds; try again later."""

    status = 429


class NotServingError(RequestError):
    """The server is draining, or its engine is gone."""

    status = 503


class GrammarError(RequestError):
    """What constrains an output does not compile, or cannot go on; the reason is the grammar library's."""


class EngineDeadError(RadixMeshError):
    """The engine process ended; open requests cannot be finished."""

    retry_after = 1.0  # seconds, as RequestError's
