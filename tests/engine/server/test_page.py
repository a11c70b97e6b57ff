"""The page and /engine_state without a browser: what is served, to whom, and what it costs."""

import asyncio
import base64
import hashlib
import os
import re
import signal
import time
from typing import Any

import httpx
import pytest

from radixmesh.engine.server.options import ServerOptions
from radixmesh.engine.server.page import EngineView, build_page
from radixmesh.engine.server.state import Server
from radixmesh.engine.snapshot import GroupView, NodeView
from radixmesh.engine.stats import EngineStats

CHAT: dict[str, Any] = {
    "messages": [{"role": "system", "content": "Shared words stand at the beginning."}],
    "temperature": 0,
    "max_tokens": 24,
}


def ask(url: str, text: str) -> None:
    messages = [*CHAT["messages"], {"role": "user", "content": text}]
    assert httpx.post(url + "/v1/chat/completions", json={**CHAT, "messages": messages}).status_code == 200


def state_of(server: Any) -> Any:
    return httpx.get(server.url + "/engine_state").json()


def test_the_page_is_whole_and_nothing_else_may_run_in_it(server: Any) -> None:
    answer = httpx.get(server.url + "/")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag in ("style", "script"):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|style="|\son\w+=|@import|url\(""", answer.text)
    assert set(re.findall(r"https?://[\w.]+", answer.text)) == {"http://www.w3.org"}  # SVG's name
    assert "{style}" not in answer.text and "{script}" not in answer.text


def test_engine_state_shows_the_tree_and_the_pages(start: Any) -> None:
    server = start()
    before = state_of(server)
    assert before["model"] == "fake" and before["prompts_shown"] is True
    assert before["latency"]["ttft"]["count"] == 0 and before["groups"][0]["nodes"] == []
    for text in ("One question.", "Another one, longer than a page."):
        ask(server.url, text)
    time.sleep(0.6)  # looks less than half a second apart see the same
    state = state_of(server)
    (group,) = state["groups"]
    stats = group["stats"]
    assert stats["finished"] == 2 and stats["num_running"] == 0 and group["requests"] == []
    assert stats["free_pages"] + stats["cached_pages"] == stats["num_pages"]
    assert sum(node["tokens"] for node in group["nodes"]) == stats["cached_pages"] * stats["page_size"]
    (trunk,) = [node for node in group["nodes"] if node["parent"] == 0]
    assert "<|im_start|>system\nShared words stand at the beginning." in trunk["text"]
    assert trunk["hits"] == 1 and trunk["children"] == 2 and group["num_prefixes"] == 1
    ttft, itl = state["latency"]["ttft"], state["latency"]["itl"]
    assert ttft["count"] == 2 and 0 < ttft["whole"]["p50"] <= ttft["whole"]["p99"] < 60
    assert 0 < itl["count"] <= stats["generation_tokens"] - 2  # tokens that came at once count once
    assert len(ttft["series"]["p50"]) == state["latency"]["slots"]


def test_running_requests_have_their_names(start: Any) -> None:
    server = start({"context_length": 100_000, "max_total_tokens": 400_000})
    body = {"text": "On and on.", "rid": "mine", "stream": True}
    body["sampling_params"] = {"max_new_tokens": 90_000, "ignore_eos": True, "temperature": 0}
    with httpx.stream("POST", server.url + "/generate", json=body) as answer:
        lines = answer.iter_lines()  # whose end would be the request's
        next(lines)
        (group,) = state_of(server)["groups"]
        (request,) = group["requests"]
    assert request["id"] == "mine" and request["num_prompt_tokens"] == 10
    assert request["num_output_tokens"] > 0 and request["seconds"] > 0


def test_no_ui_turns_both_off(start: Any) -> None:
    server = start(options={"ui": False})
    answer = httpx.get(server.url + "/engine_state")
    assert answer.status_code == 404 and "there is no route" in answer.json()["error"]["message"]
    answer = httpx.get(server.url + "/")  # Ollama's clients ask whether anybody is here
    assert answer.status_code == 200 and answer.text == "radixmesh is running"


@pytest.mark.parametrize("ui", [True, False])
def test_the_ping_of_ollama(start: Any, ui: bool) -> None:
    server = start(options={"ui": ui})
    got, ping = httpx.get(server.url), httpx.head(server.url)
    assert ping.status_code == 200 and not ping.content
    assert ping.headers["content-length"] == got.headers["content-length"]
    assert httpx.post(server.url).status_code == 405


def test_what_others_ask_needs_the_admin_key(start: Any) -> None:
    server = start(options={"api_key": ("users-key",), "admin_api_key": "admins-key"})
    for key, status in (("nobodys", 401), ("users-key", 403), ("admins-key", 200)):
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(server.url + "/engine_state", headers=headers).status_code == status
        assert httpx.get(server.url + "/", headers=headers).status_code == 200
    assert "route=/ status=200" in server.text() and "/engine_state" not in server.text()  # a log of requests


def test_prompts_can_stay_unseen(start: Any) -> None:
    server = start(options={"ui_prompts": False})
    ask(server.url, "A secret.")
    answer = httpx.get(server.url + "/engine_state")
    nodes = answer.json()["groups"][0]["nodes"]
    assert nodes and all(node["text"] is None for node in nodes)
    assert "secret" not in answer.text and "Shared words" not in answer.text


def test_a_dead_engine_is_told(start: Any) -> None:
    server = start()
    os.kill(server.engine().pid, signal.SIGKILL)
    answer = httpx.get(server.url + "/engine_state")
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_dead"


class Watched:
    """Takes AsyncLLM's place: counts how often the engine is asked."""

    tokenizer = None
    alive, heartbeat_age, num_open_requests = True, 0.0, 0
    stats = EngineStats()

    def __init__(self) -> None:
        self.asked = 0
        self.info: Any = type("Info", (), {"name": "x", "context_length": 8})

    async def view(self) -> list[GroupView]:
        self.asked += 1
        await asyncio.sleep(0.05)
        node = NodeView(
            id=1, parent=0, num_tokens=2, token_ids=[5, 6], num_children=0, hits=0, locks=0, idle=0
        )
        group = GroupView(
            stats=EngineStats(), max_running=1, step_tokens=1, num_prefixes=1, requests=[], nodes=[node]
        )
        return [group] * 2


def test_many_who_look_ask_the_engine_once() -> None:
    llm: Any = Watched()

    async def main() -> list[dict[str, Any]]:
        view = EngineView(Server(llm, ServerOptions()))
        impatient = asyncio.create_task(view.state())
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(view.state()) for _ in range(50)]
        await asyncio.sleep(0.01)
        impatient.cancel()
        return await asyncio.gather(*others)

    states = asyncio.run(main())
    assert llm.asked == 1 and len(states) == 50
    assert len(states[0]["groups"]) == 2  # one beside another
    assert states[0]["groups"][0]["nodes"][0]["text"] == "5 6"  # without a tokenizer the ids


def test_every_file_of_the_page_is_in_it() -> None:
    text, _ = build_page()
    for start in ("function el(", "class Writer", "class Tree", "class Group", "function startTheme"):
        assert text.count(start) == 1


@pytest.mark.parametrize("name", ["ui", "ui_prompts"])
def test_both_options_have_a_flag(name: str) -> None:
    import argparse

    from radixmesh.engine.cli.options import add_options, flag_of, read_options

    parser = argparse.ArgumentParser()
    add_options(parser, ServerOptions)
    given = parser.parse_args([flag_of(name).replace("--", "--no-", 1)])
    assert read_options(given, ServerOptions) == {name: False}
