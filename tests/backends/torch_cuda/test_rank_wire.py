"""Messages between ranks arrive as they were sent, and are data only."""

import dataclasses
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from radixmesh.backends.torch_cuda.rank_wire import Assignment, Message, Step, Warmup, Wire
from radixmesh.backends.torch_cuda.ranks import Ranks
from radixmesh.engine.batch import SamplingArrays, SamplingVariant, ScheduleBatch
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.runner import ModelInfo


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Wire]]:
    one, other = socket.socketpair()
    with one, other:
        yield Wire(one), Wire(other)


def made_batch() -> ScheduleBatch:
    """A plan in which no two arrays are alike."""
    rng = np.random.default_rng(0)

    def fill(kind: type, given: dict[str, object]) -> dict[str, object]:
        floats = ("temperature", "top_p", "min_p", "penalty", "values")
        for field in dataclasses.fields(kind):
            if field.name not in given:
                dtype = np.float32 if field.name.endswith(floats) else np.int32
                given[field.name] = rng.integers(0, 1000, rng.integers(0, 9)).astype(dtype)
        return given

    sampling = fill(SamplingArrays, {"seeds": np.array([2**32 - 1], np.uint32)})
    given = {"step": 7, "rows": (), "sampled": (), "variant": SamplingVariant.FULL, "num_decode_rows": 2}
    return ScheduleBatch(**fill(ScheduleBatch, {**given, "sampling": SamplingArrays(**sampling)}))  # type: ignore[arg-type]


def assert_same(got: object, want: object) -> None:
    if dataclasses.is_dataclass(want):
        for field in dataclasses.fields(want):
            assert_same(getattr(got, field.name), getattr(want, field.name))
    elif isinstance(want, np.ndarray):
        assert isinstance(got, np.ndarray) and got.dtype == want.dtype and got.tolist() == want.tolist()
    else:
        assert got == want


def test_an_assignment_and_a_step_arrive_as_they_were_sent(ends: tuple[Wire, Wire]) -> None:
    config = EngineConfig(backend="torch", tp_size=2, mem_fraction_static=0.5)
    info = ModelInfo("a", "/a", 9, 10, frozenset([3]), {"top_p": 0.5})
    batch = made_batch()
    sent: list[Message] = [
        Assignment(config, info, Ranks(1, 2), False, "/meeting"),
        Warmup(),
        Step([batch, batch]),
    ]
    for message in sent:
        ends[0].send(message)
    assignment, warmup, step = (ends[1].receive() for _ in sent)
    assert (assignment, warmup) == (sent[0], sent[1])
    assert isinstance(step, Step) and len(step.batches) == 2
    for got in step.batches:
        assert_same(got, batch)


def test_the_end_of_the_other_side_is_noticed(ends: tuple[Wire, Wire]) -> None:
    ends[0].socket.sendall(b"\1\0")
    ends[0].socket.close()
    with pytest.raises(EOFError):
        ends[1].receive()


def test_only_data_can_be_sent(ends: tuple[Wire, Wire]) -> None:
    with pytest.raises(TypeError, match="a function cannot be sent to another rank"):
        ends[0].send(Step([dataclasses.replace(made_batch(), positions=made_batch)]))  # type: ignore[arg-type]
