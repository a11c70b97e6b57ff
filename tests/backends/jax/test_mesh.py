"""Models split over simulated devices: the tokens of the oracle, or of one device, on every mesh."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from radixmesh.backends.jax import runner as runner_module
from radixmesh.backends.jax.buckets import Shape
from radixmesh.backends.registry import backend_for
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.engine import Engine
from radixmesh.engine.errors import ConfigError
from radixmesh.engine.request import Request, SamplingParams
from tests.automaton import Automaton, random_automaton
from tests.tiny_models import save_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's deprecations

NEW_TOKENS = 12
TOLERANCE = 1e-4  # of the oracle's top-2 margin: below it either token is right
GREEDY = SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS, ignore_eos=True)


@pytest.fixture
def plain_shape_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile one shape, and not the one with penalties and logprobs: most of these tests' time."""
    monkeypatch.setattr(runner_module, "compiled_shapes", lambda tokens, _: [Shape(tokens, False)])
    monkeypatch.setattr(runner_module, "shape_of", lambda tokens, *_: Shape(tokens, False))


def generate(
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    automata: dict[int, Automaton] | None = None,
    **options: Any,
) -> list[list[int]]:
    """Token ids of each prompt, all served together by a runner of its own; some bound by an automaton."""
    defaults: dict[str, Any] = dict(
        skip_tokenizer_init=True, dtype="float32", page_size=4, max_total_tokens=512, max_running_requests=4,
        chunked_prefill_size=4, disable_compilation_cache=True,
    )  # fmt: skip
    config = EngineConfig(**(defaults | options))
    backend = backend_for(config)
    info = backend.describe(config)
    runner = backend.create_runner(config, info)
    runner.warmup()
    engine = Engine(config, info, runner, strict=True)
    for index, (ids, each) in enumerate(zip(prompts, params, strict=True)):
        request = Request(str(index), np.asarray(ids, np.int32), each, seed=index)
        if automata and index in automata:
            request.matcher = automata[index].matcher()
        engine.add_request(request)
    outputs: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            outputs[int(output.request_id)].extend(output.token_ids)
    runner.close()
    return outputs


def prompts_of(vocab: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(vocab)
    return [rng.integers(3, vocab, 3 + 4 * index).tolist() for index in range(count)]


def assert_oracle_agrees(model: Any, prompts: list[list[int]], outputs: list[list[int]]) -> None:
    for prompt, got in zip(prompts, outputs, strict=True):
        assert len(got) == NEW_TOKENS
        with torch.no_grad():
            logits = model(torch.tensor([prompt + got])).logits[0, len(prompt) - 1 : -1]
        top, ids = logits.topk(2)
        sure = (top[:, 0] - top[:, 1] > TOLERANCE).tolist()
        # up to its first doubt the oracle, given what came before, chooses the same
        end = sure.index(False) if False in sure else NEW_TOKENS
        assert got[:end] == ids[:end, 0].tolist() and end > NEW_TOKENS // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama-biased", "mistral", "qwen2-window", "qwen3", "gemma3"])
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_a_split_family_gives_the_oracles_tokens(
    name: str, tp: int, tmp_path: Path, plain_shape_only: None
) -> None:
    """Two KV heads: one a shard, then each repeated for two and for four shards."""
    heads = 8 if tp == 8 else 4
    vocab = 157 if tp == 4 else 160  # 157 fills the last shard with ids that must never be sampled
    model = save_tiny_model(name, tmp_path, vocab_size=vocab, num_attention_heads=heads)
    prompts = prompts_of(vocab, 3)
    outputs = generate(prompts, [GREEDY] * 3, model_path=str(tmp_path), tp_size=tp)
    assert_oracle_agrees(model, prompts, outputs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dp", "tp"), [("llama", 4, 1), ("qwen2-window", 4, 2), ("gemma3", 2, 4)])
def test_groups_of_devices_give_the_oracles_tokens(
    name: str, dp: int, tp: int, tmp_path: Path, plain_shape_only: None
) -> None:
    """More prompts than groups, of many lengths: groups run out of work at different times."""
    model = save_tiny_model(name, tmp_path)
    prompts = prompts_of(160, 9)
    outputs = generate(prompts, [GREEDY] * 9, model_path=str(tmp_path), dp_size=dp, tp_size=tp)
    assert_oracle_agrees(model, prompts, outputs)


@pytest.mark.slow
def test_sampling_and_penalties_do_not_depend_on_the_mesh(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path, vocab_size=157)
    prompts = prompts_of(157, 5)
    common: dict[str, Any] = dict(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    params = [
        SamplingParams(temperature=0.9, **common),
        SamplingParams(temperature=1.2, top_k=20, top_p=0.8, **common),
        SamplingParams(temperature=0, frequency_penalty=0.7, repetition_penalty=1.3, **common),
        SamplingParams(temperature=1.0, min_p=0.05, logprobs=3, logit_bias={7: 3.0}, **common),
        GREEDY,
    ]
    # free, then under masks
    rng = random.Random(0)
    automata = {index: random_automaton(rng, 157, eos=1) for index in range(5, 10)}
    one, groups = (
        generate(prompts * 2, params * 2, automata, model_path=str(tmp_path), dp_size=dp, tp_size=tp)
        for dp, tp in ((1, 1), (2, 2))
    )
    assert one == groups
    assert all(automaton.accepts(one[index]) for index, automaton in automata.items())


@pytest.mark.slow
def test_smollm2_over_three_and_six_devices(plain_shape_only: None) -> None:
    """Nine heads and three KV heads; alone, and in two groups."""
    prompts = prompts_of(49_000, 4)
    one, three, six = (
        generate(prompts, [GREEDY] * 4, chunked_prefill_size=16, dp_size=dp, tp_size=tp)
        for dp, tp in ((1, 1), (1, 3), (2, 3))
    )
    assert one == three == six


@pytest.mark.slow
def test_gemma3_over_four_devices(plain_shape_only: None) -> None:
    """Four heads that share one KV head, windows, and a vocabulary of 262,144."""
    prompts = prompts_of(200_000, 2)
    one, four = (
        generate(prompts, [GREEDY] * 2, model_path="gemma3-270m", chunked_prefill_size=16, tp_size=tp)
        for tp in (1, 4)
    )
    assert one == four


def test_a_size_that_does_not_split_the_model_is_refused_with_those_that_do() -> None:
    config = EngineConfig(tp_size=2)
    backend = backend_for(config)
    with pytest.raises(ConfigError) as refused:
        backend.create_runner(config, backend.describe(config))
    assert str(refused.value) == (
        "tp_size is 2; 9 heads, 3 KV heads and 1536 MLP features can be split by 1, 3"
    )


def test_more_devices_than_there_are_is_refused(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path, num_attention_heads=16, hidden_size=64)
    config = EngineConfig(model_path=str(tmp_path), skip_tokenizer_init=True, tp_size=16)
    backend = backend_for(config)
    jax.devices()  # jax starts, unless another test has started it
    with pytest.raises(ConfigError, match="tp_size is 16: 16 CPU devices are needed; jax has started with 8"):
        backend.create_runner(config, backend.describe(config))
