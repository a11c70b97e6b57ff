"""`OutputState`: one request's tokens to text, up to its stop string or its end."""

from dataclasses import replace

from .outputs import RequestOutput, TokenOutput
from .request import FinishReason, Request, TokenLogprobs
from .text.detokenizer import IncrementalDetokenizer
from .text.stop import StopStrings
from .text.tokenizer import Tokenizer


class OutputState:
    """What has come of one request.

    A stop string is found here, not in the engine: then the returned output is the last, and if the
    engine's was not, the caller has to abort the engine's request (`ended_early`). Text is "" without a
    tokenizer.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        self._params = request.params
        self._shown_id = request.parent_id or request.id
        self._index = (
            0 if request.parent_id is None else int(request.id.removeprefix(f"{request.parent_id}-"))
        )
        self._detokenizer = (
            IncrementalDetokenizer(tokenizer, request.params.skip_special_tokens) if tokenizer else None
        )
        self._stop = StopStrings(request.params.stop, trim=not request.params.no_stop_trim)
        self._text = ""
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] | None = [] if request.params.logprobs is not None else None
        self._prompt_ids = request.prompt_ids
        nothing = request.params.scores_prompt and _num_scored(request) == 0
        self._prompt_logprobs: list[TokenLogprobs] | None = [] if nothing else None
        self._num_prompt_tokens = request.num_prompt_tokens
        self._num_cached_tokens = 0
        self.finished = False
        self.ended_early = False

    def feed(self, output: TokenOutput) -> RequestOutput:
        """Take in what the engine brought. Not to be called once `finished`."""
        if self._params.max_new_tokens == 0:
            output = _without_tokens(output)
        ends_by_token = output.finish_reason is FinishReason.STOP and isinstance(output.matched_stop, int)
        silent = ends_by_token and not self._params.no_stop_trim
        delta, taken = "", 0
        for taken, index in enumerate(output.token_ids, 1):
            if not (silent and taken == len(output.token_ids)):
                delta += self._show([index], len(self._token_ids) + taken)
            if self._stop.matched is not None:
                break
        if output.finish_reason is not None and self._stop.matched is None:
            delta += self._show(None, len(self._token_ids) + taken) + self._stop.flush()
        return self._take(output, taken, delta)

    def _show(self, token_ids: list[int] | None, count: int) -> str:
        """Text that may be shown after `count` tokens; None for the ids means that no more will come."""
        if self._detokenizer is None:
            return ""
        text = self._detokenizer.flush() if token_ids is None else self._detokenizer.add(token_ids)
        return self._stop.add(text, look=count >= self._params.min_new_tokens)

    def _take(self, output: TokenOutput, taken: int, delta: str) -> RequestOutput:
        """Count the first `taken` tokens in and end the request if it is at its end."""
        new = output.token_ids[:taken]
        self._text += delta
        self._token_ids += new
        if self._logprobs is not None and output.logprobs is not None:
            self._logprobs += output.logprobs[:taken]
        self._prompt_logprobs = output.prompt_logprobs or self._prompt_logprobs
        self._num_cached_tokens = output.num_cached_tokens or self._num_cached_tokens
        reason, matched = output.finish_reason, output.matched_stop
        if self._stop.matched is not None:
            reason, matched = FinishReason.STOP, self._stop.matched
        self.finished = reason is not None
        self.ended_early = self.finished and output.finish_reason is None
        return RequestOutput(
            request_id=self._shown_id,
            index=self._index,
            text=self._text,
            text_delta=delta,
            token_ids=self._token_ids.copy(),
            new_token_ids=new,
            logprobs=self._logprobs.copy() if self._logprobs is not None else None,
            prompt_logprobs=self._prompt_logprobs,
            prompt_token_ids=None if self._prompt_logprobs is None else self._prompt_ids.tolist(),
            finish_reason=reason,
            matched_stop=matched,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            queue_seconds=output.queue_seconds,
            error=output.error,
            embedding=output.embedding,
        )


def _num_scored(request: Request) -> int:
    """How many prompt logprobs a request is to get that asks for them."""
    return request.num_prompt_tokens - 1 - request.params.prompt_logprob_start


def _without_tokens(output: TokenOutput) -> TokenOutput:
    """`output` of a request that only scores its prompt: the engine has sampled a token to come to an end."""
    stopped = output.finish_reason is FinishReason.STOP
    reason = FinishReason.LENGTH if stopped else output.finish_reason
    return replace(output, token_ids=[], logprobs=None, finish_reason=reason, matched_stop=None)
