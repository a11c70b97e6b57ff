"""Keys, limits and origins, in process: an application over an engine whose answers are written here."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from radixmesh.engine.cli import serve
from radixmesh.engine.cli.options import Parser, read_options
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError, QueueFullError
from radixmesh.engine.request import SamplingParams
from radixmesh.engine.server.allowance import Bucket
from radixmesh.engine.server.app import create_app
from radixmesh.engine.server.door import OPEN_PATHS
from radixmesh.engine.server.keys import read_keys
from radixmesh.engine.server.options import ServerOptions
from radixmesh.engine.stats import EngineStats
from tests.engine.server.scripted import ScriptedLLM

Ask = Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]
BODY = {"prompt": [1, 2, 3, 4], "max_tokens": 4, "temperature": 0}
BEARER = {"authorization": "Bearer sesame"}


class QuietLLM(ScriptedLLM):
    """With the parts of AsyncLLM that admin routes use."""

    alive, heartbeat_age, num_open_requests, stats = True, 0.0, 0, EngineStats()

    def __init__(self) -> None:
        super().__init__("{{ messages[0].content }}", "abcdefgh")
        self.aborted: list[str | None] = []

    async def generate(self, prompt: Any, params: SamplingParams, **others: Any) -> Any:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        async for output in super().generate(ids, params, **others):
            yield output

    async def flush_cache(self) -> bool:
        return True

    async def abort(self, rid: str | None) -> int:
        self.aborted.append(rid)
        return 1


def visit(ask: Ask, llm: QuietLLM | None = None, **options: Any) -> None:
    """Run `ask` with a client of a server with these options."""

    async def main() -> None:
        app = create_app(llm or QuietLLM(), ServerOptions(**options))  # type: ignore[arg-type]
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://test"
        ) as client:
            await ask(client)

    asyncio.run(main())


def test_every_route_but_the_open_ones_needs_a_key() -> None:
    app = create_app(QuietLLM(), ServerOptions(api_key=("sesame",)))  # type: ignore[arg-type]
    routes = [(each.path, each.methods) for each in app.routes if isinstance(each, Route)]
    assert len(routes) > 10

    async def ask(client: httpx.AsyncClient) -> None:
        for path, methods in routes:
            for method in (methods or set()) - {"HEAD"}:
                answer = await client.request(method, path)
                assert (answer.status_code == 401) == (path not in OPEN_PATHS), path
        assert (await client.get("/nowhere")).status_code == 401  # nor is it told what there is
        assert (await client.get("/nowhere", headers=BEARER)).status_code == 404
        assert (await client.get("/health")).status_code == 200

    visit(ask, api_key=("sesame",))


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        (BEARER, True),
        ({"authorization": "bearer  sesame"}, True),
        ({"x-api-key": "sesame"}, True),
        ({"x-api-key": "of-the-file"}, True),
        ({"x-api-key": "chief"}, True),
        ({"x-api-key": "wrong", "authorization": "Bearer sesame"}, True),
        ({}, False),
        ({"authorization": "sesame"}, False),
        ({"authorization": "Basic sesame"}, False),
        ({"authorization": "Bearer sesam"}, False),
        ({"authorization": "Bearer sesame1"}, False),
        ({"authorization": "Bearer "}, False),
        ({"x-api-key": "#"}, False),
    ],
)
def test_a_key_is_taken_from_either_header(headers: dict[str, str], good: bool, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\nof-the-file  alice\n")

    async def ask(client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/models", headers=headers)
        assert answer.status_code == (200 if good else 401)
        if not good:
            error = answer.json()["error"]
            assert error["code"] == "invalid_api_key" and answer.headers["www-authenticate"] == "Bearer"

    visit(ask, api_key=("sesame",), api_key_file=str(file), admin_api_key="chief")


def test_what_changes_the_state_needs_the_admin_key() -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        for path, body in (("/flush_cache", None), ("/abort_request", {"abort_all": True})):
            assert (await client.post(path, json=body)).status_code == 401
            refused = await client.post(path, json=body, headers=BEARER)
            assert refused.status_code == 403 and refused.json()["error"]["code"] == "admin_key_needed"
            assert (await client.post(path, json=body, headers={"x-api-key": "chief"})).status_code == 200

    visit(ask, api_key=("sesame",), admin_api_key="chief")

    async def ask_without(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200
        assert (await client.post("/flush_cache")).status_code == 401

    visit(ask_without, admin_api_key="chief")

    async def ask_with_one_kind(client: httpx.AsyncClient) -> None:
        assert (await client.post("/flush_cache", headers=BEARER)).status_code == 200

    visit(ask_with_one_kind, api_key=("sesame",))


def test_a_caller_ends_its_own_requests_and_the_admin_all() -> None:
    class Slow(QuietLLM):
        async def generate(self, *args: Any, **options: Any) -> Any:
            await asyncio.sleep(60)
            yield

    llm = Slow()

    async def ask(client: httpx.AsyncClient) -> None:
        body = {**BODY, "rid": "mine"}
        request = asyncio.create_task(client.post("/v1/completions", json=body, headers=BEARER))
        await asyncio.sleep(0.05)
        asked = [("other", "mine", 0), ("sesame", "theirs", 0), ("sesame", "mine", 1), ("chief", "x", 1)]
        for key, rid, count in asked:
            answer = await client.post("/abort_request", json={"rid": rid}, headers={"x-api-key": key})
            assert answer.json() == {"aborted": count}
        assert llm.aborted == ["mine", "x"]
        request.cancel()

    visit(ask, llm, api_key=("sesame", "other"), admin_api_key="chief")


def test_no_key_is_shown_or_logged(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("rosebud alice")
    options = ServerOptions(api_key=("sesame",), api_key_file=str(file), admin_api_key="chief")
    told = [repr(options), repr(options.keys), repr(options.shown())]
    assert options.shown()["api_key"] is True and ServerOptions().shown()["admin_api_key"] is False

    async def ask(client: httpx.AsyncClient) -> None:
        for key in ("sesame", "rosebud", "chief"):
            await client.post("/v1/completions", json=BODY, headers={"x-api-key": key})
            await client.post("/v1/completions?api_key=" + key, json=BODY, headers={"x-api-key": "bad" + key})
        info = await client.get("/server_info", headers=BEARER)
        assert info.json()["server"]["api_key"] is True
        told.append(info.text)

    with caplog.at_level(logging.DEBUG, "radixmesh"):
        visit(ask, api_key=("sesame",), api_key_file=str(file), admin_api_key="chief")
    told.append(caplog.text)
    assert "key=alice" in caplog.text and "key=key-1" in caplog.text and "key=admin" in caplog.text
    assert not [secret for secret in ("sesame", "rosebud", "chief") for text in told if secret in text]


def test_a_key_has_so_many_requests_a_minute() -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        for _ in range(2):
            assert (await client.post("/v1/completions", json=BODY, headers=BEARER)).status_code == 200
        refused = await client.post("/v1/completions", json=BODY, headers=BEARER)
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert "key-1" in refused.text and "2 requests a minute" in refused.text
        assert 25 <= int(refused.headers["retry-after"]) <= 30
        assert (await client.get("/v1/models", headers=BEARER)).status_code == 200
        for key in ("other", "chief", "chief", "chief"):
            answer = await client.post("/v1/completions", json=BODY, headers={"x-api-key": key})
            assert answer.status_code == 200

    visit(ask, api_key=("sesame", "other"), admin_api_key="chief", rate_limit_requests=2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_key_has_so_many_tokens_a_minute(stream: bool) -> None:
    """Four of the prompt and four of the answer each time: the second request overdraws, the third waits."""

    async def ask(client: httpx.AsyncClient) -> None:
        body = {**BODY, "stream": stream}
        for _ in range(2):
            assert (await client.post("/v1/completions", json=body)).status_code == 200
        refused = await client.post("/v1/completions", json=body)
        assert refused.status_code == 429 and "12 tokens a minute" in refused.text
        assert 20 <= int(refused.headers["retry-after"]) <= 25  # from -4 to 1, at one in five seconds

    visit(ask, rate_limit_tokens=12)


def test_a_text_is_guessed_first_and_counted_then() -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        body = {**BODY, "prompt": "x" * 40}  # ten tokens by guess, forty by the tokenizer
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        refused = await client.post("/v1/completions", json=body)
        assert int(refused.headers["retry-after"]) in (7, 8)  # from -4 to 1, at two in three seconds

    visit(ask, rate_limit_tokens=40)


def test_what_the_engine_refuses_costs_no_tokens() -> None:
    class Full(QuietLLM):
        async def generate(self, *args: Any, **options: Any) -> Any:
            raise QueueFullError("others wait")
            yield

    async def ask(client: httpx.AsyncClient) -> None:
        for _ in range(3):
            refused = await client.post("/v1/completions", json={**BODY, "prompt": [[1] * 9, [2] * 9]})
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"

    visit(ask, Full(), rate_limit_tokens=12)


def test_every_key_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a search takes must not tell how near a guess came."""
    compared: list[bytes] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr("hmac.compare_digest", compare)
    ring = read_keys(["first", "second"], None, "chief")
    for guess, name in ((b"first", "key-1"), (b"second", "key-2"), (b"chief", "admin"), (b"firs", None)):
        compared.clear()
        found = ring.find([guess])
        assert (found.name if found else None) == name and len(compared) == 3


