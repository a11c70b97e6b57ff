"""Compiling off the step loop: cache, limits, timeouts, and requests that wait for their grammar."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from radixmesh.backends.fake.backend import FAKE_BACKEND, IM_END, TOKENIZER
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError, GrammarError
from radixmesh.engine.grammar.constrain import constrain
from radixmesh.engine.grammar.grammar import Grammar, GrammarSpec
from radixmesh.engine.grammar.llguidance import LlguidanceLibrary
from radixmesh.engine.grammar.queue import GrammarQueue
from radixmesh.engine.grammar.registry import Library, load_library
from radixmesh.engine.grammar.service import MAX_CACHED, GrammarService
from radixmesh.engine.request import Request, SamplingParams
from radixmesh.engine.text.tokenizer import Tokenizer, load_tokenizer
from tests.engine.grammar.walk import allowed

ENDLESS = '{"type":"object","properties":{"x":{"$ref":"#"}},"required":["x"]}'
TOKENS = load_tokenizer(str(TOKENIZER))
AB = GrammarSpec("regex", "ab")


def make(**options: Any) -> GrammarService:
    config = EngineConfig(backend="fake", **options)
    return GrammarService(config, FAKE_BACKEND.describe(config), lambda: TOKENS)


@pytest.fixture
def service() -> Iterator[GrammarService]:
    made = make(grammar_timeout=2.0)
    yield made
    made.close()


def request(name: str, grammar: GrammarSpec = AB, parent: str | None = None, **params: Any) -> Request:
    params_ = SamplingParams(grammar=grammar, **params)
    eos = frozenset([IM_END])
    return Request(name, np.array([1], np.int32), params_, eos_token_ids=eos, parent_id=parent)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The grammar "slow" takes until this is set."""
    event, compile_ = threading.Event(), LlguidanceLibrary.compile

    def slow(library: LlguidanceLibrary, spec: GrammarSpec) -> Grammar:
        if spec.text == "slow":
            event.wait(20)
        return compile_(library, spec)

    monkeypatch.setattr(LlguidanceLibrary, "compile", slow)
    yield event
    event.set()


SLOW = GrammarSpec("regex", "slow")


def settle(queue: GrammarQueue, count: int = 1) -> list[tuple[Request, GrammarError | None]]:
    taken: list[tuple[Request, GrammarError | None]] = []
    end = time.monotonic() + 10
    while len(taken) < count and time.monotonic() < end:
        taken += queue.take()
        time.sleep(0.005)
    return taken


def test_equal_specifications_are_compiled_once(service: GrammarService) -> None:
    first = service.compile(AB)
    assert service.compile(GrammarSpec("regex", "ab")) is first
    assert service.wait(first) is service.wait(service.compile(AB))
    assert service.compile(GrammarSpec("ebnf", "ab")) is not first


def test_the_cache_is_bounded_and_keeps_what_was_used_last(service: GrammarService) -> None:
    first = service.compile(AB)
    for number in range(MAX_CACHED - 1):
        service.compile(GrammarSpec("regex", f"a{number}"))
    assert service.compile(AB) is first
    service.compile(GrammarSpec("regex", "one more"))
    assert service.compile(AB) is first
    for number in range(MAX_CACHED):
        service.compile(GrammarSpec("regex", f"b{number}"))
    assert service.compile(AB) is not first


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (GrammarSpec("regex", "a" * 101), "101 bytes; accepted are at most 100"),
        (GrammarSpec("regex", "(" * 11 + "a" + ")" * 11), "nested 11 deep; accepted are at most 10"),
        (GrammarSpec("json_schema", '{"a":' * 15 + "1" + "}" * 15), "nested 15 deep"),
        (GrammarSpec("json_schema", "{"), "not JSON"),
        (GrammarSpec("json_schema", "17"), "a JSON int; accepted is a JSON schema"),
        (GrammarSpec("json_schema", '{"type": "objekt"}'), "objekt"),
        (GrammarSpec("json_schema", ENDLESS), "recursion without end"),
        (GrammarSpec("json_schema", '{"$ref": "#"}'), "recursion without end"),
        (GrammarSpec("regex", " "), "it is empty"),
        (GrammarSpec("choices", "[]"), "accepted is a list of 1 to"),
        (GrammarSpec("choices", '["a", 1]'), "accepted is a list of 1 to"),
    ],
)
def test_what_is_refused_says_why(spec: GrammarSpec, reason: str) -> None:
    service = make(max_grammar_bytes=100, max_grammar_depth=10)
    with pytest.raises(GrammarError, match=f"^{spec.kind} is refused: .*{reason}") as error:
        service.wait(service.compile(spec))
    assert error.value.field == spec.kind and error.value.status == 400
    service.close()


