"""Who may come in: keys, limits and the time that a body may take, before any route is reached."""

import asyncio
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .allowance import Allowances
from .errors import BodyTimeoutError, ForbiddenError, HeadersTooLargeError, UnauthorizedError
from .keys import Key
from .options import ServerOptions
from .visit import Visit, current_visit

# the page holds nothing of anyone's: what it shows it asks for, with a key
OPEN_PATHS = frozenset({"/", "/health", "/ping"})
# they change the server's state for everybody, or show everybody's prompts; /abort_request looks itself whose
# request it is
ADMIN_PATHS = frozenset({"/flush_cache", "/engine_state"})

_WORK = ("POST", "PUT")  # what counts as a request of the limit; looking costs nothing


class Guard:
    """Keys and allowances, one for all ways into a server."""

    def __init__(self, options: ServerOptions) -> None:
        self._keys = options.keys
        self._allowances = Allowances(options.rate_limit_requests, options.rate_limit_tokens)
        self._limited = options.rate_limit_requests is not None or options.rate_limit_tokens is not None

    def let_in(self, visit: Visit, headers: Iterable[tuple[bytes, bytes]], path: str, works: bool) -> None:
        """Note whose `visit` it is, and count it if it `works`. Raises RequestError saying why not.

        Names of `headers` are in lower case.
        """
        visit.key = key = self._keys.find(_secrets(headers))
        self._check_key(path, key)
        is_admin = key is not None and key.is_admin
        if self._limited and not is_admin and path not in ADMIN_PATHS:
            visit.allowance = self._allowances.of(visit.key_name)
            if works:
                visit.allowance.take_request()

    def _check_key(self, path: str, key: Key | None) -> None:
        needs_admin = self._keys.admin is not None and path in ADMIN_PATHS
        if path in OPEN_PATHS or not (self._keys.user or needs_admin):
            return
        if key is None:
            raise UnauthorizedError(
                "the API key is missing or unknown; accepted is one of the server's, as Authorization: Bearer"
                " KEY or x-api-key: KEY"
            )
        if needs_admin and not key.is_admin:
            raise ForbiddenError(
                f"{path} needs the admin key; the one given is for requests of one's own alone"
            )


class Door:
    """ASGI middleware: lets a request in, or raises the RequestError that says why not."""

    def __init__(self, app: ASGIApp, guard: Guard, options: ServerOptions) -> None:
        self._app = app
        self._guard = guard
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request and pass it on with a body that must come in time."""
        if scope["type"] == "http":
            self._check_headers(scope)
            works = scope["method"] in _WORK
            self._guard.let_in(current_visit(), scope["headers"], scope["path"], works)
            receive = _in_time(receive, self._options.receive_timeout)
        await self._app(scope, receive, send)

    def _check_headers(self, scope: Scope) -> None:
        """What the parser lets through when it comes in one piece."""
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        limit = self._options.max_header_bytes
        if size > limit:
            raise HeadersTooLargeError(f"the headers take {size} bytes; accepted are {limit} at most")


def _secrets(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """What may be a key in the headers of a request, whose names are in lower case: two at most, so that
    nobody buys long work with many."""
    given = dict(headers)
    scheme, _, bearer = given.get(b"authorization", b"").partition(b" ")
    secrets = (bearer.strip() if scheme.lower() == b"bearer" else b"", given.get(b"x-api-key", b"").strip())
    return [secret for secret in secrets if secret]


def _in_time(receive: Receive, limit: float) -> Receive:
    """`receive`, which raises BodyTimeoutError when the body is not whole `limit` seconds from now."""
    deadline = asyncio.get_running_loop().time() + limit
    whole = False

    async def receive_in_time() -> Message:
        nonlocal whole
        if whole:  # what follows only tells of the client's leaving
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise BodyTimeoutError(
                f"the request's body did not come within receive_timeout, {limit:g} s"
            ) from None
        whole = not message.get("more_body", False)
        return message

    return receive_in_time
