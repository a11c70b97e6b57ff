"""The HTTP application over an engine whose answers are written in the test."""

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import cache
from typing import Any

import httpx
import numpy as np
import openai
from fastapi import FastAPI

from radixmesh.backends.fake.backend import FAKE_BACKEND, TOKENIZER
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.output_collector import OutputState
from radixmesh.engine.outputs import RequestOutput, TokenOutput
from radixmesh.engine.request import FinishReason, SamplingParams, TokenLogprobs
from radixmesh.engine.request_builder import RequestBuilder
from radixmesh.engine.runner import RunnerCapacity
from radixmesh.engine.server.app import create_app
from radixmesh.engine.server.options import ServerOptions
from radixmesh.engine.text.tokenizer import Tokenizer, load_tokenizer


@cache
def _fake_tokenizer(words: tuple[str, ...] = ()) -> Tokenizer:
    tokenizer = load_tokenizer(str(TOKENIZER))
    tokenizer.fast.add_tokens(list(words))
    return tokenizer


class ScriptedLLM:
    """Takes AsyncLLM's place: answers every prompt with `script`, a byte a token, ended by <|im_end|>.

    Each of `words` is a token too.
    """

    def __init__(self, template: str, script: str, words: tuple[str, ...] = ()) -> None:
        self.config = EngineConfig(backend="fake", embedding_pooling="last")
        info = FAKE_BACKEND.describe(self.config)
        self.info = replace(info, vocab_size=info.vocab_size + len(words))
        self.capacity = RunnerCapacity(64, 16, 8, 512, 128)
        self.tokenizer = Tokenizer(_fake_tokenizer(words).fast, template)
        self.choices = ()
        self.script = script
        self.prompts: list[str] = []
        self.calls: list[Any] = []  # everything that was asked of the engine

    async def generate(
        self, prompt: str | list[int], params: SamplingParams, *, request_id: str, **others: Any
    ) -> AsyncIterator[RequestOutput]:
        self.calls.append((prompt, params, request_id, others))
        builder = RequestBuilder(self.info, self.tokenizer, 0)
        prompt = [int(token) for token in builder.prompt_ids(prompt)]
        self.prompts.append(self.tokenizer.decode(prompt, skip_special_tokens=False))
        ids = [*self.tokenizer.encode(self.script, add_special_tokens=False), *self.info.eos_token_ids]
        cut = params.max_new_tokens is not None and params.max_new_tokens < len(ids)
        for request in builder.build(prompt, params, request_id=request_id):
            state = OutputState(request, self.tokenizer)
            for count, token in enumerate(ids[: params.max_new_tokens], 1):
                output = TokenOutput(request_id=request.id, token_ids=[token])
                output.logprobs = [TokenLogprobs(logprob=-0.5, top_ids=[], top_logprobs=[])]
                output.logprobs[0].asked = [-1.0] * len(params.logprob_token_ids)
                if params.scores_prompt and count == 1:
                    output.prompt_logprobs = output.logprobs * (len(prompt) - 1 - params.prompt_logprob_start)
                if token in self.info.eos_token_ids:
                    output.finish_reason, output.matched_stop = FinishReason.STOP, token
                elif cut and count == params.max_new_tokens:
                    output.finish_reason = FinishReason.LENGTH
                if params.embed:
                    output.embedding = np.array([len(prompt), 2, 3], np.float32).tobytes()
                yield state.feed(output)
                if state.finished:
                    break

    async def abort(self, request_id: str | None) -> int:
        self.calls.append(("abort", request_id))
        return 1

    def app(self, **options: Any) -> FastAPI:
        """A server with these options over this engine."""
        return create_app(self, ServerOptions(**options))  # type: ignore[arg-type]

    def http(self, **options: Any) -> httpx.AsyncClient:
        """An HTTP client of such a server, at http://test."""
        transport = httpx.ASGITransport(app=self.app(**options))
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        """OpenAI's client of such a server."""
        http: Any = self.http(**options)
        return openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http)
