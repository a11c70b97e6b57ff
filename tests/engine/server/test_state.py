"""What /health says, from a given state of the engine."""

from types import SimpleNamespace
from typing import Any

import pytest

from radixmesh.engine.errors import ConfigError, NotServingError
from radixmesh.engine.server.options import ServerOptions
from radixmesh.engine.server.state import Server
from radixmesh.engine.stats import EngineStats


def server(**state: Any) -> Server:
    llm: Any = SimpleNamespace(
        **{"alive": True, "heartbeat_age": 0.5, "tokenizer": None, "stats": EngineStats(), **state}
    )
    return Server(llm, ServerOptions(heartbeat_timeout=10))


def test_health_follows_life_heartbeat_and_draining() -> None:
    assert server().sickness() is None
    assert server(heartbeat_age=9.9).sickness() is None
    assert "12.0 s" in str(server(heartbeat_age=12.0).sickness())
    assert "engine process" in str(server(alive=False).sickness())
    stopping = server()
    stopping.check_serving()
    stopping.draining = True
    assert "draining" in str(stopping.sickness())
    with pytest.raises(NotServingError):
        stopping.check_serving()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", ""), ("port", -1), ("port", 65536), ("port", "80"), ("max_body_bytes", 0),
        ("request_timeout", 0), ("drain_timeout", -1), ("heartbeat_timeout", 0), ("log_level", "loud"),
    ],
)  # fmt: skip
def test_options_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is"):
        ServerOptions(**{name: value})
