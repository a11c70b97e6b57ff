"""What the host needs to know of a model before any weight is read."""

from pathlib import Path

from ...engine.config import EngineConfig
from ...engine.errors import ConfigError, ModelError, RequestError
from ...engine.gguf_header import GgufHeader, read_gguf_header
from ...engine.request import SamplingParams
from ...engine.runner import ModelInfo
from ...engine.text.gguf_tokenizer import gguf_end_token_ids
from .embedded import embedded_sampling
from .families.registry import family_of_gguf, family_of_hf
from .gguf_file import GgufFields
from .hf_config import read_generation_defaults, read_hf_config
from .source import ModelSource
from .spec import ModelSpec

# What values of the wrong type or sign lead to, when dimensions are taken from a file.
_MISFITS = (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError)
_GGUF_SAMPLING = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


def read_spec(source: ModelSource) -> ModelSpec:
    """The decoder behind `source`. Raises ModelError for what no family can serve."""
    if source.kind == "gguf":
        return _gguf_spec(read_gguf_header(source.path))
    try:
        config = read_hf_config(source.path)
        spec = family_of_hf(config.architectures).spec_from_hf(config)
    except _MISFITS as error:
        raise _misfit(source.path, error) from error
    return _checked(spec, source.path)


def describe(config: EngineConfig, source: ModelSource) -> ModelInfo:
    """Name, limits, end tokens and default sampling of a model.

    Raises ConfigError for a context longer than the model's, ModelError for what cannot be served.
    """
    if source.kind == "gguf":
        header = read_gguf_header(source.path)
        spec, ends = _gguf_spec(header), gguf_end_token_ids(header)
        sampling = embedded_sampling(Path(source.path).name) | _gguf_sampling(header)
    else:
        spec = read_spec(source)
        try:
            ends, sampling = read_generation_defaults(source.path)
        except _MISFITS as error:
            raise _misfit(source.path, error) from error
    sampling = _usable(sampling, source.path) if config.sampling_defaults == "model" else {}
    context = config.context_length or spec.context_length
    if context > spec.context_length:
        raise ConfigError(
            f"context_length is {context}; {source.name} was made for at most {spec.context_length} tokens"
        )
    return ModelInfo(
        name=source.name,
        path=source.path,
        vocab_size=spec.vocab_size,
        context_length=context,
        # some files write -1 for "none", and count tokens that were never embedded
        eos_token_ids=frozenset(index for index in ends if 0 <= index < spec.vocab_size),
        default_sampling=sampling,
    )


def _gguf_spec(header: GgufHeader) -> ModelSpec:
    fields = GgufFields(header)
    try:
        spec = family_of_gguf(fields.architecture).spec_from_gguf(fields)
    except _MISFITS as error:
        raise _misfit(header.path, error) from error
    return _checked(spec, header.path)


def _misfit(path: str, error: Exception) -> ModelError:
    return ModelError(f"{path} describes no model: a field has the wrong type ({error})")


def _checked(spec: ModelSpec, path: str) -> ModelSpec:
    """`spec`, if a decoder can be built of it. Raises ModelError naming the field."""
    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim",
        "num_layers", "context_length",
    ):  # fmt: skip
        if getattr(spec, name) < 1:
            raise ModelError(f"{name} is {getattr(spec, name)} in {path}; accepted is at least 1")
    if spec.num_heads % spec.num_kv_heads:
        raise ModelError(
            f"num_kv_heads is {spec.num_kv_heads} in {path}; accepted is a divisor of {spec.num_heads} heads"
        )
    if spec.head_dim % 2:
        raise ModelError(f"head_dim is {spec.head_dim} in {path}; accepted is an even number")
    return spec


def _usable(sampling: dict[str, float | int], path: str) -> dict[str, float | int]:
    """`sampling`, if requests may ask for it. Raises ModelError naming the field."""
    try:
        SamplingParams(**sampling)  # type: ignore[arg-type]
    except RequestError as error:
        raise ModelError(
            f"the sampling defaults of {path} cannot be used: {error};"
            " sampling_defaults=openai leaves them out"
        ) from error
    return sampling


def _gguf_sampling(header: GgufHeader) -> dict[str, float | int]:
    """What newer files keep of generation_config.json."""
    stored = {ours: header.metadata.get(f"general.sampling.{key}") for ours, key in _GGUF_SAMPLING.items()}
    found = {name: value for name, value in stored.items() if value is not None}
    if found.get("top_k", 1) <= 0:
        found["top_k"] = -1
    return found
