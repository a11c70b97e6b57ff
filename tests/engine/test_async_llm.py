"""AsyncLLM over a real engine process with the fake runner, whose tokens can be computed by hand."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND
from radixmesh.backends.fake.oracle import expected_tokens
from radixmesh.engine.async_llm import AsyncLLM
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import (
    EngineDeadError,
    ModelError,
    NotServingError,
    QueueFullError,
    RequestError,
)
from radixmesh.engine.request import FinishReason, SamplingParams
from tests.engine.async_driving import children, collect, nothing_is_left, started

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
ENDLESS = SamplingParams(max_new_tokens=None, **GREEDY)  # to the end of a very long context
LONG = 10_000_000  # tokens
__all__ = ["nothing_is_left"]  # for every test here


async def settled(llm: AsyncLLM, done: Callable[[], bool]) -> None:
    """Wait for a newer snapshot of which `done` holds."""
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end, llm.stats
        await asyncio.sleep(0.02)


def all_pages_are_back(llm: AsyncLLM) -> bool:
    stats = llm.stats
    idle = stats.num_running == stats.num_waiting == stats.used_pages == 0
    return (
        idle and stats.free_pages + stats.cached_pages == stats.num_pages and not stats.integrity_violations
    )


def test_tokens_and_text() -> None:
    async def test() -> None:
        async with started() as llm:
            (output,) = await collect(llm, "hello", SamplingParams(max_new_tokens=30, **GREEDY))
            expected = expected_tokens(list(b"hello"), 30, 259)
            assert output.token_ids == expected
            assert llm.tokenizer is not None
            assert output.text == llm.tokenizer.fast.decode(expected, skip_special_tokens=True)
            assert (output.finish_reason, output.num_prompt_tokens) == (FinishReason.LENGTH, 5)
            assert llm.info.name == "fake" and llm.capacity.num_pages == 4096
            assert [choice.name for choice in llm.choices] == ["model_path"]
            assert llm.alive and llm.heartbeat_age < 5 and llm.num_open_requests == 0

    asyncio.run(test())


def test_many_streams_at_once() -> None:
    async def test() -> None:
        async with started(max_running_requests=32) as llm:
            prompts = [[index % 200, index // 200, 7] for index in range(300)]
            params = SamplingParams(max_new_tokens=20, **GREEDY)
            results = await asyncio.gather(*(collect(llm, prompt, params) for prompt in prompts))
            for prompt, (output,) in zip(prompts, results, strict=True):
                assert output.token_ids == expected_tokens(prompt, 20, 259)
            await settled(llm, lambda: all_pages_are_back(llm) and llm.stats.finished == 300)

    asyncio.run(test())


def test_several_sequences_of_one_prompt() -> None:
    async def test() -> None:
        async with started() as llm:
            params = SamplingParams(max_new_tokens=10, n=4, sampling_seed=1, ignore_eos=True)
            first = await collect(llm, "hello", params, request_id="a")
            again = await collect(llm, "hello", params, request_id="a")
            assert [output.index for output in first] == [0, 1, 2, 3]
            assert {output.request_id for output in first} == {"a"}
            assert [output.token_ids for output in first] == [output.token_ids for output in again]
            assert len({tuple(output.token_ids) for output in first}) == 4

    asyncio.run(test())


def test_stop_string_ends_the_engines_request_too() -> None:
    async def test() -> None:
        async with started(context_length=LONG) as llm:
            assert llm.tokenizer is not None
            ids = expected_tokens(list(b"hello"), 40, 259)
            text = llm.tokenizer.decode(ids)
            stop = next(text[at : at + 2] for at in range(10, 30) if "\ufffd" not in text[at : at + 2])
            params = SamplingParams(max_new_tokens=None, stop=(stop,), **GREEDY)
            (output,) = await collect(llm, "hello", params)
            assert output.text == text[: text.index(stop)]
            assert (output.finish_reason, output.matched_stop) == (FinishReason.STOP, stop)
            await settled(llm, lambda: all_pages_are_back(llm) and llm.stats.aborted == 1)

    asyncio.run(test())


def test_closing_the_iterator_frees_the_pages() -> None:
    async def test() -> None:
        async with started(context_length=LONG) as llm:
            async with aclosing(llm.generate("hello", ENDLESS)) as stream:  # type: ignore[type-var]
                async for output in stream:
                    if len(output.token_ids) > 50:
                        break
                await settled(llm, lambda: llm.stats.used_pages > 0)
            assert llm.num_open_requests == 0
            await settled(llm, lambda: all_pages_are_back(llm) and llm.stats.aborted == 1)

    asyncio.run(test())


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.01, 0.1])
def test_cancelling_at_any_moment(delay: float) -> None:
    async def test() -> None:
        async with started(context_length=LONG) as llm:
            prompts = ["x" * 10, "y" * 20_000]  # the second is encoded in a thread
            tasks = [asyncio.create_task(collect(llm, prompt, ENDLESS)) for prompt in prompts]
            await asyncio.sleep(delay)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert llm.num_open_requests == 0
            (output,) = await collect(llm, "hello", SamplingParams(max_new_tokens=5, **GREEDY))
            assert output.token_ids == expected_tokens(list(b"hello"), 5, 259)
            await settled(llm, lambda: all_pages_are_back(llm))

    asyncio.run(test())


def test_abort_by_id_and_of_all() -> None:
    async def test() -> None:
        async with started(context_length=LONG) as llm:
            params = SamplingParams(max_new_tokens=None, n=2, sampling_seed=0, ignore_eos=True)
            tasks = [
                asyncio.create_task(collect(llm, "hello", params, request_id=name))
                for name in ("a", "b", "c")
            ]
            await settled(llm, lambda: llm.stats.num_running == 6)
            assert await llm.abort("nobody") == 0
            assert await llm.abort("b") == 1
            assert [output.finish_reason for output in await tasks[1]] == [FinishReason.ABORT] * 2
            # the id is free again, and late outputs of its first bearer are not the second's
            (again,) = await collect(llm, "hello", SamplingParams(max_new_tokens=5, **GREEDY), request_id="b")
            assert again.token_ids == expected_tokens(list(b"hello"), 5, 259)
            assert await llm.abort(None) == 2
            for task in (tasks[0], tasks[2]):
                assert [output.finish_reason for output in await task] == [FinishReason.ABORT] * 2
            await settled(llm, lambda: all_pages_are_back(llm))

    asyncio.run(test())


def test_abort_before_the_request_is_sent() -> None:
    async def test() -> None:
        async with started(context_length=LONG) as llm:
            task = asyncio.create_task(collect(llm, "y" * 100_000, ENDLESS, request_id="a"))
            await asyncio.sleep(0)
            assert await llm.abort("a") == 1
            (output,) = await task
            assert (output.finish_reason, output.token_ids) == (FinishReason.ABORT, [])

    asyncio.run(test())


def test_a_slow_reader_gets_all_in_few_outputs() -> None:
    async def test() -> None:
        async with started() as llm:
            params = SamplingParams(max_new_tokens=200, **GREEDY)
            stream = llm.generate("hello", params)
            outputs = [await anext(stream)]
            await settled(llm, lambda: llm.stats.finished == 1)
            outputs += [output async for output in stream]
            assert len(outputs) <= 3
            assert [index for output in outputs for index in output.new_token_ids] == outputs[-1].token_ids
            assert "".join(output.text_delta for output in outputs) == outputs[-1].text
            assert outputs[-1].token_ids == expected_tokens(list(b"hello"), 200, 259)

    asyncio.run(test())


def test_refusals() -> None:
    async def test() -> None:
        async with started(context_length=LONG, max_total_tokens=64, max_queued_requests=2) as llm:
            greedy = SamplingParams(max_new_tokens=4, **GREEDY)
            for prompt, words in (("", "empty"), ([259], "token id 259"), ([1] * 64, "at most 63")):
                with pytest.raises(RequestError, match=words) as caught:
                    await collect(llm, prompt, greedy)
                assert (caught.value.field, caught.value.status) == ("prompt", 400)
            with pytest.raises(QueueFullError, match="max_queued_requests is 2"):
                await collect(llm, "hello", SamplingParams(n=128, sampling_seed=1))
            stream = llm.generate("hello", greedy, request_id="a")
            outputs = [await anext(stream)]  # the only one, if the engine was faster than we are
            with pytest.raises(RequestError, match="'a' is in use") as caught:
                await collect(llm, "hello", greedy, request_id="a")
            assert caught.value.field == "request_id"
            outputs += [output async for output in stream]
            assert outputs[-1].finish_reason is FinishReason.LENGTH
            await settled(llm, lambda: all_pages_are_back(llm))
            assert llm.num_open_requests == 0

    asyncio.run(test())


def test_flush_cache() -> None:
    async def test() -> None:
        async with started(context_length=LONG) as llm:
            params = SamplingParams(max_new_tokens=4, **GREEDY)
            assert [(await collect(llm, [5] * 40, params))[0].num_cached_tokens for _ in range(2)] == [0, 32]
            await settled(llm, lambda: all_pages_are_back(llm))
            assert await llm.flush_cache()
            assert (await collect(llm, [5] * 40, params))[0].num_cached_tokens == 0
            stream = llm.generate("hello", ENDLESS)
            await anext(stream)
            assert not await llm.flush_cache()
            await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(test())


def test_drain_lets_requests_finish() -> None:
    async def test() -> None:
        async with started() as llm:
            task = asyncio.create_task(collect(llm, "hello", SamplingParams(max_new_tokens=50, **GREEDY)))
            await asyncio.sleep(0)
            drained = asyncio.create_task(llm.drain(30))
            await asyncio.sleep(0)
            with pytest.raises(NotServingError):
                await collect(llm, "hello", SamplingParams())
            await drained
            assert (await task)[0].finish_reason is FinishReason.LENGTH

    asyncio.run(test())


def test_drain_aborts_what_takes_too_long() -> None:
    async def test() -> None:
        async with started(context_length=LONG) as llm:
            task = asyncio.create_task(collect(llm, "hello", ENDLESS))
            await settled(llm, lambda: llm.stats.num_running == 1)
            await llm.drain(0.1)
            assert (await task)[0].finish_reason is FinishReason.ABORT

    asyncio.run(test())


def test_a_killed_engine_fails_open_requests() -> None:
    async def test() -> None:
        async with started(context_length=LONG) as llm:
            tasks = [asyncio.create_task(collect(llm, f"hello {i}", ENDLESS)) for i in range(5)]
            await settled(llm, lambda: llm.stats.num_running == 5)
            assert llm.engine_pid is not None
            os.kill(llm.engine_pid, signal.SIGKILL)
            results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
            assert all(isinstance(result, EngineDeadError) for result in results), results
            assert "killed by signal 9" in str(results[0])
            assert not llm.alive and llm.num_open_requests == 0
            with pytest.raises(EngineDeadError):
                await collect(llm, "hello", SamplingParams())
            with pytest.raises(EngineDeadError):
                await llm.flush_cache()
            assert await llm.abort(None) == 0
            await llm.drain(5)

    asyncio.run(test())


def test_closing_ends_open_streams() -> None:
    async def test() -> None:
        async with started(context_length=LONG) as llm:
            task = asyncio.create_task(collect(llm, "hello", ENDLESS))
            await settled(llm, lambda: llm.stats.num_running == 1)
        with pytest.raises(EngineDeadError, match="it was closed"):
            await task
        await llm.close()

    asyncio.run(test())


def test_signals_are_left_to_the_parent() -> None:
    async def test() -> None:
        async with started() as llm:
            assert llm.engine_pid is not None
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(llm.engine_pid, number)
            (output,) = await collect(llm, "hello", SamplingParams(max_new_tokens=5, **GREEDY))
            assert output.token_ids == expected_tokens(list(b"hello"), 5, 259)

    asyncio.run(test())


def test_the_engine_ends_with_its_parent(tmp_path: Path) -> None:
    """Even when the parent is killed, at once after the start."""
    script = tmp_path / "parent.py"
    script.write_text(
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "import asyncio, os\n"
        "from radixmesh.backends.fake.backend import FAKE_BACKEND\n"
        "from radixmesh.engine.async_llm import AsyncLLM\n"
        "from radixmesh.engine.config import EngineConfig\n"
        "async def main():\n"
        "    llm = AsyncLLM(EngineConfig(backend='fake'), FAKE_BACKEND)\n"
        "    await llm.start()\n"
        "    print(llm.engine_pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"  # no __main__ guard: the engine process does not run this file again
    )

    async def test() -> None:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, str(script), stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await parent.communicate()
        pid = int(printed)
        end = time.monotonic() + 30
        while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < end, "the engine process outlives its parent"
            await asyncio.sleep(0.05)

    asyncio.run(test())


def test_a_tokenizer_that_is_missing_fails_the_start(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(ModelError, match="no tokenizer could be loaded"):
            await AsyncLLM(EngineConfig(tokenizer_path=str(tmp_path)), FAKE_BACKEND).start()
        assert children() == []

    asyncio.run(test())


def test_a_start_that_is_cancelled() -> None:
    async def test() -> None:
        llm = AsyncLLM(EngineConfig(backend="fake"), FAKE_BACKEND)
        start = asyncio.create_task(llm.start())
        while not children():  # a process that was just born needs far longer to get ready
            await asyncio.sleep(0.001)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert children() == []
        await llm.close()

    asyncio.run(test())


def test_without_a_tokenizer() -> None:
    async def test() -> None:
        async with started(skip_tokenizer_init=True) as llm:
            assert llm.tokenizer is None
            (output,) = await collect(llm, [1, 2], SamplingParams(max_new_tokens=5, **GREEDY))
            assert (output.text, output.token_ids) == ("", expected_tokens([1, 2], 5, 259))
            with pytest.raises(RequestError, match="token ids"):
                await collect(llm, "hello", SamplingParams())

    asyncio.run(test())


def test_logprobs_cross_the_process() -> None:
    async def test() -> None:
        async with started() as llm:
            params = SamplingParams(max_new_tokens=3, logprobs=2, **GREEDY)
            (output,) = await collect(llm, "hello", params)
            assert output.logprobs is not None
            assert [each.top_ids for each in output.logprobs] == [
                [i, (i + 1) % 259] for i in output.token_ids
            ]

    asyncio.run(test())
