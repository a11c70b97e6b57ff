"""The fields that constrain an output: OpenAI's `response_format`, SGLang's and vLLM's own."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from ...errors import RequestError
from ...grammar.given import FIELDS, only_one, spec_of
from ...grammar.grammar import GrammarKind, GrammarSpec
from .base import Body, shorten

# vLLM's names -> ours
_GUIDED: dict[str, GrammarKind] = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choices",
    "guided_grammar": "ebnf",
}
_STRUCTURED: dict[str, GrammarKind] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choices",
    "grammar": "ebnf",
    "json_object": "json_object",
    "structural_tag": "structural_tag",
}


def _object_or_text(value: object) -> object:
    """Raises ValueError saying what is accepted."""
    if not isinstance(value, (dict, str)):
        raise ValueError("an object, or a string that holds one")
    return value


def _texts(value: object) -> object:
    """Raises ValueError saying what is accepted."""
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise ValueError("a list of strings; neither it nor one of them is empty")
    return value


JsonText = Annotated[
    dict[str, Any] | str, BeforeValidator(_object_or_text, json_schema_input_type=dict[str, Any] | str)
]
Choices = Annotated[list[str], BeforeValidator(_texts, json_schema_input_type=list[str])]


class GrammarBody(Body):
    """What all routes that generate take; at most one may be given."""

    json_schema: JsonText | None = None
    regex: str | None = None
    ebnf: str | None = None
    choices: Choices | None = None
    structural_tag: JsonText | None = None


class OpenAIGrammarBody(GrammarBody):
    """What OpenAI's routes take besides; of all these at most one may be given."""

    response_format: dict[str, Any] | None = None
    guided_json: JsonText | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None


def read_grammar(body: GrammarBody, prefix: str = "") -> tuple[GrammarSpec | None, str]:
    """What the output has to match, and the field that says so; `prefix` stands before names in errors.

    Raises RequestError, naming the field, when there are several.
    """
    given = {prefix + name: _spec(name, getattr(body, name)) for name in FIELDS}
    if isinstance(body, OpenAIGrammarBody):
        given |= {name: _spec(kind, getattr(body, name)) for name, kind in _GUIDED.items()}
        given["response_format"] = _response_format(body.response_format)
        given["structured_outputs"] = _structured_outputs(body.structured_outputs)
    spec = only_one(given)
    return spec, next((name for name, each in given.items() if each is not None), "")


def _spec(kind: GrammarKind, value: object) -> GrammarSpec | None:
    return None if value is None else spec_of(kind, value)


def _response_format(value: Mapping[str, Any] | None) -> GrammarSpec | None:
    match value.get("type") if value is not None else "text":
        case "text" | "json_object" as kind:
            _check_names(value or {}, ("type",), "response_format")
            return GrammarSpec("json_object") if kind == "json_object" else None
        case "json_schema":
            assert value is not None
            _check_names(value, ("type", "json_schema"), "response_format")
            return _schema_of(value.get("json_schema"), "response_format.json_schema")
        case "structural_tag":
            return spec_of("structural_tag", value)
        case kind:
            raise RequestError(
                f"response_format.type is {shorten(kind)}; accepted are"
                ' "text", "json_object", "json_schema" and "structural_tag"',
                "response_format.type",
            )


def read_text_format(value: Mapping[str, Any], path: str) -> GrammarSpec | None:
    """What `text.format` of the Responses API asks for: a schema stands in it without a wrapping.

    Raises RequestError naming the field.
    """
    match value.get("type"):
        case "text" | "json_object" as kind:
            _check_names(value, ("type",), path)
            return GrammarSpec("json_object") if kind == "json_object" else None
        case "json_schema":
            return _schema_of({name: each for name, each in value.items() if name != "type"}, path)
        case kind:
            text = f'{path}.type is {shorten(kind)}; accepted are "text", "json_object" and "json_schema"'
            raise RequestError(text, f"{path}.type")


def _schema_of(value: object, path: str) -> GrammarSpec:
    """OpenAI's wrapping of a schema. `strict` or not, the output is constrained: that is more than less."""
    if not isinstance(value, dict):
        raise RequestError(f"{path} is {shorten(value)}; accepted is an object", path)
    _check_names(value, ("name", "description", "schema", "strict"), path)
    for name, kind, accepted in (
        ("name", str, "a string"),
        ("description", str, "a string"),
        ("strict", bool, "true or false"),
    ):
        if not isinstance(value.get(name), (kind, type(None))):
            text = f"{path}.{name} is {shorten(value[name])}; accepted is {accepted}"
            raise RequestError(text, f"{path}.{name}")
    schema = value.get("schema")
    if not isinstance(schema, (dict, bool)):
        raise RequestError(
            f"{path}.schema is {shorten(schema)}; accepted is a JSON schema, which is an object",
            f"{path}.schema",
        )
    return spec_of("json_schema", schema)


def _structured_outputs(value: Mapping[str, Any] | None) -> GrammarSpec | None:
    given = {name: each for name, each in (value or {}).items() if each is not None and each is not False}
    path = "structured_outputs"
    _check_names(given, _STRUCTURED, path)
    if len(given) > 1:
        raise RequestError(f"{path} has {' and '.join(given)}; accepted is one of them", path)
    for name, each in given.items():
        kind = _STRUCTURED[name]
        types = {
            "json_schema": (dict, str),
            "structural_tag": (dict, str),
            "json_object": bool,
            "choices": list,
        }
        if not isinstance(each, types.get(kind, str)):  # type: ignore[arg-type]
            text = f"{path}.{name} is {shorten(each)}; accepted is what {kind} takes"
            raise RequestError(text, f"{path}.{name}")
        return GrammarSpec("json_object") if kind == "json_object" else spec_of(kind, each)
    return None


def _check_names(value: Mapping[str, Any], accepted: Collection[str], path: str) -> None:
    for name in value:
        if name not in accepted:
            text = f"{path}.{shorten(name)[1:-1]} is not known; accepted are {', '.join(accepted)}"
            raise RequestError(text, f"{path}.{name}")
