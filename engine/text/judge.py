"""Causal rerankers: models that judge by their next token, "yes" or "no", whether a document meets a query.

They are asked in the form that Qwen3-Reranker was trained with (Zhang et al., "Qwen3 Embedding", 2025).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError
from .tokenizer import Tokenizer

_TASK = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided."
    ' Note that the answer can only be "yes" or "no".'
)
_INSTRUCT = "Given a web search query, retrieve relevant passages that answer the query"
_ASKS = re.compile(r"""["']yes["'] or ["']no["']""")  # in a template that asks itself


@dataclass(frozen=True, slots=True)
class Judge:
    """How a model is asked. `yes` and `no` are the tokens that it answers with."""

    tokenizer: Tokenizer
    yes: int
    no: int
    asks_itself: bool  # the chat template has the task, and takes a query and a document

    def prompts(
        self, query: str, documents: Sequence[str], instruct: str | None, most: int
    ) -> list[list[int]]:
        """The token ids of a prompt for each document; `most` is a length beyond which none matters.

        Raises RequestError, naming the document, for what the chat template refuses.
        """
        if instruct is not None and self.asks_itself and not self.tokenizer.template_takes("instruct"):
            raise RequestError(
                "instruct is given; the model's chat template does not take it, accepted is null", "instruct"
            )
        prompts = []
        for index, document in enumerate(documents):
            try:
                text = self._render(query, document, instruct)
            except RequestError as error:
                name = f"documents[{index}]"
                raise RequestError(f"{name}: {error}", name) from None
            # The template writes its own special tokens.
            prompts.append(self.tokenizer.encode(text, add_special_tokens=False, max_tokens=most))
        return prompts

    def _render(self, query: str, document: str, instruct: str | None) -> str:
        if self.asks_itself:
            given: list[dict[str, Any]] = [
                {"role": "query", "content": query},
                {"role": "document", "content": document},
            ]
            variables: dict[str, Any] = {} if instruct is None else {"instruct": instruct}
            return self.tokenizer.apply_chat_template(given, **variables)
        task = _INSTRUCT if instruct is None else instruct
        content = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}"
        messages = [{"role": "system", "content": _TASK}, {"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(messages, enable_thinking=False)


def find_judge(tokenizer: Tokenizer | None, names: Sequence[str]) -> Judge:
    """How a model of these names is asked. It reranks if one of them has "reranker" in it, or if its chat
    template asks for "yes" or "no" itself: any model can answer so, only one trained for it means it.

    Raises RequestError for another model, in a sentence that says what would be accepted.
    """
    asks_itself = tokenizer is not None and _ASKS.search(tokenizer.chat_template) is not None
    named = any("reranker" in name.lower() for name in names)
    if tokenizer is None or not tokenizer.has_chat_template or not (asks_itself or named):
        raise RequestError(
            "this server's model does not rerank; accepted are models whose chat template asks for"
            ' "yes" or "no", or that have a chat template and "reranker" in their name, as Qwen3-Reranker'
        )
    yes, no = (tokenizer.encode(word, add_special_tokens=False) for word in ("yes", "no"))
    if len(yes) != 1 or len(no) != 1:
        raise RequestError(
            "this server's model does not rerank: its vocabulary has no tokens for yes and no; accepted are"
            " models that have both"
        )
    return Judge(tokenizer, yes[0], no[0], asks_itself)
