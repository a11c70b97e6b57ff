"""Tools, the choice among them, and calls of them, as OpenAI's chat requests have them."""

import json
import re
from typing import Annotated, Any, ClassVar, Literal

from ...errors import RequestError
from .base import Body, parse, shorten
from .schema import Checked

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")

Schemas = dict[str, dict[str, Any]]  # of the parameters, by the tool's name


class Function(Body):
    """What a tool is."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False  # arguments are of the schema


class Tool(Body):
    """One of `tools`."""

    type: Literal["function"]
    function: Annotated[dict[str, Any], Checked((Function,))]


class NamedFunction(Body):
    """The function of a `tool_choice` that names one."""

    name: str


class FunctionCall(Body):
    """What a call of a message's `tool_calls` calls."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Body):
    """One of a message's `tool_calls`."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Annotated[dict[str, Any], Checked((FunctionCall,))]

    without_effect: ClassVar[frozenset[str]] = frozenset({"index"})  # a stream's, sent back


def read_tools(items: list[Any]) -> tuple[list[dict[str, Any]], Schemas]:
    """The tools as a chat template takes them, and the JSON schema of each name's parameters.

    Raises RequestError naming the tool and field.
    """
    tools: list[dict[str, Any]] = []
    schemas: Schemas = {}
    for index, item in enumerate(items):
        path = f"tools[{index}].function"
        function = parse(Function, parse(Tool, item, f"tools[{index}]").function, path)
        name, schema = function.name, function.parameters or {}
        if not _NAME.fullmatch(name):
            raise RequestError(
                f"{path}.name is {shorten(name)}; accepted are 1 to 128 letters, digits, _, - and .",
                f"{path}.name",
            )
        if name in schemas:
            raise RequestError(
                f"{path}.name is {shorten(name)}, as that of a tool before it; accepted are different names",
                f"{path}.name",
            )
        if schema.get("type", "object") != "object" or not isinstance(schema.get("properties", {}), dict):
            raise RequestError(
                f"{path}.parameters is {shorten(schema)}; accepted is a JSON schema of type object",
                f"{path}.parameters",
            )
        schemas[name] = schema
        told = function.model_dump(exclude_none=True, exclude={"strict"})
        tools.append({"type": "function", "function": told})
    return tools, schemas


def strict_tools(items: list[Any]) -> frozenset[str]:
    """The names of strict tools, of those that were read: OpenAI's, or the flat ones of other dialects."""
    functions = (item.get("function", item) for item in items)
    return frozenset(function["name"] for function in functions if function.get("strict"))


def callable_tools(choice: str | dict[str, Any] | None, schemas: Schemas) -> tuple[Schemas, bool]:
    """Which tools `tool_choice` lets the model call, by default all, and whether one has to be called.

    Raises RequestError for what is no choice, or none among these.
    """
    if choice is None or choice == "auto":
        return schemas, False
    if choice == "none":
        return {}, False
    if isinstance(choice, dict):
        named = parse(Tool, choice, "tool_choice")
        name = parse(NamedFunction, named.function, "tool_choice.function").name
        if name not in schemas:
            known = ", ".join(sorted(schemas)) or "no names, for there are no tools"
            raise RequestError(
                f"tool_choice.function.name is {shorten(name)}; accepted are {known}",
                "tool_choice.function.name",
            )
        return {name: schemas[name]}, True
    if choice != "required":
        raise RequestError(
            f'tool_choice is {shorten(choice)}; accepted are "none", "auto", "required" and an object that'
            " names a tool",
            "tool_choice",
        )
    if not schemas:
        raise RequestError('tool_choice is "required"; it is accepted only with tools', "tool_choice")
    return schemas, True


def read_tool_call(item: object, path: str) -> dict[str, Any]:
    """A call of an earlier answer, its arguments as a mapping. Raises RequestError naming the field."""
    call = parse(ToolCall, item, path)
    function = parse(FunctionCall, call.function, f"{path}.function")
    arguments: object = function.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            pass
    if not isinstance(arguments, dict):
        raise RequestError(
            f"{path}.function.arguments is {shorten(function.arguments)}; accepted is a JSON object,"
            " written as a string",
            f"{path}.function.arguments",
        )
    fields = {} if call.id is None else {"id": call.id}
    return {**fields, "type": "function", "function": {"name": function.name, "arguments": arguments}}
