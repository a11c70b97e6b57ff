"""What leaves the engine: tokens as they are sampled (`TokenOutput`), then text (`RequestOutput`)."""

from dataclasses import dataclass, field

from .request import FinishReason, TokenLogprobs


@dataclass(slots=True, kw_only=True)
class TokenOutput:
    """New tokens of one request after a step. `finish_reason` is set on its last."""

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # one each of token_ids
    finish_reason: FinishReason | None = None
    matched_stop: int | str | None = None  # the token id or string that ended it
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: str | None = None  # with FinishReason.ERROR


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
    finish_reason: FinishReason | None = None
    matched_stop: int | str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: str | None = None
