"""From messages to token ids, by the model's chat template."""

import asyncio
from typing import Any

from ..errors import RequestError
from ..text.tokenizer import LONG_PROMPT
from .openai_common import need_tokenizer
from .protocol.base import shorten
from .protocol.openai import read_messages
from .state import Server

# What the template already gets from elsewhere.
_TAKEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
_TAKEN |= {"tokenize", "chat_template", "conversation", "return_dict", "return_tensors"}


async def chat_ids(
    server: Server, items: list[Any], kwargs: dict[str, Any], add_generation_prompt: bool
) -> list[int]:
    """The prompt's token ids of messages as a request has them. Raises RequestError naming the message."""
    check_variables(kwargs)
    return await template_ids(server, read_messages(items), kwargs, add_generation_prompt)


def check_variables(kwargs: dict[str, Any]) -> None:
    """Raise RequestError where `chat_template_kwargs` has what the server itself tells the template."""
    for name in kwargs:
        if name in _TAKEN:
            path = f"chat_template_kwargs.{name}"
            raise RequestError(f"{path} is {shorten(kwargs[name])}; the server itself sets {name}", path)


async def template_ids(
    server: Server,
    messages: list[dict[str, Any]],
    variables: dict[str, Any],
    add_generation_prompt: bool = True,
    tools: list[dict[str, Any]] | None = None,
) -> list[int]:
    """The prompt's token ids. Raises RequestError naming the message, or what the template said."""
    tokenizer = need_tokenizer(server, "messages")
    for index, message in enumerate(messages):
        if "tool_calls" in message and not tokenizer.template_uses("tool_calls"):
            path = f"messages[{index}].tool_calls"
            raise RequestError(f"{path} is given; the model's chat template takes no calls of tools", path)

    def encode() -> list[int]:
        text = tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables
        )
        # The template writes its own special tokens.
        return tokenizer.encode(text, add_special_tokens=False, max_tokens=server.llm.info.context_length)

    is_long = sum(len(each["content"]) for each in messages) > LONG_PROMPT
    return await asyncio.to_thread(encode) if is_long else encode()
