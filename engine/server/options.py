"""Every option of the HTTP server; the command line is generated from it, as from EngineConfig."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..config import option
from ..errors import ConfigError

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
ReasoningParser = Literal["auto", "none", "deepseek-r1", "qwen3", "gpt-oss"]


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of the server.

    Raises ConfigError, naming the option, for a value that cannot be honoured.
    """

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for every network")
    port: int = option(30000, "port to listen on; 0 takes a free one")
    max_body_bytes: int = option(32 * 2**20, "largest request body; longer ones are refused with 413")
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
        30.0, "seconds without a sign of life from the engine after which /health is red"
    )
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "what the server logs")
    access_log: bool = option(False, "log a line for each HTTP request")

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("host is empty; accepted is an address such as 127.0.0.1")
        _check("port", self.port, 0, 65535, integer=True)
        _check("max_body_bytes", self.max_body_bytes, 1, math.inf, integer=True)
        if self.request_timeout is not None:
            _check("request_timeout", self.request_timeout, 0.001, math.inf)
        _check("drain_timeout", self.drain_timeout, 0, math.inf)
        _check("heartbeat_timeout", self.heartbeat_timeout, 1, math.inf)
        _check_choice("log_level", self.log_level, ("debug", "info", "warning", "error"))
        _check_choice("tool_call_parser", self.tool_call_parser, get_args(ToolCallParser))
        _check_choice("reasoning_parser", self.reasoning_parser, get_args(ReasoningParser))


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
