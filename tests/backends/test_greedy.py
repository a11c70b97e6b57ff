"""Real weights through scheduler, cache and each real runner against transformers in float32, greedy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radixmesh.backends.jax import runner as jax_runner
from radixmesh.backends.jax.buckets import Part, Shape, compiled_shapes
from radixmesh.backends.registry import backend_for
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.request import Request, SamplingParams
from radixmesh.engine.runner import ModelInfo, ModelRunner
from radixmesh.engine.stats import EngineStats
from radixmesh.engine.text.tokenizer import load_tokenizer
from tests.oracle import load_gguf_oracle

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # other people's deprecations

NEW_TOKENS = 24
TOLERANCE = 1e-3  # of the oracle's own top-2 margin: below it either token is right
PAGE = 16  # tokens
ROWS = 8
POOL = 3072  # tokens
GREEDY = SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS, ignore_eos=True)
CHATS = {
    "smollm2-135m-instruct": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "gemma3-270m": "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
}
QUESTIONS = ["What is the capital of France?", "Write a haiku about rain."]
TEXTS = [
    "The three laws of motion are",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    'import json\n\nwith open("config.json") as file:\n',
    "La tour Eiffel est un monument",
    "Der schnelle braune Fuchs springt",
    "今天天气很好，我们去",
    "1, 1, 2, 3, 5, 8,",
    "A long list of words: " + " ".join(f"word{i}" for i in range(300)),
]


@dataclass(frozen=True)
class Case:
    """A prompt and what the oracle says to it."""

    ids: list[int]
    tokens: list[int]  # NEW_TOKENS, greedy
    margins: list[float]  # between the oracle's likeliest two, for each of `tokens`

    def check(self, got: Sequence[int]) -> None:
        """Equal, up to where the oracle itself is unsure."""
        assert len(got) == NEW_TOKENS
        unsure = next((i for i, margin in enumerate(self.margins) if margin < TOLERANCE), NEW_TOKENS)
        assert list(got[:unsure]) == self.tokens[:unsure]


@dataclass(frozen=True)
class Served:
    """A model, its warm runner, and the cases to hold it to."""

    config: EngineConfig
    info: ModelInfo
    runner: ModelRunner
    cases: list[Case]

    def generate(self, cases: list[Case], **options: Any) -> tuple[list[list[int]], EngineStats]:
        """Token ids for each case, all served together; the pool must be whole afterwards."""
        engine = Engine(replace(self.config, **options), self.info, self.runner, strict=True)
        for index, case in enumerate(cases):
            ids = np.asarray(case.ids, np.int32)
            engine.add_request(Request(id=str(index), prompt_ids=ids, params=GREEDY, seed=index))
        outputs: list[list[int]] = [[] for _ in cases]
        while engine.has_work:
            for output in engine.step():
                assert output.error is None
                outputs[int(output.request_id)].extend(output.token_ids)
        stats = engine.stats()
        assert stats.free_pages + stats.cached_pages == stats.num_pages
        return outputs, stats


@pytest.fixture(scope="module", params=CHATS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cases(model: str) -> list[Case]:
    config = EngineConfig(model_path=model)
    path = backend_for(config).describe(config).path
    tokenizer, oracle = load_tokenizer(path), load_gguf_oracle(Path(path))
    prompts = [CHATS[model].format(question) for question in QUESTIONS] + TEXTS
    return [ask(oracle, tokenizer.encode(prompt)) for prompt in prompts]


def ask(oracle: Any, ids: list[int]) -> Case:
    out = oracle.generate(
        torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None,
        pad_token_id=0, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    top = torch.stack(out.scores)[:, 0].topk(2).values
    return Case(ids, out.sequences[0, len(ids) :].tolist(), (top[:, 0] - top[:, 1]).tolist())


@pytest.fixture(scope="module", params=["jax", "torch"])
def served(request: pytest.FixtureRequest, model: str, cases: list[Case]) -> Iterator[Served]:
    config = EngineConfig(
        model_path=model, backend=request.param, dtype="float32", page_size=PAGE,
        chunked_prefill_size=512, max_running_requests=ROWS, max_total_tokens=POOL,
    )  # fmt: skip
    backend = backend_for(config)
    info = backend.describe(config)
    runner = backend.create_runner(config, info)
    with pytest.MonkeyPatch.context() as patch:  # greedy steps need the plain shapes only
        patch.setattr(jax_runner, "compiled_shapes", plain_shapes)
        runner.warmup()
    yield Served(config, info, runner, cases)
    runner.close()


def plain_shapes(max_step_tokens: int, max_rows: int) -> list[Shape]:
    shapes = compiled_shapes(max_step_tokens, max_rows)
    return [shape for shape in shapes if shape.part == Part.WHOLE and not shape.full]


def test_the_oracle_is_sure_of_nearly_all(cases: list[Case]) -> None:
    """The comparison is worth something: few prompts end early, and one is longer than any chunk."""
    sure = [case for case in cases if min(case.margins) >= TOLERANCE]
    assert len(sure) >= 10 and any(len(case.ids) > 1000 for case in sure)


@pytest.mark.parametrize(
    "options",
    [
        {"chunked_prefill_size": 16},
        {"chunked_prefill_size": 48, "schedule_policy": "lpm"},
        {"chunked_prefill_size": 128, "disable_overlap_schedule": True},
        {"chunked_prefill_size": 512},
        {"chunked_prefill_size": 512, "disable_radix_cache": True},
        {"chunked_prefill_size": 64, "disable_radix_cache": True, "disable_overlap_schedule": True},
    ],
    ids=str,
)
def test_a_crowd_gets_the_oracles_tokens(served: Served, options: dict[str, Any]) -> None:
    """Eleven prompts at once over eight rows."""
    outputs, _ = served.generate(served.cases, **options)
    for case, got in zip(served.cases, outputs, strict=True):
        case.check(got)


def test_alone_and_from_the_cache(served: Served) -> None:
    """One at a time, each twice: the second finds all whole pages but the last token's."""
    for case in [*served.cases[:4], served.cases[-1]]:
        outputs, stats = served.generate([case, case], max_running_requests=1)
        for got in outputs:
            case.check(got)
        assert stats.cached_tokens == (len(case.ids) - 1) // PAGE * PAGE


def test_a_pool_so_small_that_rows_are_preempted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was thrown out and computed again says the same."""
    short = served.cases[:10]
    pages = sum(-(-(len(case.ids) + NEW_TOKENS) // PAGE) for case in short)
    monkeypatch.setattr(served.runner, "capacity", replace(served.runner.capacity, num_pages=pages // 3))
    outputs, stats = served.generate(short)
    assert stats.preemptions > 0
    for case, got in zip(short, outputs, strict=True):
        case.check(got)
