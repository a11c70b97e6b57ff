"""A thousand good, bad and abandoned requests at once; then every page is accounted for."""

import asyncio
import json
import random
import time
from typing import Any

import httpx
import pytest

COUNT = 1000
CONCURRENT = 48


def good(rng: random.Random) -> tuple[str, dict[str, Any]]:
    path = rng.choice(["/v1/completions", "/v1/chat/completions", "/generate"])
    text = "shared beginning of many prompts " * rng.randint(1, 6) + str(rng.random())
    n, tokens = rng.choice([1, 1, 1, 3]), rng.randint(1, 60)
    sampled = {"temperature": rng.choice([0, 1]), "n": n}
    if path == "/generate":
        return path, {"text": text, "sampling_params": {**sampled, "max_new_tokens": tokens}}
    if path == "/v1/completions":
        return path, {"prompt": [text, text[:40]], "max_tokens": tokens, **sampled, "stop": ["q", "zz"]}
    return path, {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, **sampled}


def bad(rng: random.Random) -> tuple[str, dict[str, Any]]:
    path, data = good(rng)
    return path, data | rng.choice(
        [
            {"model": "another"} if path != "/generate" else {"text": 5},
            {"frobnicate": 1},
            {"stream": "yes"},
            {"rid": ""},
            {"input_ids": [9999], "text": None} if path == "/generate" else {"temperature": -1},
            {"text": "x" * 3000} if path == "/generate" else {"stop": [""]},
        ]
    )


async def leave(url: httpx.URL, path: str, data: dict[str, Any], seconds: float) -> None:
    """Send a request and close the connection `seconds` later, whatever has come."""
    body = json.dumps(data).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await asyncio.sleep(seconds)
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def send(client: httpx.AsyncClient, seed: int) -> str:
    """Send one request; what became of it: ok, refused, left or aborted."""
    rng = random.Random(seed)
    kind = rng.choice(["good", "good", "bad", "left", "aborted"])
    path, data = (bad if kind == "bad" else good)(rng)
    if kind == "bad":
        answer = await client.post(path, json=data)
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["error"]["message"]
        return "refused"
    stream = rng.random() < 0.5
    if kind == "aborted":
        data["rid"] = f"rid-{seed}"
        task = asyncio.create_task(client.post(path, json=data))
        await asyncio.sleep(rng.random() * 0.05)
        assert (await client.post("/abort_request", json={"rid": data["rid"]})).status_code == 200
        assert (await task).status_code == 200
        return "aborted"
    if kind == "left":
        await leave(client.base_url, path, {**data, "stream": stream}, rng.random() * 0.05)
        return "left"
    answer = await client.post(path, json={**data, "stream": stream})
    assert answer.status_code == 200, answer.text
    assert '"error"' not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n") if stream else answer.json()
    return "ok"


@pytest.mark.slow
def test_a_thousand_mixed_requests_leave_nothing_behind(start: Any) -> None:
    # A pool so small that requests are preempted, and the cache evicted.
    server = start({"context_length": 1024, "max_total_tokens": 1024, "max_running_requests": 16})

    async def all_of_them() -> list[str]:
        limits = httpx.Limits(max_connections=2 * CONCURRENT)
        gate = asyncio.Semaphore(CONCURRENT)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=120) as client:

            async def one(seed: int) -> str:
                async with gate:
                    return await send(client, seed)

            return await asyncio.gather(*(one(seed) for seed in range(COUNT)))

    outcomes = asyncio.run(all_of_them())
    assert {kind: outcomes.count(kind) > 100 for kind in set(outcomes)} == dict.fromkeys(
        ["ok", "refused", "left", "aborted"], True
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        info = httpx.get(server.url + "/server_info").json()
        stats = info["stats"]
        if not (info["num_open_requests"] or stats["num_running"] or stats["num_waiting"]):
            break
        time.sleep(0.1)
    assert info["num_open_requests"] == stats["num_running"] == stats["num_waiting"] == 0
    assert stats["free_pages"] + stats["cached_pages"] + stats["used_pages"] == stats["num_pages"] == 64
    assert stats["used_pages"] == 0 and stats["evictable_pages"] == stats["cached_pages"]
    assert stats["integrity_violations"] == stats["step_failures"] == stats["errors"] == 0
    assert stats["preemptions"] > 0 and stats["aborted"] > 0 and stats["cached_tokens"] > 0
    assert httpx.get(server.url + "/health_generate").status_code == 200
    # Now that nothing runs, the cache gives every page back.
    assert httpx.post(server.url + "/flush_cache").status_code == 200
    assert "Traceback" not in server.text()
