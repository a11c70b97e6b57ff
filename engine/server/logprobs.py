"""Log probabilities in the forms that clients know: completions, chat, SGLang's and vLLM's."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from ..outputs import RequestOutput
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
    texts: TokenTexts, ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None], count: int, offset: int
) -> dict[str, Any]:
    """The old form, of /v1/completions: `count` alternatives, texts counted from `offset`. The first token of
    a prompt has none."""
    tokens = [texts.text(token) for token in ids]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)

    def top(chosen: int, each: TokenLogprobs) -> dict[str, float]:
        # the chosen token's own value wins where two ids have one text
        return {texts.text(token): value for token, value in [*_top(each, count), (chosen, each.logprob)]}

    return {
        "tokens": tokens,
        "token_logprobs": [each and each.logprob for each in logprobs],
        "top_logprobs": [each and top(chosen, each) for chosen, each in zip(ids, logprobs, strict=True)]
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
    side: str,
    texts: TokenTexts | None,
    ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs | None],
    *,
    count: int,
    asked: Sequence[int],
) -> dict[str, Any]:
    """SGLang's form: [logprob, token id, text or null] a token; no texts when `texts` is None. `side` is
    "input" or "output", `asked` the request's `logprob_token_ids`."""

    def entry(token: int, value: float | None) -> list[Any]:
        return [value, token, texts.text(token) if texts else None]

    def entries(pairs: Iterable[tuple[int, float]]) -> list[Any]:
        return [entry(token, value) for token, value in pairs]

    own = [None if each is None else each.logprob for each in logprobs]
    found: dict[str, Any] = {f"{side}_token_logprobs": list(map(entry, ids, own))}
    if count:
        found[f"{side}_top_logprobs"] = [each and entries(_top(each, count)) for each in logprobs]
    if asked:
        found[f"{side}_token_ids_logprobs"] = [
            each and entries(zip(asked, each.asked, strict=True)) for each in logprobs
        ]
    return found


def prompt_logprobs(
    texts: TokenTexts, output: RequestOutput, count: int
) -> list[dict[str, Any] | None] | None:
    """vLLM's form: for each token of the prompt an object by token id, of the token itself and of the `count`
    likeliest; null for the first. A rank is told where it is known, which is that of the likeliest. Of a
    request that was aborted before its prompt was computed there is nothing to tell.
    """

    def entry(token: int, value: float, rank: int | None) -> dict[str, Any]:
        return {"logprob": value, "rank": rank, "decoded_token": texts.text(token)}

    if output.prompt_token_ids is None or output.prompt_logprobs is None:
        return None
    found: list[dict[str, Any] | None] = [None]
    for token, each in zip(output.prompt_token_ids[1:], output.prompt_logprobs, strict=True):
        likely = {
            other: entry(other, value, rank) for rank, (other, value) in enumerate(_top(each, count), 1)
        }
        own = likely.pop(token, None) or entry(token, each.logprob, None)
        found.append({str(token): own, **{str(other): told for other, told in likely.items()}})
    return found


def _top(logprobs: TokenLogprobs, count: int) -> list[tuple[int, float]]:
    return list(zip(logprobs.top_ids[:count], logprobs.top_logprobs[:count], strict=True))


def _entry(texts: TokenTexts, token: int, value: float) -> dict[str, Any]:
    text, known = texts.entry(token)
    return {"token": text, "logprob": value, "bytes": known}
