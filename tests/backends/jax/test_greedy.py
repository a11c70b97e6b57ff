"""SmolLM2's real weights through scheduler, cache and JAX runner against transformers in float32."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from radixmesh.backends.registry import backend_for
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.request import Request, SamplingParams
from radixmesh.engine.text.gguf_tokenizer import load_gguf_tokenizer
from tests.oracle import load_gguf_oracle

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # other people's deprecations

NEW_TOKENS = 24
TOLERANCE = 1e-3  # of the oracle's own top-2 margin: below it either token is right
CACHED_FROM = 16  # tokens of a page; the last token is always computed
CONFIG = EngineConfig(
    page_size=CACHED_FROM, chunked_prefill_size=32, max_running_requests=8, max_total_tokens=2048
)
PROMPTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    "The three laws of motion are",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    'import json\n\nwith open("config.json") as file:\n',
    "La tour Eiffel est un monument",
    "Der schnelle braune Fuchs springt",
    "今天天气很好，我们去",
    "1, 1, 2, 3, 5, 8,",
    "A long list of words: " + " ".join(f"word{i}" for i in range(260)),
]


@pytest.fixture(scope="module")
def served():
    backend = backend_for(CONFIG)
    info = backend.describe(CONFIG)
    runner = backend.create_runner(CONFIG, info)
    runner.warmup()
    return info, runner, load_gguf_tokenizer(info.path)


@pytest.fixture(scope="module")
def expected(served):
    """For each prompt its ids, the oracle's greedy tokens and their top-2 margins."""
    info, _, tokenizer = served
    model = load_gguf_oracle(Path(info.path))
    found = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None,
            pad_token_id=0, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        top = torch.stack(out.scores)[:, 0].topk(2).values
        found.append((ids, out.sequences[0, len(ids) :].tolist(), (top[:, 0] - top[:, 1]).tolist()))
    return found


def generate(served, prompts, params, **options):
    """Token ids of each prompt, all served together; the pool must be whole afterwards."""
    info, runner, _ = served
    engine = Engine(replace(CONFIG, **options), info, runner, strict=True)
    for index, ids in enumerate(prompts):
        engine.add_request(
            Request(id=str(index), prompt_ids=np.asarray(ids, np.int32), params=params, seed=index)
        )
    outputs: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            outputs[int(output.request_id)].extend(output.token_ids)
    stats = engine.stats()
    assert stats.free_pages + stats.cached_pages == stats.num_pages
    return outputs, stats


def assert_same(expected, outputs):
    for (_, want, margins), got in zip(expected, outputs, strict=True):
        assert len(got) == NEW_TOKENS
        unsure = next((i for i, margin in enumerate(margins) if margin < TOLERANCE), NEW_TOKENS)
        assert got[:unsure] == want[:unsure]


GREEDY = SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS, ignore_eos=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"disable_radix_cache": True},
        {"disable_overlap_schedule": True},
        {"chunked_prefill_size": 16},
        {"schedule_policy": "lpm"},
    ],
    ids=str,
)
def test_a_crowd_gets_the_oracles_tokens(served, expected, options):
    """Eleven prompts at once over eight rows."""
    outputs, _ = generate(served, [ids for ids, _, _ in expected], GREEDY, **options)
    assert_same(expected, outputs)


def test_alone_and_from_the_cache(served, expected):
    for case in expected[:4]:
        outputs, stats = generate(served, [case[0]] * 2, GREEDY)
        assert_same([case, case], outputs)
        assert bool(stats.cached_tokens) == (len(case[0]) > CACHED_FROM)


def test_a_pool_so_small_that_rows_are_preempted(served, expected, monkeypatch):
    """What was thrown out and computed again says the same."""
    _, runner, _ = served
    short = expected[:10]
    pages = sum(-(-(len(ids) + NEW_TOKENS) // CACHED_FROM) for ids, _, _ in short)
    monkeypatch.setattr(runner, "capacity", replace(runner.capacity, num_pages=pages // 3))
    outputs, stats = generate(served, [ids for ids, _, _ in short], GREEDY)
    assert stats.preemptions > 0
    assert_same(short, outputs)


def test_nothing_compiles_after_warmup(served, expected):
    """Every bucket and sampling variant, mixed lengths and aborts: not one backend compilation."""
    info, runner, _ = served
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        random = np.random.default_rng(0)
        engine = Engine(CONFIG, info, runner, strict=True)
        kinds = [
            GREEDY,
            SamplingParams(temperature=0.9, top_k=20, top_p=0.8, max_new_tokens=6),
            SamplingParams(frequency_penalty=1.0, logprobs=2, logit_bias={5: 2.0}, max_new_tokens=6),
        ]
        for index in range(24):
            ids = random.integers(3, 40_000, random.integers(1, 70)).astype(np.int32)
            engine.add_request(Request(id=str(index), prompt_ids=ids, params=kinds[index % 3], seed=index))
            engine.step()
            if index % 5 == 0:
                engine.abort(str(index))
        while engine.has_work:
            engine.step()
        during = list(compiled)
        jax.jit(lambda x: x * 3 + len(compiled))(np.arange(7)).block_until_ready()  # the listener does hear
    finally:
        jax.monitoring.clear_event_listeners()
    assert during == [] and compiled


def test_a_seed_decides_alone(served, expected):
    """The same seed and prompt give the same text by itself and in a crowd."""
    params = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=12, ignore_eos=True)
    prompts = [ids for ids, _, _ in expected[:6]]
    crowd, _ = generate(served, prompts, params)
    alone, _ = generate(served, prompts[:1], params)
    assert crowd[0] == alone[0]
