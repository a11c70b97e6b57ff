"""As tests/engine/server/effects.py, for the bodies of /v1/messages."""

from typing import Any

from tests.engine.server.effects import Effect, Object, Place

ROUTE = "/v1/messages"
HI = [{"role": "user", "content": "Hi"}]
TOOLS: list[Object] = [{"name": name, "input_schema": {}} for name in ("now", "where")]
CALL = {"type": "tool_use", "id": "a", "name": "now", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a"}

PROMPT: dict[str, Any] = {  # to both routes
    "model": Effect("other", status=404),
    "messages": [{"role": "user", "content": "Ho"}],
    "system": "Be brief",
    "tools": TOOLS,
    "tool_choice": Effect({"type": "none"}, {"tools": TOOLS}),
    "thinking": {"type": "disabled"},
    "output_config": {"effort": "low"},
}


def body(**fields: Any) -> Object:
    return {"max_tokens": 1000, "messages": HI, **fields}


def blocks(role: str, *content: Object) -> Object:
    return body(messages=[*HI, {"role": role, "content": list(content)}])


def result(block: Object) -> Object:
    """A result of one of two calls."""
    calls = {"role": "assistant", "content": [CALL, {**CALL, "id": "b"}]}
    return body(messages=[*HI, calls, {"role": "user", "content": [block]}])


PLACES: dict[str, Place] = {
    "MessagesBody": Place(
        ROUTE,
        body(),
        PROMPT
        | {
            "max_tokens": 3,
            "stream": True,
            "stop_sequences": ["b"],
            "temperature": 0.25,
            "top_k": 7,
            "top_p": 0.5,
        },
    ),
    "CountTokensBody": Place(
        "/v1/messages/count_tokens",
        {"messages": HI},
        PROMPT | {"messages": [{"role": "user", "content": "longer"}]},
    ),
    "Turn": Place(
        ROUTE,
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "Ho"},
        "messages[0]",
        lambda turn: body(messages=[turn]),
    ),
    "TextBlock": Place(
        ROUTE,
        {"type": "text", "text": "Hi"},
        {"type": Effect("image", status=400), "text": "Ho"},
        "messages[1].content[0]",
        lambda block: blocks("user", block),
    ),
    "ThinkingBlock": Place(
        ROUTE,
        {"type": "thinking", "thinking": "hm"},
        {"type": Effect("redacted_thinking", status=400), "thinking": "ah"},
        "messages[1].content[0]",
        lambda block: blocks("assistant", block, {"type": "text", "text": "Hi"}),
    ),
    "ToolUseBlock": Place(
        ROUTE,
        CALL,
        {"type": Effect("server_tool_use", status=400), "id": "b", "name": "where", "input": {"zone": 1}},
        "messages[0].content[0]",
        lambda block: body(messages=[{"role": "assistant", "content": [block]}, *HI]),
    ),
    "ToolResultBlock": Place(
        ROUTE,
        RESULT,
        {
            "type": Effect("web_search_tool_result", status=400),
            "tool_use_id": "b",
            "content": "noon",
            "is_error": True,
        },
        "messages[2].content[0]",
        result,
    ),
    "ToolDefinition": Place(
        ROUTE,
        {"name": "f", "input_schema": {}},
        {
            "name": "g",
            "input_schema": {"type": "object"},
            "description": "What f does",
            "type": Effect("bash_20250124", status=400),
            "strict": True,
        },
        "tools[0]",
        lambda tool: body(tools=[tool]),
    ),
    "ToolChoice": Place(
        ROUTE,
        {"type": "auto"},
        {
            "type": "none",
            "name": Effect("now", status=400),  # of a choice that must be made, which is refused
            "disable_parallel_tool_use": True,
        },
        "tool_choice",
        lambda choice: body(tools=TOOLS, tool_choice=choice),
    ),
    "Thinking": Place(
        ROUTE,
        {"type": "enabled"},
        {"type": "disabled", "budget_tokens": 2048},
        "thinking",
        lambda thinking: body(thinking=thinking),
    ),
    "OutputConfig": Place(
        ROUTE,
        {},
        {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "output_config",
        lambda config: body(output_config=config),
    ),
}