@pytest.mark.parametrize("early", [True, False])
def test_tokenizer_and_library_are_loaded_once(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def load_tokenizer() -> Tokenizer:
        calls.append("tokenizer")
        return TOKENS

    def load(*arguments: Any) -> Library:
        calls.append("library")
        return load_library(*arguments)

    monkeypatch.setattr("radixmesh.engine.grammar.service.load_library", load)
    config = EngineConfig(backend="fake")
    service = GrammarService(config, FAKE_BACKEND.describe(config), load_tokenizer)
    if early:
        service.load().result()
        assert calls == ["tokenizer", "library"]  # so the first grammar loads nothing
    for text in ("ab", "cd"):
        service.wait(service.compile(GrammarSpec("regex", text)))
    assert calls == ["tokenizer", "library"]
    service.close()


def test_what_cannot_be_loaded_early_is_each_grammars_refusal() -> None:
    config = EngineConfig(backend="fake", skip_tokenizer_init=True)
    service = GrammarService(config, FAKE_BACKEND.describe(config), lambda: None)
    service.load().result()
    for _ in range(2):
        with pytest.raises(GrammarError, match="skip_tokenizer_init"):
            service.wait(service.compile(AB))
    service.close()


def test_a_bad_grammar_is_tried_again(service: GrammarService) -> None:
    bad = GrammarSpec("regex", "(")
    for _ in range(2):
        with pytest.raises(GrammarError):
            service.wait(service.compile(bad))


def test_requests_get_their_matchers(service: GrammarService) -> None:
    queue = GrammarQueue(service)
    children = [request(f"a-{number}", parent="a") for number in range(3)]
    for child in children:
        queue.add(child)
    assert {each.id for each, error in settle(queue, 3) if error is None} == {"a-0", "a-1", "a-2"}
    assert len({id(child.matcher) for child in children}) == 3 and len(queue) == 0


def test_a_slow_grammar_holds_up_nobody_else(service: GrammarService, blocked: threading.Event) -> None:
    queue = GrammarQueue(service)
    queue.add(request("slow", SLOW))
    queue.add(request("quick"))
    assert [each.id for each, _ in settle(queue)] == ["quick"]
    assert len(queue) == 1
    blocked.set()
    assert [each.id for each, _ in settle(queue)] == ["slow"]


def test_what_takes_too_long_is_refused(blocked: threading.Event) -> None:
    service = make(grammar_timeout=0.1)
    queue = GrammarQueue(service)
    queue.add(request("slow", SLOW))
    ((taken, error),) = settle(queue)
    assert taken.id == "slow" and error is not None and "longer than 0.1 s" in str(error)
    with pytest.raises(GrammarError, match="longer than"):
        service.wait(service.compile(SLOW))
    blocked.set()
    service.close()


def test_who_waits_can_be_aborted(service: GrammarService, blocked: threading.Event) -> None:
    queue = GrammarQueue(service)
    for each in (request("a-0", SLOW, "a"), request("a-1", SLOW, "a"), request("b", SLOW)):
        queue.add(each)
    queue.abort("a")
    queue.abort("nobody")
    assert len(queue) == 1
    queue.abort("b")
    blocked.set()
    assert len(queue) == 0 and queue.take() == []


def test_a_grammar_may_not_end_before_the_least_tokens(service: GrammarService) -> None:
    grammar = service.wait(service.compile(GrammarSpec("regex", "a{1,4}")))
    least, never = request("1", min_new_tokens=3), request("2", ignore_eos=True)
    ends: dict[str, list[bool]] = {}
    for each in (least, never):
        constrain(each, grammar)
        assert each.matcher is not None
        assert not each.params.min_new_tokens and not each.params.ignore_eos
        ends[each.id] = []
        for _ in range(5):
            ids = allowed(each.matcher, 259)
            ends[each.id].append(IM_END in ids)
            each.matcher.accept(ids[0])
            if ids == [IM_END]:
                break
    assert ends["1"] == [False, False, False, True, True]
    assert ends["2"] == [False, False, False, False, True]  # nothing else may follow


@pytest.mark.parametrize(
    "options", [{"grammar_timeout": 0.0}, {"max_grammar_bytes": 0}, {"max_grammar_depth": 0}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        EngineConfig(**options)
