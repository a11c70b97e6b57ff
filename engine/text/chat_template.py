"""`ChatTemplate`: chat messages to a prompt, with every failure told as a RequestError."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TAG = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)  # what Jinja evaluates
_RESERVED = ("messages", "tools", "add_generation_prompt", "documents", "tokenize", "chat_template")


class ChatTemplate:
    """The Jinja template of a tokenizer, or `own` in its place. It runs in transformers' sandbox."""

    def __init__(self, fast: "PreTrainedTokenizerFast", own: str | None = None) -> None:
        self._fast = fast
        self._own = own  # None: transformers takes the tokenizer's own

    @property
    def known(self) -> bool:
        """Whether there is a template."""
        return self._own is not None or bool(self._fast.chat_template)

    @cached_property
    def text(self) -> str:
        """The Jinja text, "" if there is none; of several that for messages with tools."""
        if self._own is not None or not self._fast.chat_template:
            return self._own or ""
        try:
            text: str = self._fast.get_chat_template(None, tools=[])
        except ValueError:  # several, and none of a name that says when to take it
            return ""
        return text

    def uses(self, variable: str) -> bool:
        """Whether what it renders can depend on `variable`."""
        name = re.compile(rf"\b{variable}\b")
        return any(name.search(tag) for tag in _TAG.findall(self.text))

    def takes(self, variable: str) -> bool:
        """Whether `variable` is one of its own, not a field of messages or a text."""
        name = re.compile(rf"(?<![\w.'\"]){variable}(?![\w'\"])")
        return any(name.search(tag) for tag in _TAG.findall(self.text))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt. Arguments of tool calls in `messages` are mappings; they become JSON where the template
        takes texts. Raises RequestError (field "messages"), with the template's own words if it has any.
        """
        if not self.known:
            raise RequestError(
                "the model has no chat template; give one with --chat-template FILE or use /v1/completions"
                " with a plain prompt",
                "messages",
            )
        _check_messages(messages)
        for name in variables:
            if name in _RESERVED:
                raise RequestError(f"{name} is set by the server; accepted are other names", name)
        if any(message.get("tool_calls") for message in messages) and self._takes_json:
            messages = [_with_json_arguments(message) for message in messages]
        try:
            return self._apply(messages, tools, add_generation_prompt, variables)
        except Exception as error:  # a template can fail in any way; that is this request's trouble alone
            raise RequestError(
                f"the chat template refused the messages: {type(error).__name__}: {error}", "messages"
            ) from error

    def _apply(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        text = self._fast.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] if tools else None,
            chat_template=self._own,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **variables,
        )
        assert isinstance(text, str)
        return text

    @cached_property
    def _takes_json(self) -> bool:
        """Whether arguments of calls must be given as JSON: templates differ, and only trying tells."""
        call = {
            "type": "function",
            "id": "call00000",
            "function": {"name": "f", "arguments": {"key": "value"}},
        }
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
        text = self._attempt(messages, tools)
        if text is None:
            return self._attempt([_with_json_arguments(each) for each in messages], tools) is not None
        # A template that only joins texts writes a mapping in Python's own form.
        return "{'key': 'value'}" in text

    def _attempt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str | None:
        try:
            return self._apply(messages, tools, False, {})
        except Exception:  # whatever it was, that it failed is the answer
            return None


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError("messages is empty or no list; accepted is at least one message", "messages")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"messages[{number}] is {message!r:.80}; accepted is a mapping with a role and a content",
                "messages",
            )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _with_json_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [
        {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)
