"""From Anthropic's requests to what a chat template takes."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from ...errors import RequestError
from ...grammar.given import spec_of
from ...grammar.grammar import GrammarSpec
from ...text.tools.format import Tools
from ..conversation import Conversation, check_tools
from ..openai_common import need_tokenizer
from ..protocol.base import Body, parse, shorten
from ..protocol.tools import Schemas, callable_tools, read_tools, strict_tools
from ..state import Server
from ..thinking import effort_variables, thinking_variables
from .protocol import (
    CountTokensBody,
    OutputConfig,
    TextBlock,
    Thinking,
    ThinkingBlock,
    ToolChoice,
    ToolDefinition,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)

_BLOCKS: dict[str, dict[str, type[Body]]] = {  # role -> what its messages are made of, by type
    "user": {"text": TextBlock, "tool_result": ToolResultBlock},
    "assistant": {"text": TextBlock, "thinking": ThinkingBlock, "tool_use": ToolUseBlock},
    "system": {"text": TextBlock},
}


def read_conversation(server: Server, body: CountTokensBody) -> Conversation:
    """What `body` asks. Raises RequestError naming the field, or the content block."""
    choice = (
        parse(ToolChoice, body.tool_choice, "tool_choice") if body.tool_choice else ToolChoice(type="auto")
    )
    tools, schemas, must_call = _tools(server, body, choice)
    messages = _messages(server, body)
    goes_on = messages[-1]["role"] == "assistant"
    return Conversation(
        messages=messages,
        opens_answer=not goes_on,
        continues=goes_on,
        tools=tools,
        schemas=schemas,
        variables=_variables(server, body),
        strict=strict_tools(body.tools),
        must_call=must_call,
        parallel=not choice.disable_parallel_tool_use and choice.type != "tool",
        thinking_budget=_budget(body),
        budget_field="thinking.budget_tokens",
    )


def read_format(body: CountTokensBody) -> GrammarSpec | None:
    """What the answer has to match, if anything. Raises RequestError naming the field."""
    given = parse(OutputConfig, body.output_config or {}, "output_config").format
    if given is None:
        return None
    path = "output_config.format"
    for name in given.keys() - {"type", "schema"}:
        raise RequestError(f"{path}.{name} is not known; accepted are type and schema", f"{path}.{name}")
    if given.get("type") != "json_schema":
        raise RequestError(
            f'{path}.type is {shorten(given.get("type"))}; accepted is "json_schema"', f"{path}.type"
        )
    if not isinstance(given.get("schema"), dict):
        raise RequestError(
            f"{path}.schema is {shorten(given.get('schema'))}; accepted is a JSON schema, which is an object",
            f"{path}.schema",
        )
    return spec_of("json_schema", given["schema"])


def _messages(server: Server, body: CountTokensBody) -> list[dict[str, Any]]:
    turns = [_read_turn(item, f"messages[{index}]") for index, item in enumerate(body.messages)]
    system = _text(body.system, "system")
    messages = [{"role": "system", "content": system}] if system else []
    names: dict[str, str] = {}  # of the calls so far, by id
    for role, group in groupby(turns, key=lambda turn: turn[0]):  # neighbours of one role are one turn
        blocks = [block for _, blocks in group for block in blocks]
        if role == "assistant":
            messages.append(_answer(blocks, names))
        else:
            messages += _told(role, blocks, names)
    if names and not need_tokenizer(server, "messages").template_uses("tool_calls"):
        raise RequestError(
            "messages has tool_use blocks; the model's chat template takes no calls of tools", "messages"
        )
    return messages


def _read_turn(item: object, path: str) -> tuple[str, list[tuple[str, Body]]]:
    """The role, and each content block with its path."""
    turn = parse(Turn, item, path)
    if not turn.content and not isinstance(turn.content, str) and turn.role != "assistant":
        raise RequestError(
            f"{path}.content is empty; accepted is a text, or a list of at least one content block",
            f"{path}.content",
        )
    return turn.role, _read_blocks(turn.content, f"{path}.content", _BLOCKS[turn.role])


def _read_blocks(
    content: str | Sequence[Any], path: str, kinds: dict[str, type[Body]]
) -> list[tuple[str, Body]]:
    if isinstance(content, str):
        return [(path, TextBlock(type="text", text=content))]
    blocks: list[tuple[str, Body]] = []
    for index, item in enumerate(content):
        where = f"{path}[{index}]"
        kind = item.get("type") if isinstance(item, dict) else "text"
        if not isinstance(kind, str) or kind not in kinds:
            known = ", ".join(f'"{each}"' for each in kinds)
            raise RequestError(
                f"{where}.type is {shorten(kind)}; this model reads text, accepted here is {known}",
                f"{where}.type",
            )
        blocks.append((where, parse(kinds[kind], item, where)))
    return blocks


def _text(content: str | Sequence[Any], path: str) -> str:
    """The text of text blocks alone, joined by newlines."""
    blocks = _read_blocks(content, path, {"text": TextBlock})
    return "\n".join(block.text for _, block in blocks if isinstance(block, TextBlock))


def _answer(blocks: Sequence[tuple[str, Body]], names: dict[str, str]) -> dict[str, Any]:
    """One message of the model; its calls are added to `names`."""
    texts, thoughts, calls = [], [], []
    for _, block in blocks:
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThinkingBlock():
                thoughts.append(block.thinking)
            case ToolUseBlock():
                names[block.id] = block.name
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _told(role: str, blocks: Sequence[tuple[str, Body]], names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Messages to the model: what calls brought, and texts; neighbouring texts are one message."""
    for is_result, group in groupby(blocks, key=lambda each: isinstance(each[1], ToolResultBlock)):
        if not is_result:
            texts = (block.text for _, block in group if isinstance(block, TextBlock))
            yield {"role": role, "content": "\n".join(texts)}
            continue
        for path, block in group:
            assert isinstance(block, ToolResultBlock)
            if block.tool_use_id not in names:
                raise RequestError(
                    f"{path}.tool_use_id is {shorten(block.tool_use_id)}; accepted is the id of a tool_use"
                    " block before it",
                    f"{path}.tool_use_id",
                )
            text = _text(block.content, f"{path}.content")
            yield {
                "role": "tool",
                "tool_call_id": block.tool_use_id,
                "name": names[block.tool_use_id],
                "content": f"Error: {text}" if block.is_error else text,
            }


