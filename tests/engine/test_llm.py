"""LLM over the fake runner, whose tokens can be computed by hand."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND, IM_END
from radixmesh.backends.fake.oracle import expected_prompt_logprobs, expected_tokens
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ModelError, RequestError
from radixmesh.engine.llm import LLM
from radixmesh.engine.request import FinishReason, SamplingParams
from radixmesh.engine.request_builder import child_seed

GREEDY = SamplingParams(max_new_tokens=10, temperature=0.0, ignore_eos=True)


def fake_llm(**options: Any) -> LLM:
    return LLM(EngineConfig(backend="fake", **options), FAKE_BACKEND)


def expected(prompt: str, count: int = 10) -> list[int]:
    return expected_tokens(list(prompt.encode()), count, 259)


def all_pages_are_back(llm: LLM) -> bool:
    stats = llm.stats()
    idle = stats.num_running == stats.num_waiting == stats.used_pages == 0
    return idle and stats.free_pages + stats.cached_pages == stats.num_pages


@pytest.mark.parametrize(
    "prompt",
    [
        "hello",
        list(b"hello"),
        tuple(b"hello"),
        np.frombuffer(b"hello", np.uint8),
        ["hello"],
        [list(b"hello")],
    ],
)
def test_one_prompt_in_every_form(prompt: Any) -> None:
    with fake_llm() as llm:
        (result,) = llm.generate(prompt, GREEDY, use_tqdm=False)
        assert result.token_ids == expected("hello")
        assert llm.tokenizer is not None and result.text == llm.tokenizer.decode(result.token_ids)
        assert (result.finish_reason, result.num_prompt_tokens) == (FinishReason.LENGTH, 5)
        assert all_pages_are_back(llm)


@pytest.mark.parametrize("count", [0, 3])
def test_how_likely_a_prompt_is(count: int) -> None:
    params = replace(GREEDY, max_new_tokens=count, prompt_logprobs=1, prompt_logprob_start=1)
    with fake_llm() as llm:
        results = llm.generate(["hello", "it"], params, use_tqdm=False)
        for text, result in zip(("hello", "it"), results, strict=True):
            known = expected_prompt_logprobs(text.encode(), 259, top=1)[1:]
            assert result.prompt_token_ids == list(text.encode()) and result.prompt_logprobs is not None
            assert [(each.logprob, each.top_ids) for each in result.prompt_logprobs] == [
                (own, ids) for own, ids, _ in known
            ]
            assert result.token_ids == expected(text, count)
            assert result.finish_reason is FinishReason.LENGTH
        (plain,) = llm.generate("hello", GREEDY, use_tqdm=False)
        assert plain.prompt_logprobs is None and plain.prompt_token_ids is None


def test_no_prompts() -> None:
    with fake_llm() as llm:
        assert llm.generate([], GREEDY, use_tqdm=False) == []


def test_more_prompts_than_the_queue_holds() -> None:
    with fake_llm(max_queued_requests=3, max_running_requests=4) as llm:
        prompts = [f"prompt {number}" for number in range(200)]
        results = llm.generate(prompts, GREEDY, use_tqdm=False)
        assert [result.token_ids for result in results] == [expected(prompt) for prompt in prompts]
        assert all_pages_are_back(llm)


def test_parameters_for_each_prompt() -> None:
    with fake_llm() as llm:
        params = [SamplingParams(max_new_tokens=n, temperature=0.0, ignore_eos=True) for n in (3, 7)]
        results = llm.generate(["a", "b"], params, use_tqdm=False)
        assert [result.token_ids for result in results] == [expected("a", 3), expected("b", 7)]
        with pytest.raises(RequestError, match="params has 2 entries for 1 prompts"):
            llm.generate("a", params, use_tqdm=False)


def test_several_sequences_of_one_prompt() -> None:
    with fake_llm() as llm:
        params = SamplingParams(max_new_tokens=6, n=2, sampling_seed=9, ignore_eos=True)
        results = llm.generate(["a", "b"], params, use_tqdm=False)
        assert [result.index for result in results] == [0, 1, 0, 1]
        for place, (prompt, index) in enumerate([(b"a", 0), (b"a", 1), (b"b", 0), (b"b", 1)]):
            seed = child_seed(9, index)
            assert results[place].token_ids == expected_tokens(list(prompt), 6, 259, seed=seed)


def test_stop_strings_and_end_tokens() -> None:
    with fake_llm() as llm:
        assert llm.tokenizer is not None
        text = llm.tokenizer.decode(expected("hello", 40))
        stop = next(text[at : at + 2] for at in range(10, 30) if "\ufffd" not in text[at : at + 2])
        params = SamplingParams(max_new_tokens=40, temperature=0.0, ignore_eos=True, stop=(stop,))
        (result,) = llm.generate("hello", params, use_tqdm=False)
        assert (result.text, result.matched_stop) == (text[: text.index(stop)], stop)
        assert result.finish_reason is FinishReason.STOP
        assert all_pages_are_back(llm) and llm.stats().aborted == 1

        ids = expected_tokens(list(b"hello"), 4000, 259, stop=[IM_END])
        assert ids[-1] == IM_END, "the fake model should end this text by itself"
        (result,) = llm.generate(
            "hello", SamplingParams(max_new_tokens=None, temperature=0.0), use_tqdm=False
        )
        assert (result.token_ids, result.matched_stop) == (ids, IM_END)


def test_chat() -> None:
    with fake_llm() as llm:
        hello = [{"role": "user", "content": "Hi"}]
        prompt = [257, *b"user\nHi", 258, *b"\n", 257, *b"assistant\n"]
        results = llm.chat([hello, hello], GREEDY, use_tqdm=False)
        assert [result.token_ids for result in results] == [expected_tokens(prompt, 10, 259)] * 2
        (result,) = llm.chat(hello, GREEDY, use_tqdm=False, add_generation_prompt=False)
        assert result.token_ids == expected_tokens(prompt[:-11], 10, 259)
        with pytest.raises(RequestError, match="role x is unknown"):
            llm.chat([{"role": "x", "content": ""}], use_tqdm=False)
        with pytest.raises(RequestError, match="at least one message"):
            llm.chat([], use_tqdm=False)


def test_one_bad_prompt_and_nothing_is_run() -> None:
    with fake_llm() as llm:
        with pytest.raises(RequestError, match="token id 259"):
            llm.generate([[1], [259]], GREEDY, use_tqdm=False)
        assert llm.stats().prompt_tokens == 0


def test_what_only_the_engine_can_refuse_leaves_it_usable() -> None:
    prompts: list[str | list[int]] = ["a", [1] * 64, "b"]
    with fake_llm(max_total_tokens=64) as llm:
        with pytest.raises(RequestError, match="at most 63"):
            llm.generate(prompts, GREEDY, use_tqdm=False)
        assert all_pages_are_back(llm)
        assert llm.generate("hello", GREEDY, use_tqdm=False)[0].token_ids == expected("hello")


@pytest.mark.parametrize("overlap", [True, False])
def test_ctrl_c_aborts_all_and_leaves_the_engine_usable(
    overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_llm(context_length=10_000_000, disable_overlap_schedule=not overlap) as llm:
        step, steps = llm._engine.step, iter(range(100))

        def interrupted_step() -> Any:
            if next(steps) == 20:
                os.kill(os.getpid(), signal.SIGINT)  # comes while a step is on its way
            return step()

        before = signal.getsignal(signal.SIGINT)
        monkeypatch.setattr(llm._engine, "step", interrupted_step)
        endless = SamplingParams(max_new_tokens=None, temperature=0.0, ignore_eos=True)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["a", "b"] * 100, endless, use_tqdm=False)
        monkeypatch.undo()
        assert signal.getsignal(signal.SIGINT) is before
        assert all_pages_are_back(llm)
        assert llm.generate("hello", GREEDY, use_tqdm=False)[0].token_ids == expected("hello")


def test_prefix_cache_and_flush() -> None:
    with fake_llm() as llm:
        cached = [llm.generate([5] * 40, GREEDY, use_tqdm=False)[0].num_cached_tokens for _ in range(2)]
        assert cached == [0, 32]
        assert llm.flush_cache()
        assert llm.generate([5] * 40, GREEDY, use_tqdm=False)[0].num_cached_tokens == 0


def test_the_models_own_defaults_and_the_engines_seed() -> None:
    def draw(seed: int) -> list[list[int]]:
        with fake_llm(random_seed=seed) as llm:
            return [result.token_ids for result in llm.generate(["a", "a"], use_tqdm=False)]

    assert draw(1) == draw(1) != draw(2)
    assert draw(1)[0] != draw(1)[1]


def test_progress_bar_and_choices_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with fake_llm() as llm:
        llm.generate(["a", "b"], GREEDY)
    out, err = capfd.readouterr()
    assert out == ""
    assert "radixmesh: model_path=fake because: " in err
    assert "2/2" in err and "tokens/s" in err


def test_without_a_tokenizer() -> None:
    with fake_llm(skip_tokenizer_init=True) as llm:
        (result,) = llm.generate(list(b"hello"), GREEDY, use_tqdm=False)
        assert (result.text, result.token_ids) == ("", expected("hello"))
        with pytest.raises(RequestError, match="token ids"):
            llm.generate("hello", GREEDY, use_tqdm=False)
        with pytest.raises(RequestError, match="skip_tokenizer_init"):
            llm.chat([{"role": "user", "content": "x"}])


def test_a_tokenizer_that_is_missing() -> None:
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        fake_llm(tokenizer_path="/nowhere")


SERVER_PACKAGES = ["fastapi", "starlette", "uvicorn", "zmq", "msgspec", "pydantic", "prometheus_client"]
DEVICE_PACKAGES = ["jax", "torch"]


@pytest.mark.parametrize(
    ("code", "banned"),
    [
        ("import radixmesh.engine.llm", [*SERVER_PACKAGES, *DEVICE_PACKAGES, "transformers", "tokenizers"]),
        ("import radixmesh.engine.async_llm", [*DEVICE_PACKAGES, "transformers", "tokenizers", "fastapi"]),
        (
            "from radixmesh import LLM; LLM(backend='fake').generate('hello', use_tqdm=False)",
            [*SERVER_PACKAGES, *DEVICE_PACKAGES],
        ),
    ],
)
def test_what_is_imported(code: str, banned: list[str]) -> None:
    """In a fresh interpreter, offline use needs none of the server's packages and no device's."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n{code}\nprint(sorted(set({banned!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", done.stdout
