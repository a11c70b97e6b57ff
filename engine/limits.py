"""`Limits`: what one request may ask for, checked when it arrives, so that nothing later can refuse it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .config import EngineConfig, Pooling
from .errors import RequestError
from .request import Request
from .runner import ModelInfo, RunnerCapacity


@dataclass(frozen=True, slots=True)
class Limits:
    """Token ids are below `vocab_size`; prompt and output together have at most `max_tokens` tokens."""

    vocab_size: int
    context_length: int
    pool_tokens: int  # tokens of KV that the whole pool holds
    pooling: Pooling = "none"

    @classmethod
    def of(cls, config: EngineConfig, info: ModelInfo, capacity: RunnerCapacity) -> "Limits":
        """The limits of an engine."""
        context = min(info.context_length, config.context_length or info.context_length)
        pool = capacity.num_pages * capacity.page_size
        return cls(info.vocab_size, context, pool, config.embedding_pooling)

    @property
    def max_tokens(self) -> int:
        return min(self.context_length, self.pool_tokens)

    def check(self, request: Request) -> None:
        """Refuse a request that can never be served; set `output_limit`, `last_position`, `stop_set` and
        `whole`.

        `max_new_tokens` beyond what fits is clipped: such a request ends with FinishReason.LENGTH.
        Raises RequestError, naming the field.
        """
        prompt = np.ascontiguousarray(request.prompt_ids)
        if prompt.ndim != 1 or not len(prompt) or not np.issubdtype(prompt.dtype, np.integer):
            raise RequestError("prompt has no tokens; accepted is at least one token id", "prompt")
        for extreme in (int(prompt.min()), int(prompt.max())):
            self._check_id("prompt", extreme)
        request.prompt_ids = prompt.astype(np.int32, copy=False)
        if len(prompt) + 1 > self.max_tokens:
            limit = "the context" if self.context_length <= self.pool_tokens else "the KV pool"
            raise RequestError(
                f"prompt has {len(prompt)} tokens; {limit} holds {self.max_tokens}, so accepted are at most"
                f" {self.max_tokens - 1}",
                "prompt",
            )
        params = request.params
        if params.embed and self.pooling == "none":
            raise RequestError("the engine makes no embeddings; with embedding_pooling last or mean it does")
        self._check_ids("logit_bias", params.logit_bias)
        self._check_ids("stop_token_ids", params.stop_token_ids)
        self._check_ids("logprob_token_ids", params.logprob_token_ids)
        if params.prompt_logprob_start >= len(prompt):
            raise RequestError(
                f"prompt_logprob_start is {params.prompt_logprob_start}; accepted are at most"
                f" {len(prompt) - 1}, since the prompt has {len(prompt)} tokens",
                "prompt_logprob_start",
            )
        wanted = self.max_tokens if params.max_new_tokens is None else max(params.max_new_tokens, 1)
        request.output_limit = min(wanted, self.max_tokens - len(prompt))
        request.whole = params.embed and self.pooling == "mean"
        request.last_position = len(prompt) + request.output_limit - 1
        eos = frozenset() if params.ignore_eos else request.eos_token_ids
        request.stop_set = eos.union(params.stop_token_ids)

    def _check_ids(self, field: str, ids: Iterable[int]) -> None:
        for token in ids:
            self._check_id(field, token)

    def _check_id(self, field: str, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise RequestError(
                f"{field} has the token id {token}; accepted are 0 to {self.vocab_size - 1}", field
            )