def _tools(
    server: Server, body: CountTokensBody, choice: ToolChoice
) -> tuple[list[dict[str, Any]], Tools, bool]:
    functions = []
    for index, item in enumerate(body.tools):
        tool = parse(ToolDefinition, item, f"tools[{index}]")
        described = {} if tool.description is None else {"description": tool.description}
        function = {"name": tool.name, **described, "parameters": tool.input_schema}
        functions.append({"type": "function", "function": function})
    try:
        tools, schemas = read_tools(functions)
    except RequestError as error:
        path = (error.field or "").replace(".function.parameters", ".input_schema").replace(".function", "")
        raise RequestError(str(error).replace(error.field or "", path, 1), path) from None
    schemas, must = _callable_tools(choice, schemas)
    if not schemas:
        return [], {}, False
    check_tools(server, 'tool_choice {"type": "none"}')
    return tools, schemas, must


def _callable_tools(choice: ToolChoice, schemas: Schemas) -> tuple[Schemas, bool]:
    if choice.type == "tool" and choice.name not in schemas:
        known = ", ".join(sorted(schemas)) or "no names, for there are no tools"
        raise RequestError(
            f"tool_choice.name is {shorten(choice.name)}; accepted are {known}", "tool_choice.name"
        )
    if choice.type != "tool" and choice.name is not None:
        raise RequestError(
            f'tool_choice.name is {shorten(choice.name)}; it is accepted only with the type "tool"',
            "tool_choice.name",
        )
    if choice.type == "any" and not schemas:
        raise RequestError('tool_choice.type is "any"; it is accepted only with tools', "tool_choice.type")
    if choice.type == "tool":
        return callable_tools({"type": "function", "function": {"name": choice.name}}, schemas)
    return callable_tools("required" if choice.type == "any" else choice.type, schemas)


def _variables(server: Server, body: CountTokensBody) -> dict[str, Any]:
    """The template's variables for how much the model thinks."""
    variables: dict[str, Any] = {}
    if body.thinking:
        thinking = parse(Thinking, body.thinking, "thinking")
        enabled = thinking.type != "disabled"
        variables |= thinking_variables(server, enabled, "thinking.type", thinking.type)
    if body.output_config:
        effort = parse(OutputConfig, body.output_config, "output_config").effort
        if effort is not None:
            variables |= effort_variables(server, effort, "output_config.effort")
    return variables


def _budget(body: CountTokensBody) -> int | None:
    """The most tokens of thinking; None is no bound."""
    thinking = parse(Thinking, body.thinking or {"type": "disabled"}, "thinking")
    if thinking.budget_tokens is not None and thinking.type != "enabled":
        raise RequestError(
            f"thinking.budget_tokens is {thinking.budget_tokens}; it is accepted only with the type"
            ' "enabled"',
            "thinking.budget_tokens",
        )
    return thinking.budget_tokens
