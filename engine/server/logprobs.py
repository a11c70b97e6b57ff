"""Log probabilities in the three forms that clients know: completions, chat, and SGLang's."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..request import TokenLogprobs
from ..text.tokenizer import Tokenizer


class TokenTexts:
    """The text and bytes of single tokens, remembered, for the same few come again and again."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self.text = lru_cache(maxsize=2**16)(self._text)
        self.entry = lru_cache(maxsize=2**16)(self._entry)

    def _text(self, token: int) -> str:
        # Without a tokenizer, vLLM's way to name a token in a form that wants texts.
        return f"token_id:{token}" if self._tokenizer is None else self._tokenizer.token_text(token)

    def _entry(self, token: int) -> tuple[str, list[int] | None]:
        """The text, and the bytes: of a part of a character only the bytes say what it is."""
        known = None if self._tokenizer is None else list(self._tokenizer.token_bytes(token))
        return self.text(token), known


def completion_logprobs(
    texts: TokenTexts, ids: list[int], logprobs: list[TokenLogprobs], count: int, offset: int
) -> dict[str, Any]:
    """The old form, of /v1/completions: `count` alternatives, texts counted from `offset`."""
    tokens = [texts.text(token) for token in ids]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [
            {
                texts.text(token): value
                # the chosen token's own value wins where two ids have one text
                for token, value in [*_top(each, count), (chosen, each.logprob)]
            }
            for chosen, each in zip(ids, logprobs, strict=True)
        ]
        if count
        else None,
        "text_offset": offsets,
    }


def chat_logprobs(
    texts: TokenTexts, ids: list[int], logprobs: list[TokenLogprobs], count: int
) -> dict[str, Any]:
    """The new form, of /v1/chat/completions, with `count` alternatives a token."""
    return {
        "content": [
            {
                **_entry(texts, token, each.logprob),
                "top_logprobs": [_entry(texts, other, value) for other, value in _top(each, count)],
            }
            for token, each in zip(ids, logprobs, strict=True)
        ],
        "refusal": None,
    }


def native_logprobs(
    texts: TokenTexts | None,
    ids: list[int],
    logprobs: list[TokenLogprobs],
    count: int,
    asked: Sequence[int] = (),
) -> dict[str, Any]:
    """SGLang's form: [logprob, token id, text or null] a token; no texts when `texts` is None. `asked` are
    the request's `logprob_token_ids`."""

    def entry(token: int, value: float) -> list[Any]:
        return [value, token, texts.text(token) if texts else None]

    found: dict[str, Any] = {
        "output_token_logprobs": [
            entry(token, each.logprob) for token, each in zip(ids, logprobs, strict=True)
        ]
    }
    if count:
        found["output_top_logprobs"] = [
            [entry(token, value) for token, value in _top(each, count)] for each in logprobs
        ]
    if asked:
        found["output_token_ids_logprobs"] = [
            [entry(token, value) for token, value in zip(asked, each.asked, strict=True)] for each in logprobs
        ]
    return found


def _top(logprobs: TokenLogprobs, count: int) -> list[tuple[int, float]]:
    return list(zip(logprobs.top_ids[:count], logprobs.top_logprobs[:count], strict=True))


def _entry(texts: TokenTexts, token: int, value: float) -> dict[str, Any]:
    text, known = texts.entry(token)
    return {"token": text, "logprob": value, "bytes": known}