def test_a_bucket_refills_evenly_and_no_higher_than_its_size() -> None:
    now = 0.0
    bucket = Bucket(60, lambda: now)
    assert bucket.wait(60) == 0
    bucket.take(70)
    assert bucket.wait(1) == 11 and bucket.wait(10) == 20
    now = 11.0
    assert bucket.wait(1) == 0
    now = 1000.0
    bucket.take(-30)
    assert bucket.wait(60) == 0 and bucket.wait(61) == 1


def test_pages_of_other_origins_may_call_only_where_that_is_allowed() -> None:
    origin = {"origin": "https://example.com"}
    wish = {"method": "POST", "headers": "x-api-key"}
    preflight = {**origin, **{f"access-control-request-{name}": value for name, value in wish.items()}}

    async def closed(client: httpx.AsyncClient) -> None:
        answer = await client.get("/health", headers=origin)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (await client.options("/v1/completions", headers=preflight)).status_code == 405

    visit(closed)

    async def opened(client: httpx.AsyncClient) -> None:
        answer = await client.options("/v1/completions", headers=preflight)  # browsers send no key with it
        assert answer.status_code == 200 and "x-api-key" in answer.headers["access-control-allow-headers"]
        for path, status in (("/health", 200), ("/v1/models", 401)):
            answer = await client.get(path, headers=origin)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://example.com"
        other = await client.get("/health", headers={"origin": "https://example.org"})
        assert "access-control-allow-origin" not in other.headers

    visit(opened, cors_allow_origins=("https://example.com",), api_key=("sesame",))


