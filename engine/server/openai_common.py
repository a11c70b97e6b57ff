"""What /v1/completions and /v1/chat/completions share."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from ..errors import RequestError
from ..outputs import RequestOutput
from ..text.tokenizer import Tokenizer
from .errors import ModelNotFoundError
from .protocol.base import shorten
from .protocol.sampling import DEFAULT_NAME, SamplingBody, StreamOptions
from .state import Server


def check_model(server: Server, name: str) -> None:
    """Raise ModelNotFoundError unless `name` is the served model's, or "default"."""
    served = server.llm.info.name
    if name not in (served, DEFAULT_NAME):
        raise ModelNotFoundError(f"model is {shorten(name)}; this server serves {shorten(served)}", "model")


def need_tokenizer(server: Server, field: str) -> Tokenizer:
    """The tokenizer. Raises RequestError, naming `field`, on a server that has none."""
    tokenizer: Tokenizer | None = server.llm.tokenizer
    if tokenizer is None:
        raise RequestError(
            f"{field} needs a tokenizer, and this server was started with skip_tokenizer_init;"
            " accepted are token ids, at /generate and /v1/completions",
            field,
        )
    return tokenizer


def check_whole(prompt_logprobs: int | None, stream: bool) -> None:
    """Raise RequestError for prompt logprobs in a stream, whose events have no place for them."""
    if prompt_logprobs is not None and stream:
        raise RequestError(
            f"prompt_logprobs is {prompt_logprobs}; it is accepted only without stream", "prompt_logprobs"
        )


def check_ids(server: Server, ids: Sequence[int], field: str) -> None:
    """Raise RequestError, naming the place in `field`, for what is no token id of the model's."""
    most = server.llm.info.vocab_size
    for index, token in enumerate(ids):
        if not 0 <= token < most:
            path = f"{field}[{index}]"
            raise RequestError(f"{path} is {token}; accepted are token ids from 0 to {most - 1}", path)


def new_id(body: SamplingBody, prefix: str) -> str:
    """The request's own `rid`, or a new id: /abort_request takes either."""
    if body.rid is not None and not body.rid:
        raise RequestError("rid is empty; accepted is a string that is not", "rid")
    return body.rid or f"{prefix}-{uuid.uuid4().hex}"


def head(server: Server, id: str, kind: str) -> dict[str, Any]:
    """The fields that begin every answer and every chunk."""
    return {"id": id, "object": kind, "created": int(time.time()), "model": server.llm.info.name}


def usage(outputs: Sequence[Sequence[RequestOutput | None]]) -> dict[str, Any]:
    """Token counts of all prompts' sequences, None where nothing came yet; a prompt counts once."""
    begun = [[each for each in sequences if each is not None] for sequences in outputs]
    prompt = sum(sequences[0].num_prompt_tokens for sequences in begun if sequences)
    completion = sum(len(each.token_ids) for sequences in begun for each in sequences)
    # Later sequences of one prompt share its pages: only the first one's hit says what was known before.
    cached = sum(sequences[0].num_cached_tokens for sequences in outputs if sequences[0] is not None)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def chunk_usage(options: StreamOptions, outputs: Sequence[Sequence[RequestOutput | None]]) -> dict[str, Any]:
    """The usage of an event that is not the last, as a field of it."""
    if options.continuous_usage_stats:
        return {"usage": usage(outputs)}
    return {"usage": None} if options.include_usage else {}


def finish_reason(output: RequestOutput) -> str | None:
    """The reason as a string, None while it runs."""
    return None if output.finish_reason is None else output.finish_reason.value


def matched_stop(output: RequestOutput) -> dict[str, Any]:
    """SGLang's extension of a choice: which stop token or string ended it."""
    return {"matched_stop": output.matched_stop} if output.finish_reason is not None else {}
