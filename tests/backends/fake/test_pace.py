"""The pretended speed of the fake backend."""

import time

import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND
from radixmesh.backends.fake.runner import read_pace
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError
from radixmesh.engine.llm import LLM
from radixmesh.engine.request import SamplingParams


def test_steps_and_start_take_the_time_that_the_model_path_says() -> None:
    assert read_pace("smollm2-135m-instruct") == read_pace("fake") == {"step_time": 0.0, "load_time": 0.0}
    started = time.monotonic()
    llm = LLM(EngineConfig(backend="fake", model_path="fake:step_time=0.05,load_time=0.5"), FAKE_BACKEND)
    loaded = time.monotonic()
    assert loaded - started >= 0.5
    llm.generate("hello", SamplingParams(max_new_tokens=10, ignore_eos=True), use_tqdm=False)
    assert time.monotonic() - loaded >= 10 * 0.05


@pytest.mark.parametrize(
    "path", ["fake:step_time", "fake:step_time=fast", "fake:step=1", "fake:step_time=-1"]
)
def test_a_pace_that_cannot_be_read(path: str) -> None:
    with pytest.raises(ConfigError, match="model_path is 'fake:"):
        read_pace(path)


def test_llm_has_no_queue_to_bound() -> None:
    with pytest.raises(ConfigError, match="max_queue_wait"):
        LLM(EngineConfig(backend="fake", max_queue_wait=1.0), FAKE_BACKEND)
