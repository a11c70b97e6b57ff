"""Body of /v1/embeddings."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from .base import Body
from .openai import Prompt, PromptInput, read_prompts
from .sampling import DEFAULT_NAME


class EmbeddingBody(Body):
    """Body of /v1/embeddings."""

    model: str = DEFAULT_NAME
    input: list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None

    without_effect: ClassVar[frozenset[str]] = frozenset({"user"})

    @field_validator("input", mode="before", json_schema_input_type=PromptInput)
    @classmethod
    def _inputs(cls, value: object) -> list[Prompt]:
        return read_prompts(value)
