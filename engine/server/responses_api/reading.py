"""A request of /v1/responses as a chat: its items, and those before it, as messages of a template."""

from collections.abc import Sequence
from typing import Any

from ...errors import RequestError
from ...grammar.grammar import GrammarSpec
from ...text.tools.format import Tools
from ..conversation import Conversation, check_tools
from ..openai_common import need_tokenizer
from ..protocol.base import Body, parse, shorten
from ..protocol.grammar import read_text_format
from ..protocol.tools import callable_tools, read_tool_call, read_tools, strict_tools
from ..state import Server
from .protocol import (
    CallItem,
    CallOutputItem,
    FunctionChoice,
    FunctionTool,
    InputText,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningOptions,
    ReasoningText,
    ResponseBody,
    TextOptions,
)

Message = dict[str, Any]
FORMAT = "text.format"

_ITEMS: dict[str, type[Body]] = {
    "message": MessageItem,
    "function_call": CallItem,
    "function_call_output": CallOutputItem,
    "reasoning": ReasoningItem,
}


def read_conversation(server: Server, body: ResponseBody, messages: Sequence[Message]) -> Conversation:
    """The chat that `body` asks for: its instructions, then `messages`, its own input at their end.

    Raises RequestError naming the field, also for what the model's template cannot do.
    """
    tools, schemas, must_call = _tools(server, body)
    begin = [{"role": "system", "content": body.instructions}] if body.instructions is not None else []
    return Conversation(
        messages=[*begin, *messages],
        tools=tools,
        schemas=schemas,
        variables=_variables(server, body),
        strict=strict_tools(body.tools),
        must_call=must_call,
        parallel=body.parallel_tool_calls and not isinstance(body.tool_choice, dict),
        thinking_budget=body.thinking_budget,
    )


def read_format(body: ResponseBody) -> GrammarSpec | None:
    """What the text has to match. Raises RequestError naming the field."""
    format = parse(TextOptions, body.text or {}, "text").format
    return None if format is None else read_text_format(format, FORMAT)


def read_input(items: str | Sequence[Any], before: Sequence[Message] = ()) -> list[Message]:
    """The messages of an input after those `before`. Raises RequestError naming item and field."""
    messages = list(before)
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    for index, item in enumerate(items):
        _add(messages, item, f"input[{index}]")
    return messages


def _add(messages: list[Message], item: object, path: str) -> None:
    """Add one item; what the model wrote in one go (reasoning, text, calls) is one message."""
    match _parse(item, _ITEMS, path):
        case MessageItem(role="assistant", content=content):
            text = _text(content, {"output_text": OutputText, "input_text": InputText}, f"{path}.content")
            message = _open_answer(messages)
            if message["content"] or "tool_calls" in message:
                messages.append(message := {"role": "assistant", "content": ""})
            message["content"] = text
        case MessageItem(role=role, content=content):
            text = _text(content, {"input_text": InputText}, f"{path}.content")
            messages.append({"role": role, "content": text})
        case ReasoningItem(content=content):
            text = _text(content, {"reasoning_text": ReasoningText}, f"{path}.content")
            if text:
                messages.append({"role": "assistant", "content": "", "reasoning_content": text})
        case CallItem(call_id=call_id, name=name, arguments=arguments):
            call = {"id": call_id, "function": {"name": name, "arguments": arguments}}
            try:
                read = read_tool_call(call, path)
            except RequestError as error:
                raise _renamed(error, ".function", "") from None
            _open_answer(messages).setdefault("tool_calls", []).append(read)
        case CallOutputItem(call_id=call_id, output=output):
            text = _text(output, {"input_text": InputText}, f"{path}.output")
            messages.append({"role": "tool", "tool_call_id": call_id, "content": text})


def _open_answer(messages: list[Message]) -> Message:
    """The last message, if it is the model's; a new one of the model's otherwise."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    else:
        messages[-1] = dict(messages[-1])  # that of an earlier response stays as it was
        if "tool_calls" in messages[-1]:
            messages[-1]["tool_calls"] = list(messages[-1]["tool_calls"])
    return messages[-1]


def _parse(item: object, models: dict[str, type[Body]], path: str) -> Body:
    """`item` as one of `models`, which its type names; without one it is a message, if it has a role."""
    kind = item.get("type") if isinstance(item, dict) else None
    if kind is None:
        is_message = isinstance(item, dict) and "role" in item and "message" in models
        if isinstance(item, dict) and not is_message:
            raise RequestError(f"{path}.type is missing", f"{path}.type")
        return parse(next(iter(models.values())), item, path)
    model = models.get(kind) if isinstance(kind, str) else None
    if model is None:
        known = ", ".join(f'"{each}"' for each in models)
        raise RequestError(
            f"{path}.type is {shorten(kind)}; it is not supported, accepted are {known}", f"{path}.type"
        )
    return parse(model, item, path)


def _text(content: str | list[Any], models: dict[str, type[Body]], path: str) -> str:
    """The text of all parts, joined by newlines."""
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        read = _parse(part, models, f"{path}[{index}]")
        assert isinstance(read, InputText | OutputText | ReasoningText)
        texts.append(read.text)
    return "\n".join(texts)


def _tools(server: Server, body: ResponseBody) -> tuple[list[dict[str, Any]], Tools, bool]:
    functions = []
    for index, item in enumerate(body.tools):
        tool = _parse(item, {"function": FunctionTool}, f"tools[{index}]")
        fields = tool.model_dump(exclude_none=True, exclude={"type"})
        functions.append({"type": "function", "function": fields})
    choice = body.tool_choice
    if isinstance(choice, dict):
        named = parse(FunctionChoice, choice, "tool_choice")
        choice = {"type": "function", "function": {"name": named.name}}
    try:
        tools, schemas = read_tools(functions)
        schemas, must = callable_tools(choice, schemas)
    except RequestError as error:
        raise _renamed(error, ".function", "") from None
    if not schemas:
        return [], {}, False
    check_tools(server, 'tool_choice "none"')
    return tools, schemas, must


def _variables(server: Server, body: ResponseBody) -> dict[str, Any]:
    effort = parse(ReasoningOptions, body.reasoning or {}, "reasoning").effort
    if effort is None:
        return {}
    if not need_tokenizer(server, "input").template_uses("reasoning_effort"):
        raise RequestError(
            f'reasoning.effort is "{effort}"; the model\'s chat template does not take it, accepted is null',
            "reasoning.effort",
        )
    return {"reasoning_effort": effort}


def _renamed(error: RequestError, old: str, new: str) -> RequestError:
    """`error` about the field whose path has `new` in place of `old`."""
    path = (error.field or "").replace(old, new, 1)
    return RequestError(str(error).replace(error.field or "", path, 1), path, error.status)
