"""What crosses to the engine process as it starts: data and names, never code."""

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError
from radixmesh.engine.messages import Start
from radixmesh.engine.runner import Backend


def test_a_start_arrives_as_it_was_sent() -> None:
    config = EngineConfig(model_path="a\nb", mem_fraction_static=0.25, tp_size=2, page_size=4)
    line = msgspec.json.encode(Start.of(config, FAKE_BACKEND))
    assert b"\n" not in line  # it is read as one line
    start = msgspec.json.decode(line, type=Start)
    assert start.config == config and start.backend() == FAKE_BACKEND


def _local() -> Callable[..., Any]:
    return lambda config: None


def _of_main(config: EngineConfig) -> Any:
    raise AssertionError


_of_main.__module__ = "__main__"


@pytest.mark.parametrize("function", [_local(), _of_main, functools.partial(_of_main)])
def test_a_backend_that_another_process_cannot_import_is_refused(function: Callable[..., Any]) -> None:
    for backend in (
        Backend(function, FAKE_BACKEND.create_runner),
        Backend(FAKE_BACKEND.describe, function),
    ):
        with pytest.raises(ConfigError, match="cannot be found by another process"):
            Start.of(EngineConfig(), backend)
