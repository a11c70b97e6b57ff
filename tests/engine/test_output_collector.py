"""From tokens to text: stop strings, stop tokens, limits; against the text decoded whole."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixmesh.backends.fake.backend import IM_END, TOKENIZER
from radixmesh.engine.output_collector import OutputState
from radixmesh.engine.outputs import RequestOutput, TokenOutput
from radixmesh.engine.request import FinishReason, Request, SamplingParams, TokenLogprobs
from radixmesh.engine.text.tokenizer import load_tokenizer

FAKE = load_tokenizer(str(TOKENIZER))


def state(with_tokenizer: bool = True, **params: Any) -> OutputState:
    request = Request("x", np.array([1, 2], np.int32), SamplingParams(**params))
    return OutputState(request, FAKE if with_tokenizer else None)


def tokens(ids: bytes | list[int], end: FinishReason | None = None, **more: Any) -> TokenOutput:
    return TokenOutput(request_id="x", token_ids=list(ids), finish_reason=end, **more)


def run(one: OutputState, *outputs: TokenOutput) -> RequestOutput:
    """The last output; the deltas on the way add up to its text."""
    text, ids = "", []
    for output in outputs:
        result = one.feed(output)
        text += result.text_delta
        ids += result.new_token_ids
        assert (result.text, result.token_ids) == (text, ids)
        if one.finished:
            break
    return result


def test_length() -> None:
    one = state()
    result = run(one, tokens(b"ab", num_cached_tokens=1), tokens(b"c", FinishReason.LENGTH))
    assert (result.text, result.finish_reason, result.matched_stop) == ("abc", FinishReason.LENGTH, None)
    assert (result.num_prompt_tokens, result.num_cached_tokens, result.request_id) == (2, 1, "x")
    assert one.finished and not one.ended_early


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 20])
def test_stop_string_across_tokens(chunk: int) -> None:
    one = state(stop=("END", "nothing"))
    ids = b"some EN ENDless text"
    result = run(one, *(tokens(ids[at : at + chunk]) for at in range(0, len(ids), chunk)))
    assert (result.text, result.finish_reason, result.matched_stop) == ("some EN ", FinishReason.STOP, "END")
    assert bytes(result.token_ids) == b"some EN END"  # up to the token that completed it
    assert one.finished and one.ended_early


def test_no_stop_trim() -> None:
    result = run(state(stop=("END",), no_stop_trim=True), tokens(b"some ENDless"))
    assert result.text == "some END"


def test_stop_string_on_the_very_last_token() -> None:
    one = state(stop=("cd",))
    result = run(one, tokens(b"abc"), tokens(b"d", FinishReason.LENGTH))
    assert (result.text, result.finish_reason, result.matched_stop) == ("ab", FinishReason.STOP, "cd")
    assert not one.ended_early


def test_what_was_held_back_comes_at_the_end() -> None:
    assert run(state(stop=("cde",)), tokens(b"abcd"), tokens(b"", FinishReason.LENGTH)).text == "abcd"
    assert run(state(stop=("cde",)), tokens(b"abcd"), tokens(b"", FinishReason.ABORT)).text == "abcd"


@pytest.mark.parametrize(
    ("least", "text", "ids"), [(2, "", b"ab"), (3, "abx", b"abxab"), (6, "abxabx", b"abxabxab")]
)
def test_stop_strings_wait_for_min_new_tokens(least: int, text: str, ids: bytes) -> None:
    result = run(state(stop=("ab",), min_new_tokens=least), tokens(b"abx"), tokens(b"abxabxab"))
    assert (result.text, bytes(result.token_ids), result.matched_stop) == (text, ids, "ab")


@pytest.mark.parametrize(("skip", "trim"), [(True, True), (True, False), (False, True), (False, False)])
def test_end_of_text_token(skip: bool, trim: bool) -> None:
    one = state(skip_special_tokens=skip, no_stop_trim=not trim)
    result = run(one, tokens(b"ab"), tokens([IM_END], FinishReason.STOP, matched_stop=IM_END))
    assert result.text == ("ab<|im_end|>" if not skip and not trim else "ab")
    assert result.token_ids == [97, 98, IM_END] and result.matched_stop == IM_END


@pytest.mark.parametrize(("trim", "text"), [(True, "ab"), (False, "abc")])
def test_stop_token_that_is_ordinary_text(trim: bool, text: str) -> None:
    one = state(stop_token_ids=(99,), no_stop_trim=not trim)
    assert run(one, tokens(b"abc", FinishReason.STOP, matched_stop=99)).text == text


def test_special_tokens_within() -> None:
    assert run(state(), tokens([97, 256, 98], FinishReason.LENGTH)).text == "ab"
    assert (
        run(state(skip_special_tokens=False), tokens([97, 256, 98], FinishReason.LENGTH)).text
        == "a<|endoftext|>b"
    )


def test_a_character_that_never_was_completed() -> None:
    result = run(state(), tokens([97, 0xE4, 0xBD]), tokens([], FinishReason.LENGTH))
    assert result.text == "a\ufffd"
    assert run(state(stop=("\ufffd",)), tokens([97, 0xE4], FinishReason.LENGTH)).matched_stop == "\ufffd"


def test_logprobs_of_the_tokens_that_count() -> None:
    def logprobs(count: int) -> list[TokenLogprobs]:
        return [TokenLogprobs(logprob=-float(i), top_ids=[], top_logprobs=[]) for i in range(count)]

    result = run(state(stop=("b",), logprobs=0), tokens(b"abcd", logprobs=logprobs(4)))
    assert result.logprobs is not None and [each.logprob for each in result.logprobs] == [0.0, -1.0]
    assert run(state(), tokens(b"ab", FinishReason.LENGTH)).logprobs is None


def test_without_a_tokenizer() -> None:
    result = run(state(with_tokenizer=False), tokens(b"ab"), tokens(b"c", FinishReason.LENGTH))
    assert (result.text, result.token_ids) == ("", [97, 98, 99])


def test_children_are_told_apart() -> None:
    request = Request("a-b-7", np.array([1], np.int32), SamplingParams(n=8), parent_id="a-b")
    result = OutputState(request, None).feed(tokens(b"a"))
    assert (result.request_id, result.index) == ("a-b", 7)


def test_an_error_is_handed_on() -> None:
    result = run(state(), tokens(b"a"), tokens(b"", FinishReason.ERROR, error="the device is gone"))
    assert (result.text, result.finish_reason, result.error) == (
        "a",
        FinishReason.ERROR,
        "the device is gone",
    )


@given(
    ids=st.lists(st.sampled_from([*b"abE", 0xC3, 0xA9, 256, IM_END]), min_size=1, max_size=30),
    cuts=st.lists(st.integers(1, 4), min_size=30, max_size=30),
    stop=st.lists(st.text("abEé", min_size=1, max_size=3), max_size=2),
    least=st.integers(0, 6),
)
def test_the_cutting_into_steps_changes_nothing(
    ids: list[int], cuts: list[int], stop: list[str], least: int
) -> None:
    end = tokens([], FinishReason.LENGTH)
    pieces = []
    rest = ids
    for cut in cuts:
        pieces.append(tokens(rest[:cut]))
        rest = rest[cut:]
    one, other = (state(stop=tuple(stop), min_new_tokens=least) for _ in range(2))
    together, apart = run(one, *pieces, end), run(other, *(tokens([index]) for index in ids), end)
    for name in ("text", "token_ids", "finish_reason", "matched_stop"):
        assert getattr(together, name) == getattr(apart, name)
    if not stop:
        assert together.text == FAKE.fast.decode(ids, skip_special_tokens=True)