def test_headers_have_a_bound() -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        assert (await client.get("/health", headers={"a": "b" * 200})).status_code == 200
        refused = await client.get("/health", headers={"a": "b" * 1000})
        assert refused.status_code == 431 and refused.json()["error"]["code"] == "headers_too_large"
        assert (await client.get("/health?" + "b" * 1000)).status_code == 431

    visit(ask, max_header_bytes=600)


def test_flags_of_the_command_line_reach_the_options() -> None:
    parser = Parser()
    serve.add_arguments(parser)
    words = (
        "--api-key a --api-key b --admin-api-key c --cors-allow-origins * --cors-allow-origins http://x:1"
        " --rate-limit-requests 5 --receive-timeout 2.5 --no-access-log --trust-remote-code"
    )
    arguments = parser.parse_args(words.split())
    options = ServerOptions(**read_options(arguments, ServerOptions))
    assert options.api_key == ("a", "b") and options.cors_allow_origins == ("*", "http://x:1")
    assert [key.name for key in options.keys.user] == ["key-1", "key-2"] and options.keys.admin
    assert (options.rate_limit_requests, options.receive_timeout, options.access_log) == (5, 2.5, False)
    assert read_options(arguments, EngineConfig) == {"trust_remote_code": True}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "has no key"),
        ("# nothing\n \n", "has no key"),
        ("one two three", "line 1 of api_key_file .* has 3 words"),
        ("fine\nschl\u00fcssel", "line 2 of api_key_file .* is no key"),
        ("a x\nb x", "a name twice"),
        ("a x\na y", "a key twice"),
        ("sesame", "a key twice"),
        ("other admin", "a name twice"),
    ],
)
def test_files_of_keys_are_refused_with_a_reason(lines: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(lines, encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        ServerOptions(api_key_file=str(file), api_key=("sesame",), admin_api_key="chief")
    assert "schl" not in str(caught.value) and "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"api_key": ("",)}, "api_key number 1 is no key"),
        ({"api_key": ("a", "with space")}, "api_key number 2 is no key"),
        ({"admin_api_key": "a\n"}, "admin_api_key is no key"),
        ({"api_key_file": "/nowhere/keys"}, "api_key_file is '/nowhere/keys', which cannot be read: No such"),
        ({"cors_allow_origins": ("example.com",)}, "cors_allow_origins is 'example.com'"),
        ({"cors_allow_origins": ("https://example.com/a",)}, "cors_allow_origins is"),
        ({"rate_limit_requests": 0}, "rate_limit_requests is 0"),
        ({"rate_limit_tokens": 1.5}, "rate_limit_tokens is 1.5"),
        ({"max_header_bytes": 10}, "max_header_bytes is 10"),
        ({"receive_timeout": 0}, "receive_timeout is 0"),
        ({"log_format": "xml"}, "log_format is 'xml'; accepted are text, json"),
    ],
)
def test_options_of_the_door_are_refused_with_a_reason(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        ServerOptions(**options)
    assert "with space" not in str(caught.value)
