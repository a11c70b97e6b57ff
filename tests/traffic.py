"""Good, bad and abandoned requests all at once, and the account of pages after them."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Traffic:
    """`count` requests to a server, at most `concurrent` at a time, each of up to `tokens` new tokens."""

    url: str
    count: int = 1000
    concurrent: int = 48
    tokens: int = 60
    patience: float = 0.05  # seconds until a client leaves or aborts, at most
    timeout: float = 120.0  # seconds for one answer
    first_seed: int = 0  # other requests for another

    def run(self) -> Counter[str]:
        """Send all; how many were ok, refused, left and aborted."""
        return asyncio.run(self._send_all())

    @property
    def _seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.count)

    async def _send_all(self) -> Counter[str]:
        limits = httpx.Limits(max_connections=2 * self.concurrent)
        gate = asyncio.Semaphore(self.concurrent)
        async with httpx.AsyncClient(base_url=self.url, limits=limits, timeout=self.timeout) as client:

            async def one(seed: int) -> str:
                async with gate:
                    return await self._send(client, seed)

            return Counter(await asyncio.gather(*(one(seed) for seed in self._seeds)))

    async def _send(self, client: httpx.AsyncClient, seed: int) -> str:
        """Send one request; what became of it."""
        rng = random.Random(seed)
        kind = rng.choice(["good", "good", "bad", "left", "aborted"])
        path, data = (bad if kind == "bad" else good)(rng, self.tokens)
        if kind == "bad":
            answer = await client.post(path, json=data)
            assert 400 <= answer.status_code < 500, answer.text
            assert answer.json()["error"]["message"]
            return "refused"
        stream = rng.random() < 0.5
        if kind == "aborted":
            data["rid"] = f"rid-{seed}"
            task = asyncio.create_task(client.post(path, json=data))
            await asyncio.sleep(rng.random() * self.patience)
            assert (await client.post("/abort_request", json={"rid": data["rid"]})).status_code == 200
            assert (await task).status_code == 200
            return "aborted"
        if kind == "left":
            await leave(client.base_url, path, {**data, "stream": stream}, rng.random() * self.patience)
            return "left"
        answer = await client.post(path, json={**data, "stream": stream})
        assert answer.status_code == 200, answer.text
        assert '"error"' not in answer.text
        assert answer.text.endswith("data: [DONE]\n\n") if stream else answer.json()
        return "ok"


def good(rng: random.Random, most: int) -> tuple[str, dict[str, Any]]:
    """A path and a body that is served, with up to `most` new tokens."""
    path = rng.choice(["/v1/completions", "/v1/chat/completions", "/generate"])
    text = "shared beginning of many prompts " * rng.randint(1, 6) + str(rng.random())
    n, tokens = rng.choice([1, 1, 1, 3]), rng.randint(1, most)
    sampled = {"temperature": rng.choice([0, 1]), "n": n}
    logprobs = rng.random() < 0.3
    if path == "/generate":
        sampled["max_new_tokens"] = tokens
        return path, {"text": text, "sampling_params": sampled, "return_logprob": logprobs}
    if path == "/v1/completions":
        several = {"prompt": [text, text[:40]], "stop": ["q", "zz"], "logprobs": 2 if logprobs else None}
        return path, {**several, "max_tokens": tokens, **sampled}
    messages = [{"role": "user", "content": text}]
    return path, {"messages": messages, "max_tokens": tokens, **sampled, "logprobs": logprobs}


def bad(rng: random.Random, most: int) -> tuple[str, dict[str, Any]]:
    """A path and a body that is refused."""
    path, data = good(rng, most)
    return path, data | rng.choice(
        [
            {"model": "another"} if path != "/generate" else {"text": 5},
            {"frobnicate": 1},
            {"stream": "yes"},
            {"rid": ""},
            {"input_ids": [999_999], "text": None} if path == "/generate" else {"temperature": -1},
            {"text": "x " * 30_000} if path == "/generate" else {"stop": [""]},
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


def settled_stats(url: str, seconds: float = 20) -> dict[str, Any]:
    """The server's statistics once nothing runs or waits; every page must be free or cached then."""
    deadline = time.monotonic() + seconds
    while True:
        info = httpx.get(url + "/server_info", timeout=30).json()
        stats: dict[str, Any] = info["stats"]
        if not (info["num_open_requests"] or stats["num_running"] or stats["num_waiting"]):
            break
        assert time.monotonic() < deadline, info
        time.sleep(0.1)
    assert stats["free_pages"] + stats["cached_pages"] + stats["used_pages"] == stats["num_pages"]
    assert stats["used_pages"] == 0 and stats["evictable_pages"] == stats["cached_pages"]
    assert stats["integrity_violations"] == stats["step_failures"] == stats["errors"] == 0
    return stats
