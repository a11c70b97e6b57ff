"""What leaves the engine: tokens as they are sampled (`TokenOutput`), then text (`RequestOutput`)."""

from dataclasses import dataclass, field

from .request import FinishReason, Request, TokenLogprobs


@dataclass(slots=True, kw_only=True)
class TokenOutput:
    """New tokens of one request after a step. `finish_reason` is set on its last."""

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # one each of token_ids
    prompt_logprobs: list[TokenLogprobs] | None = None  # all at once, when the prompt is computed
    finish_reason: FinishReason | None = None
    matched_stop: int | str | None = None  # the token id or string that ended it
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    queue_seconds: float = 0.0  # from arrival to when it was first admitted
    error: str | None = None  # with FinishReason.ERROR, or `refused`
    refused: bool = False  # with FinishReason.ABORT: it waited too long to be started
    embedding: bytes | None = None  # with the last of a request for one: float32, native byte order

    @classmethod
    def of(cls, request: Request, token_ids: list[int], error: str | None = None) -> "TokenOutput":
        """What `token_ids` add to `request`, as it now stands; none of them tell only of its end."""
        return cls(
            request_id=request.id,
            token_ids=token_ids,
            finish_reason=request.finish_reason,
            matched_stop=request.matched_stop,
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=request.num_cached_tokens,
            queue_seconds=request.queue_seconds,
            error=error,
            embedding=request.embedding,
        )


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """One sequence's output so far, or whole once `finish_reason` is set.

    `text_delta` is what this output adds to `text`; concatenated over a stream it equals `text`.
    """

    request_id: str
    index: int = 0  # which of the n sequences of one prompt
    text: str = ""
    text_delta: str = ""
    token_ids: list[int] = field(default_factory=list)
    new_token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None  # one each of token_ids
    # once they are there, if asked for: one each of the prompt's tokens after `prompt_logprob_start`
    prompt_logprobs: list[TokenLogprobs] | None = None
    prompt_token_ids: list[int] | None = None  # with prompt_logprobs
    finish_reason: FinishReason | None = None
    matched_stop: int | str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    queue_seconds: float = 0.0
    error: str | None = None
    embedding: bytes | None = None  # float32, native byte order, not normalized
