"""From a gRPC request to the engine's work, and from its outputs to messages."""

import uuid
from dataclasses import asdict
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet

from ..errors import RequestError
from ..grammar.given import KINDS, spec_of
from ..grammar.grammar import GrammarSpec
from ..outputs import RequestOutput
from ..pooling import EMBED
from ..request import SamplingParams
from ..server.generation import Job
from ..server.openai_common import need_tokenizer
from ..server.protocol.sampling import make_params
from ..server.state import Server


def read_generate(server: Server, request: Any) -> Job:
    """The work that a GenerateRequest asks for. Raises RequestError naming the field."""
    refuse_unknown(request)
    kind, prompt = _prompt(server, request)
    return Job(
        prompts=[prompt],
        params=[_params(server, request.sampling)],
        id=request.request_id or uuid.uuid4().hex,
        field=kind,
        id_field="request_id",
        sampling_field="sampling",
        priority=request.priority,
        extra_key=request.extra_key,
    )


def read_embed(server: Server, request: Any) -> Job:
    """The work that an EmbedRequest asks for. Raises RequestError naming the field."""
    kind, prompt = _prompt(server, request)
    return Job([prompt], [EMBED], uuid.uuid4().hex, field=kind)


def _prompt(server: Server, request: Any) -> tuple[str, str | list[int]]:
    """Which field has the prompt, and the prompt."""
    kind = request.WhichOneof("prompt")
    if kind is None:
        raise RequestError("prompt is not set; accepted is one of text and token_ids", "prompt")
    if kind == "text":
        need_tokenizer(server, "text")
        return kind, request.text
    return kind, list(request.token_ids.ids)


def _params(server: Server, sampling: Any) -> SamplingParams:
    """Its fields have SamplingParams' names."""
    given = {field.name: value for field, value in sampling.ListFields() if field.name not in KINDS}
    given["grammar"] = _grammar(sampling)
    for name in ("stop", "stop_token_ids", "logprob_token_ids"):
        given[name] = tuple(getattr(sampling, name))
    given["logit_bias"] = dict(sampling.logit_bias)
    names = {name: f"sampling.{name}" for name in SamplingParams.__dataclass_fields__}
    return make_params(given, server.llm.info.default_sampling, names)


def _grammar(sampling: Any) -> GrammarSpec | None:
    kind = sampling.WhichOneof("grammar")
    if kind is None:
        return None
    if kind == "json_object":
        return GrammarSpec(kind) if sampling.json_object else None
    value = getattr(sampling, kind)
    return spec_of(kind, list(value.texts) if kind == "choices" else value)


def refuse_unknown(message: Any) -> None:
    """Raise RequestError for fields that this server does not know: ignoring one could change the output."""
    for field in UnknownFieldSet(message):
        raise RequestError(
            f"{message.DESCRIPTOR.name} has a field with the number {field.field_number}; accepted are those"
            " of this server's radixmesh.proto"
        )
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None and not descriptor.message_type.GetOptions().map_entry:
            refuse_unknown(value)


def generate_response(output: RequestOutput, first: bool) -> dict[str, Any]:
    """The fields of a GenerateResponse: what `output` brought, the `first` of its sequence or a later one."""
    newest = len(output.new_token_ids)
    logprobs = output.logprobs[-newest:] if output.logprobs and newest else []
    matched: dict[str, Any] = {}
    if output.matched_stop is not None:
        is_text = isinstance(output.matched_stop, str)
        matched = {"matched_text" if is_text else "matched_token_id": output.matched_stop}
    return {
        "request_id": output.request_id,
        "index": output.index,
        "text": output.text_delta,
        "token_ids": output.new_token_ids,
        "logprobs": [asdict(each) for each in logprobs],
        "prompt_logprobs": [asdict(each) for each in output.prompt_logprobs or ()] if first else [],
        "prompt_tokens": output.num_prompt_tokens,
        "cached_tokens": output.num_cached_tokens,
        "completion_tokens": len(output.token_ids),
        "finish_reason": output.finish_reason.value if output.finish_reason else "",
        **matched,
    }
