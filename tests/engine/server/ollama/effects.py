"""As tests/engine/server/effects.py, for the bodies of Ollama's routes."""

from typing import Any

from tests.engine.server.effects import CALL, HI, TOOLS, Effect, Object, Place

COMMON: dict[str, Any] = {  # to both routes
    "model": Effect("other", status=404),
    "stream": False,
    "options": {"num_predict": 3},
    "think": False,
    "format": "json",
    "logprobs": True,
    "top_logprobs": Effect(2, {"logprobs": True}),
}


def in_answer(call: Object) -> Object:
    return {"messages": [{"role": "assistant", "content": "Hi", "tool_calls": [call]}, *HI]}


PLACES: dict[str, Place] = {
    "OllamaGenerateBody": Place(
        "/api/generate",
        {"prompt": "Hi"},
        COMMON | {"prompt": "Ho", "system": "Be brief", "raw": True},
    ),
    "OllamaChatBody": Place(
        "/api/chat",
        {"messages": HI},
        COMMON | {"messages": [{"role": "user", "content": "Ho"}], "tools": TOOLS},
    ),
    "OllamaOptions": Place(
        "/api/chat",
        {},
        {
            "temperature": 0.25,
            "top_k": 7,
            "top_p": 0.5,
            "min_p": 0.1,
            "repeat_penalty": 1.2,
            "presence_penalty": 1.5,
            "frequency_penalty": -1.5,
            "seed": 3,
            "num_predict": 3,
            "num_ctx": 200,
            "stop": "b",
        },
        "options",
        lambda options: {"messages": HI, "options": options},
    ),
    "OllamaMessage": Place(
        "/api/chat",
        {"role": "user", "content": "Hi"},
        {
            "role": "system",
            "content": "Ho",
            "thinking": "hm",
            "tool_calls": [CALL | {"function": {"name": "now"}}],
            "tool_name": "now",
            "tool_call_id": "a",
        },
        "messages[0]",
        lambda message: {"messages": [message]},
    ),
    "OllamaCall": Place(
        "/api/chat",
        {"function": {"name": "now"}},
        {"id": "a", "type": Effect("custom", status=400), "function": {"name": "where"}},
        "messages[0].tool_calls[0]",
        in_answer,
    ),
    "OllamaFunction": Place(
        "/api/chat",
        {"name": "now"},
        {"name": "where", "arguments": {"zone": 1}},
        "messages[0].tool_calls[0].function",
        lambda function: in_answer({"function": function}),
    ),
    "ShowBody": Place(
        "/api/show",
        {"model": "fake"},
        {"model": Effect("other", status=404), "name": Effect("other", base={}, status=404)},
    ),
}
