"""`ChatTemplate`: chat messages to a prompt, with every failure told as a RequestError."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt. Raises RequestError (field "messages"), with the template's own words if it has any."""
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
        try:
            text = self._fast.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,
                chat_template=self._own,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **variables,
            )
        except Exception as error:  # a template can fail in any way; that is this request's trouble alone
            raise RequestError(
                f"the chat template refused the messages: {type(error).__name__}: {error}", "messages"
            ) from error
        assert isinstance(text, str)
        return text


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError("messages is empty or no list; accepted is at least one message", "messages")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"messages[{number}] is {message!r:.80}; accepted is a mapping with a role and a content",
                "messages",
            )
