"""Every option of the HTTP server; the command line is generated from it, as from EngineConfig."""

import math
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal, get_args

from ..config import option
from ..errors import ConfigError
from .keys import KeyRing, read_keys
from .tracing import check_endpoint

ToolCallParser = Literal[
    "auto",
    "none",
    "hermes",
    "qwen",
    "qwen25",
    "qwen3_coder",
    "llama3",
    "mistral",
    "pythonic",
    "deepseekv3",
    "deepseekv31",
    "gpt-oss",
]
_ORIGIN = re.compile(r"\*|https?://[^/\s@]+", re.ASCII)  # what browsers send: no path, no user
ReasoningParser = Literal["auto", "none", "deepseek-r1", "qwen3", "gpt-oss"]


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of the server.

    Raises ConfigError, naming the option, for a value that cannot be honoured.
    """

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for every network")
    port: int = option(30000, "port to listen on; 0 takes a free one")
    grpc_port: int | None = option(
        None, "port of the gRPC service, on the same host; 0 takes a free one; default: no such service"
    )
    api_key: tuple[str, ...] = option(
        (), "key that callers must have; may be given several times; others can read it in the process list",
        secret=True,
    )  # fmt: skip
    api_key_file: str | None = option(
        None, "file of such keys, one on each line, with a name after it for logs; default: no file"
    )
    admin_api_key: str | None = option(
        None, "key for what changes the server's state; default: as for any request", secret=True
    )
    rate_limit_requests: int | None = option(
        None, "requests that each key may make in a minute, more get 429; default: no limit"
    )
    rate_limit_tokens: int | None = option(
        None, "tokens, of prompts and outputs, that each key may use in a minute; default: no limit"
    )
    cors_allow_origins: tuple[str, ...] = option(
        (), "origin whose pages may call from a browser, or *; may be given several times"
    )
    ssl_certfile: str | None = option(
        None, "PEM file of the certificate, and those it rests on, to serve HTTPS with; default: plain HTTP"
    )
    ssl_keyfile: str | None = option(None, "PEM file of the certificate's private key, which has no password")
    max_connections: int | None = option(
        None, "connections that may be open at once, more get 503; default: no limit"
    )
    max_body_bytes: int = option(32 * 2**20, "largest request body; longer ones are refused with 413")
    max_header_bytes: int = option(16 * 2**10, "most bytes of a request's first line and headers")
    receive_timeout: float = option(
        60.0, "seconds that a client may take to send its headers, and then its body"
    )
    stall_timeout: float | None = option(
        60.0 if hasattr(socket, "TCP_USER_TIMEOUT") else None,
        "seconds without a sign that the client takes what was sent, after which its connection is closed and"
        " its request aborted; Linux only",
    )
    request_timeout: float | None = option(
        None, "seconds that a request may take, waiting included; default: no limit"
    )
    tool_call_parser: ToolCallParser = option(
        "auto", "how the model writes calls of tools; auto: as its chat template shows"
    )
    reasoning_parser: ReasoningParser = option(
        "auto", "how the model marks its reasoning; auto: as its chat template shows"
    )
    drain_timeout: float = option(30.0, "seconds that running requests get to finish after SIGTERM")
    heartbeat_timeout: float = option(
        30.0,
        "seconds without a sign of life from the engine after which /health is red, and with"
        " restart_engine the engine is killed; longer than any step must be",
    )
    restart_engine: bool = option(
        False,
        "start a new engine process when it ends or hangs, at most 5 times in ten minutes; else the server"
        " ends",
    )
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "what the server logs")
    otlp_traces_endpoint: str | None = option(
        None, "OTLP/HTTP address that gets a span for each request; default: no traces"
    )
    log_format: Literal["text", "json"] = option("text", "how lines of the log are written")
    access_log: bool = option(True, "log a line for each HTTP request; never prompts, answers or keys")
    ui: bool = option(True, "serve the page at / and /engine_state, which it shows")
    ui_prompts: bool = option(True, "show there how the texts of cached prompts begin")

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("host is empty; accepted is an address such as 127.0.0.1")
        _check("port", self.port, 0, 65535, integer=True)
        if self.grpc_port is not None:
            _check("grpc_port", self.grpc_port, 0, 65535, integer=True)
            _check_grpc(self.grpc_port)
        if self.ssl_certfile is not None or self.ssl_keyfile is not None:
            _check_certificate(self.ssl_certfile, self.ssl_keyfile)
        if self.max_connections is not None:
            _check("max_connections", self.max_connections, 1, math.inf, integer=True)
        _check("max_body_bytes", self.max_body_bytes, 1, math.inf, integer=True)
        if self.request_timeout is not None:
            _check("request_timeout", self.request_timeout, 0.001, math.inf)
        if self.stall_timeout is not None:
            _check("stall_timeout", self.stall_timeout, 0.001, 3600)
            if not hasattr(socket, "TCP_USER_TIMEOUT"):
                raise ConfigError(
                    "stall_timeout is set; accepted on this system is None: it cannot watch clients"
                )
        _check("drain_timeout", self.drain_timeout, 0, math.inf)
        _check("heartbeat_timeout", self.heartbeat_timeout, 1, math.inf)
        _check("max_header_bytes", self.max_header_bytes, 256, 2**20, integer=True)
        _check("receive_timeout", self.receive_timeout, 0.1, math.inf)
        for name in ("rate_limit_requests", "rate_limit_tokens"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), 1, math.inf, integer=True)
        for origin in self.cors_allow_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"cors_allow_origins is {origin!r}; accepted are * and origins such as"
                    " https://example.com:8443"
                )
        _ = self.keys  # whatever is wrong with them is told before the model loads
        if self.otlp_traces_endpoint is not None:
            check_endpoint(self.otlp_traces_endpoint)
        _check_choice("log_format", self.log_format, ("text", "json"))
        _check_choice("log_level", self.log_level, ("debug", "info", "warning", "error"))
        _check_choice("tool_call_parser", self.tool_call_parser, get_args(ToolCallParser))
        _check_choice("reasoning_parser", self.reasoning_parser, get_args(ReasoningParser))

    @cached_property
    def keys(self) -> KeyRing:
        """Every key that the options name. Raises ConfigError."""
        return read_keys(self.api_key, self.api_key_file, self.admin_api_key)

    def shown(self) -> dict[str, Any]:
        """The options by name; of a secret only whether there is one."""
        return {
            each.name: bool(getattr(self, each.name)) if each.metadata["secret"] else getattr(self, each.name)
            for each in fields(self)
        }


def _check_grpc(port: int) -> None:
    """Raise ConfigError where the extra's packages are not there."""
    missing = [
        name for name in ("grpc", "grpc_tools", "grpc_health", "grpc_reflection") if not find_spec(name)
    ]
    if missing:
        raise ConfigError(
            f"grpc_port is {port}, which needs {', '.join(missing)}: pip install 'radixmesh[grpc]'"
        )


def _check_certificate(certificate: str | None, key: str | None) -> None:
    """Raise ConfigError for what no server could prove itself with."""
    if certificate is None or key is None:
        given = "ssl_keyfile" if certificate is None else "ssl_certfile"
        raise ConfigError(f"{given} is given alone; accepted are ssl_certfile and ssl_keyfile, or neither")
    try:
        # of a key with a password OpenSSL would ask the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: "")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"ssl_certfile {certificate} with ssl_keyfile {key} cannot be used: {error}; accepted are PEM"
            " files of a certificate and of its own private key, without a password"
        ) from None


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; accepted are {', '.join(choices)}")


def _check(name: str, value: object, low: float, high: float, integer: bool = False) -> None:
    kinds = (int,) if integer else (int, float)
    if isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high:
        return
    kind = "an integer" if integer else "a number"
    bounds = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
    raise ConfigError(f"{name} is {value!r}; accepted is {kind} {bounds}")
