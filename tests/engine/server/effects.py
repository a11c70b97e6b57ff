"""For every body of every route: where it stands, and for each field a value whose effect is seen.

A route that is added needs its bodies here, a field that is added its value: test_fields.py walks the
OpenAPI document and misses what is not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Effect:
    """`value` of a field, which is seen in an answer of `status`, or in what is asked of the engine."""

    value: Any
    beside: Object = field(default_factory=dict)  # other fields, there with and without this one
    base: Object | None = None  # the body without it, where that is not the smallest
    status: int = 200


@dataclass(frozen=True)
class Place:
    """Where a body stands: as the whole body of `route`, or at `path` in it."""

    route: str
    smallest: Object  # the least that is accepted there
    effects: dict[str, Any]  # field -> value, or Effect
    path: str = ""
    put: Callable[[Object], Object] = lambda body: body  # the route's body with this one in it


TOOLS = [{"type": "function", "function": {"name": name}} for name in ("now", "where")]
HI = [{"role": "user", "content": "Hi"}]
CALL = {"id": "call_0", "type": "function", "function": {"name": "now", "arguments": "{}"}}
STREAM = {"stream": True}

COMMON: dict[str, Any] = {  # to all routes
    "n": 2,
    "temperature": 0.25,
    "top_p": 0.5,
    "frequency_penalty": -1.5,
    "presence_penalty": 1.5,
    "logit_bias": {"5": -100},
    "stop": "b",
    "top_k": 7,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "stop_token_ids": [4, 5],
    "ignore_eos": True,
    "skip_special_tokens": False,
    "no_stop_trim": True,
    "json_schema": {"type": "integer"},
    "regex": "a+",
    "ebnf": 'root ::= "a"',
    "choices": ["a", "b"],
    "structural_tag": {"structures": [], "triggers": []},
}
SAMPLING: dict[str, Any] = COMMON | {  # to OpenAI's
    "model": Effect("other", status=404),
    "stream": True,
    "stream_options": Effect({"include_usage": True}, STREAM),
    "seed": 3,
    "min_tokens": 2,
    "priority": 3,
    "cache_salt": "salt",
    "extra_key": "key",
    "rid": "mine",
    "response_format": {"type": "json_object"},
    "guided_json": {"type": "integer"},
    "guided_regex": "a+",
    "guided_choice": ["a", "b"],
    "guided_grammar": 'root ::= "a"',
    "structured_outputs": {"json_object": True},
}


RERANK: Object = {"query": "a", "documents": ["b", "c"]}
RESPONSES = "/v1/responses"
FLAT = {"type": "function", "name": "now"}
FLAT_CALL = {"type": "function_call", "call_id": "call_0", "name": "now", "arguments": "{}"}


def item(item: Object) -> Object:
    return {"input": [item]}


def in_message(content: Object) -> Object:
    return {"messages": [{"role": "user", "content": [content]}]}


def in_answer(call: Object) -> Object:
    return {"messages": [{"role": "assistant", "tool_calls": [call]}]}


PLACES: dict[str, Place] = {
    "CompletionBody": Place(
        "/v1/completions",
        {"prompt": "a"},
        SAMPLING
        | {
            "prompt": "b",
            "max_tokens": 3,
            "logprobs": 2,
            "prompt_logprobs": 2,
            "best_of": 2,
            "echo": True,
            "suffix": Effect("c", status=400),  # the tokenizer has no tokens for it; test_fim.py shows it
        },
    ),
    "StreamOptions": Place(
        "/v1/completions",
        {},
        {"include_usage": True, "continuous_usage_stats": True},
        "stream_options",
        lambda body: {"prompt": "a", "stream": True, "stream_options": body},
    ),
    "ChatBody": Place(
        "/v1/chat/completions",
        {"messages": HI},
        SAMPLING
        | {
            "messages": [{"role": "user", "content": "Ho"}],
            "max_tokens": 3,
            "max_completion_tokens": 3,
            "logprobs": True,
            "prompt_logprobs": 2,
            "top_logprobs": Effect(2, {"logprobs": True}),
            "chat_template_kwargs": {"opening": "So"},
            "add_generation_prompt": False,
            "continue_final_message": True,
            "tools": TOOLS,
            "tool_choice": Effect("none", {"tools": TOOLS}),
            "parallel_tool_calls": Effect(False, {"tools": TOOLS}),
            "reasoning_effort": "low",
            "thinking_budget": 30,
            "thinking_token_budget": 30,
            "separate_reasoning": False,
            "stream_reasoning": Effect(False, STREAM),
        },
    ),
    "Message": Place(
        "/v1/chat/completions",
        {"role": "user", "content": "Hi"},
        {
            "role": "system",
            "content": "Ho",
            "name": "Ann",
            "tool_call_id": "call_1",
            "tool_calls": Effect([CALL], {"role": "assistant"}),
            "reasoning_content": "hm",
            "prefix": Effect(True, {"role": "assistant"}),
        },
        "messages[0]",
        lambda message: {"messages": [message]},
    ),
    "TextPart": Place(
        "/v1/chat/completions",
        {"type": "text", "text": "Hi"},
        {"type": Effect("image_url", status=400), "text": "Ho"},
        "messages[0].content[0]",
        in_message,
    ),
    "ToolCall": Place(
        "/v1/chat/completions",
        CALL,
        {
            "id": "call_1",
            "type": Effect("custom", status=400),
            "function": {"name": "where", "arguments": "{}"},
        },
        "messages[0].tool_calls[0]",
        in_answer,
    ),
    "FunctionCall": Place(
        "/v1/chat/completions",
        {"name": "now"},
        {"name": "where", "arguments": '{"zone": 1}'},
        "messages[0].tool_calls[0].function",
        lambda function: in_answer({"function": function}),
    ),
    "Tool": Place(
        "/v1/chat/completions",
        {"type": "function", "function": {"name": "f"}},
        {"type": Effect("web_search", status=400), "function": {"name": "g"}},
        "tools[0]",
        lambda tool: {"messages": HI, "tools": [tool]},
    ),
    "Function": Place(
        "/v1/chat/completions",
        {"name": "f"},
        {"name": "g", "description": "What f does", "parameters": {"type": "object"}, "strict": True},
        "tools[0].function",
        lambda function: {"messages": HI, "tools": [{"type": "function", "function": function}]},
    ),
    "EmbeddingBody": Place(
        "/v1/embeddings",
        {"input": "a"},
        {
            "model": Effect("other", status=404),
            "input": "b",
            "encoding_format": "base64",
            "dimensions": 2,
        },
    ),
    "ScoreBody": Place(
        "/score",
        {"query": "a", "items": ["b"], "label_token_ids": [1]},
        {
            "model": Effect("other", status=404),
            "query": "b",
            "items": ["c", "d"],
            "label_token_ids": [1, 2],
            "apply_softmax": True,
            "item_first": True,
        },
    ),
    "RerankBody": Place(
        "/rerank",
        RERANK,
        {
            "model": Effect("other", status=404),
            "query": "b",
            "documents": ["c"],
            "top_n": 1,
            "return_documents": False,
            "instruct": "Look.",
        },
    ),
    "RerankDocument": Place(
        "/rerank",
        {"text": "b"},
        {"text": "c"},
        "documents[0]",
        lambda document: {"query": "a", "documents": [document]},
    ),
    "GenerateBody": Place(
        "/generate",
        {"text": "a"},
        {
            "text": "b",
            "input_ids": Effect([2], base={"input_ids": [1]}),
            "sampling_params": {"max_new_tokens": 3},
            "stream": True,
            "return_logprob": True,
            "top_logprobs_num": Effect(2, {"return_logprob": True}),
            "logprob_start_len": Effect(0, {"return_logprob": True}),
            "token_ids_logprob": Effect([5, 6], {"return_logprob": True}),
            "return_text_in_logprobs": Effect(True, {"return_logprob": True}),
            "rid": "mine",
            "priority": 3,
            "extra_key": "key",
        },
    ),
    "GenerateSampling": Place(
        "/generate",
        {},
        COMMON | {"max_new_tokens": 3, "min_new_tokens": 2, "sampling_seed": 3},
        "sampling_params",
        lambda body: {"text": "a", "sampling_params": body},
    ),
    "TokenizeBody": Place(
        "/tokenize",
        {"prompt": "a"},
        {
            "prompt": "b",
            "messages": Effect([{"role": "user", "content": "Ho"}], base={"messages": HI}),
            "model": Effect("other", status=404),
            "add_special_tokens": Effect(True, base={"messages": HI}, status=400),
            "add_generation_prompt": Effect(False, base={"messages": HI}),
            "chat_template_kwargs": Effect({"opening": "So"}, base={"messages": HI}),
        },
    ),
    "DetokenizeBody": Place(
        "/detokenize",
        {"tokens": [97]},
        {
            "tokens": [98],
            "model": Effect("other", status=404),
            "skip_special_tokens": Effect(False, base={"tokens": [97, 257]}),
        },
    ),
    "AbortBody": Place(
        "/abort_request",
        {"rid": "a"},
        {"rid": "b", "abort_all": Effect(True, base={})},
    ),
    "ResponseBody": Place(
        RESPONSES,
        {"input": "Hi"},
        {
            "input": "Ho",
            "model": Effect("other", status=404),
            "instructions": "Be brief.",
            "previous_response_id": Effect("resp_0", status=400),
            "stream": True,
            "background": True,
            "store": False,
            "include": ["message.output_text.logprobs"],
            "max_output_tokens": 3,
            "temperature": 0.25,
            "top_p": 0.5,
            "top_logprobs": Effect(2, {"include": ["message.output_text.logprobs"]}),
            "tools": [FLAT],
            "tool_choice": Effect("none", {"tools": [FLAT]}),
            "parallel_tool_calls": False,
            "reasoning": {"effort": "low"},
            "text": {"format": {"type": "json_object"}},
            "metadata": {"topic": "greeting"},
            "seed": 3,
            "top_k": 7,
            "min_p": 0.1,
            "ignore_eos": True,
            "thinking_budget": 30,
            "priority": 3,
            "cache_salt": "salt",
        },
    ),
    "MessageItem": Place(
        RESPONSES,
        {"role": "user", "content": "Hi"},
        {"type": Effect("item_reference", status=400), "role": "system", "content": "Ho"},
        "input[0]",
        item,
    ),
    "InputText": Place(
        RESPONSES,
        {"type": "input_text", "text": "Hi"},
        {"type": Effect("input_image", status=400), "text": "Ho"},
        "input[0].content[0]",
        lambda part: item({"role": "user", "content": [part]}),
    ),
    "OutputText": Place(
        RESPONSES,
        {"type": "output_text", "text": "Hi"},
        {"type": Effect("refusal", status=400), "text": "Ho"},
        "input[0].content[0]",
        lambda part: item({"role": "assistant", "content": [part]}),
    ),
    "CallItem": Place(
        RESPONSES,
        FLAT_CALL,
        {
            "type": Effect("computer_call", status=400),
            "call_id": "call_1",
            "name": "where",
            "arguments": '{"zone": 1}',
        },
        "input[0]",
        item,
    ),
    "CallOutputItem": Place(
        RESPONSES,
        {"type": "function_call_output", "call_id": "call_0", "output": "noon"},
        {"type": Effect("computer_call_output", status=400), "call_id": "call_1", "output": "night"},
        "input[0]",
        item,
    ),
    "ReasoningItem": Place(
        RESPONSES,
        {"type": "reasoning"},
        {
            "type": Effect("compaction", status=400),
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        "input[0]",
        lambda reasoning: {"input": [reasoning, {"role": "user", "content": "Hi"}]},
    ),
    "ReasoningText": Place(
        RESPONSES,
        {"type": "reasoning_text", "text": "hm"},
        {"type": Effect("summary_text", status=400), "text": "so"},
        "input[0].content[0]",
        lambda text: item({"type": "reasoning", "content": [text]}),
    ),
    "FunctionTool": Place(
        RESPONSES,
        {"type": "function", "name": "f"},
        {
            "type": Effect("web_search", status=400),
            "name": "g",
            "description": "What f does",
            "parameters": {"type": "object"},
            "strict": True,
        },
        "tools[0]",
        lambda tool: {"input": "Hi", "tools": [tool]},
    ),
    "TextOptions": Place(
        RESPONSES, {}, {"format": {"type": "json_object"}}, "text", lambda text: {"input": "Hi", "text": text}
    ),
    "ReasoningOptions": Place(
        RESPONSES, {}, {"effort": "low"}, "reasoning", lambda options: {"input": "Hi", "reasoning": options}
    ),
}
