"""Bodies of /score and /rerank."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from ...request import MAX_LOGPROB_TOKEN_IDS
from .base import Body
from .sampling import DEFAULT_NAME
from .schema import Checked

MAX_ITEMS = 1024  # of one request, each of them a prompt

_Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Documents = Annotated[list[str | dict[str, Any]], Field(min_length=1, max_length=MAX_ITEMS)]
_Items = Annotated[list[str] | list[list[_Id]], Field(min_length=1, max_length=MAX_ITEMS)]


class ScoreBody(Body):
    """Body of /score and /v1/score, in SGLang's form."""

    model: str = DEFAULT_NAME
    query: str | list[int]
    items: list[Any]
    label_token_ids: Annotated[list[_Id], Field(min_length=1, max_length=MAX_LOGPROB_TOKEN_IDS)]
    apply_softmax: bool = False
    item_first: bool = False

    without_effect: ClassVar[frozenset[str]] = frozenset({"user"})
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {"return_pooled_hidden_states": (False,)}

    @field_validator("query", mode="before", json_schema_input_type=str | list[_Id])
    @classmethod
    def _query(cls, value: object) -> object:
        if is_text_or_ids(value):
            return value
        raise ValueError("a string, or a list of token ids")

    @field_validator("items", mode="before", json_schema_input_type=str | _Items)
    @classmethod
    def _item_list(cls, value: object) -> object:
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and 0 < len(value) <= MAX_ITEMS:
            return value  # each is checked by its place in the list
        raise ValueError(f"a string, or a list of 1 to {MAX_ITEMS} strings or lists of token ids")


def is_text_or_ids(value: object) -> bool:
    """Whether `value` is a text or a list of what may be token ids."""
    # type(), for True is an int to isinstance
    return isinstance(value, str) or (
        isinstance(value, list) and all(type(each) is int and 0 <= each < 2**31 for each in value)
    )


class RerankDocument(Body):
    """One of `documents`, where it is an object."""

    text: str


class RerankBody(Body):
    """Body of /rerank, /v1/rerank and /v2/rerank, in Cohere's and Jina's form."""

    model: str = DEFAULT_NAME
    query: str
    documents: Annotated[list[Any], Checked((RerankDocument,))]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True
    instruct: str | None = None

    without_effect: ClassVar[frozenset[str]] = frozenset({"user"})
    only_at: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "rank_fields": (["text"],),
        "max_chunks_per_doc": (),
        "max_tokens_per_doc": (),
        "truncate_prompt_tokens": (),
    }

    @field_validator("documents", mode="before", json_schema_input_type=_Documents)
    @classmethod
    def _document_list(cls, value: object) -> object:
        if isinstance(value, list) and 0 < len(value) <= MAX_ITEMS:
            return value  # each is checked by its place in the list
        raise ValueError(f"a list of 1 to {MAX_ITEMS} strings or objects with text")
