"""Good, bad and abandoned requests all at once, and the account of pages after them."""

import asyncio
import json
import random
import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema


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
            error = answer.json()["error"]
            assert error if path.startswith("/api/") else error["message"]
            return "refused"
        data["stream"] = rng.random() < 0.5
        if kind == "aborted" and path in NAMED:
            data |= {"rid": f"rid-{seed}", "stream": False}
            task = asyncio.create_task(client.post(path, json=data))
            await asyncio.sleep(rng.random() * self.patience)
            assert (await client.post("/abort_request", json={"rid": data["rid"]})).status_code == 200
            assert (await task).status_code == 200
            return "aborted"
        if kind != "good":
            await leave(client.base_url, path, data, rng.random() * self.patience)
            return "left"
        answer = await client.post(path, json=data)
        assert answer.status_code == 200, answer.text
        if data["stream"]:
            assert STREAM_ENDS.get(path, "data: [DONE]\n\n") in answer.text[-20_000:], answer.text[-500:]
            assert '"error":{' not in answer.text and '"error":"' not in answer.text
        else:
            check_answer(answer.json(), data)
        return "ok"


NAMED = ("/v1/completions", "/v1/chat/completions", "/generate")  # whose requests may bring an id
STREAM_ENDS = {
    "/v1/messages": "event: message_stop\n",
    "/v1/responses": "event: response.",
    "/api/chat": '"done":true',
}


def good(rng: random.Random, most: int) -> tuple[str, dict[str, Any]]:
    """A path and a body that is served, with up to `most` new tokens."""
    path = rng.choice([*NAMED, *NAMED, *STREAM_ENDS])
    text = "shared beginning of many prompts " * rng.randint(1, 6) + str(rng.random())
    n, tokens = rng.choice([1, 1, 1, 3]), rng.randint(1, most)
    heat, held = rng.choice([0, 1]), grammar(rng) if rng.random() < 0.3 else {}
    sampled = {"temperature": heat, "n": n, **held}
    logprobs = rng.random() < 0.3
    messages = [{"role": "user", "content": text}]
    match path:
        case "/generate":
            sampled["max_new_tokens"] = tokens
            return path, {"text": text, "sampling_params": sampled, "return_logprob": logprobs}
        case "/v1/completions":
            several = {"prompt": [text, text[:40]], "logprobs": 2 if logprobs else None}
            if not held:  # of which a stop string would leave a part
                several["stop"] = ["q", "zz"]
            return path, {**several, "max_tokens": tokens, **sampled}
        case "/v1/chat/completions":
            return path, {"messages": messages, "max_tokens": tokens, **sampled, "logprobs": logprobs}
    schema = held.get("json_schema")
    if path == "/v1/messages":
        given = {"output_config": {"format": {"type": "json_schema", "schema": schema}}} if schema else {}
        return path, {"messages": messages, "max_tokens": tokens, "temperature": heat, **given}
    if path == "/api/chat":
        options = {"temperature": heat, "num_predict": tokens}
        return path, {"messages": messages, "options": options, "format": schema or "", "logprobs": logprobs}
    store = rng.random() < 0.5
    return path, {"input": text, "max_output_tokens": tokens, "temperature": heat, "store": store}


def grammar(rng: random.Random) -> dict[str, Any]:
    """A field that holds an output to a grammar: one of many hundred, more than are kept compiled."""
    number = rng.randrange(400)
    item = {"type": "string", "maxLength": rng.randint(1, 20)}
    properties = {
        "name": item,
        "kind": {"enum": ["a", "b", number]},
        "list": {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
    }
    schema = {"type": "object", "properties": properties, "required": ["name", "kind"]}
    return rng.choice(
        [
            {"json_schema": {**schema, "additionalProperties": False}},
            {"regex": rf"(item {number}|[a-f ]{{1,30}})(-\d{{2,9}})*"},
            {"choices": [f"the number {number}", "nothing", "n"]},
        ]
    )


def check_answer(answer: Any, data: dict[str, Any]) -> None:
    """Every output of a whole answer to `data`, of a route whose requests have ids, must match the grammar
    that let it end."""
    given = data.get("sampling_params", data)
    if not any(name in answer for name in ("choices", "meta_info")) and not isinstance(answer, list):
        return
    for each in answer if isinstance(answer, list) else answer.get("choices", [answer]):
        finish = each["meta_info"]["finish_reason"]["type"] if "meta_info" in each else each["finish_reason"]
        if finish != "stop":
            continue
        text = each["message"]["content"] if "message" in each else each["text"]
        if "json_schema" in given:
            jsonschema.validate(json.loads(text), given["json_schema"])
        elif "regex" in given:
            assert re.fullmatch(given["regex"], text), (text, given["regex"])
        elif "choices" in given:
            assert text in given["choices"], (text, given["choices"])


def bad(rng: random.Random, most: int) -> tuple[str, dict[str, Any]]:
    """A path and a body that is refused."""
    path, data = good(rng, most)
    changes: list[dict[str, Any]] = [{"frobnicate": 1}, {"stream": "yes"}]
    if path == "/generate":
        changes += [
            {"text": 5},
            {"rid": ""},
            {"sampling_params": {"regex": "("}},
            {"input_ids": [999_999], "text": None},
            {"text": "x " * 30_000},
        ]
    else:
        changes.append({"model": "another"})
    if path in ("/v1/completions", "/v1/chat/completions"):
        changes += [{"rid": ""}, {"regex": "("}, {"stop": [""]}]
    if path.startswith("/v1"):
        changes.append({"temperature": -1})
    if "messages" in data:
        changes.append({"messages": [{"role": "user", "content": "x " * 30_000}]})
    return path, data | rng.choice(changes)


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
