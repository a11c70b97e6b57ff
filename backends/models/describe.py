"""What the host needs to know of a model before any weight is read."""

from ...engine.config import EngineConfig
from ...engine.errors import ConfigError
from ...engine.gguf_header import GgufHeader, read_gguf_header
from ...engine.runner import ModelInfo
from ...engine.text.gguf_tokenizer import gguf_end_token_ids
from .families.registry import family_of_gguf, family_of_hf
from .gguf_file import GgufFields
from .hf_config import read_generation_defaults, read_hf_config
from .source import ModelSource
from .spec import ModelSpec

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
    config = read_hf_config(source.path)
    return family_of_hf(config.architectures).spec_from_hf(config)


def describe(config: EngineConfig, source: ModelSource) -> ModelInfo:
    """Name, limits, end tokens and default sampling of a model.

    Raises ConfigError for a context longer than the model's, ModelError for what cannot be served.
    """
    if source.kind == "gguf":
        header = read_gguf_header(source.path)
        spec, ends, sampling = _gguf_spec(header), gguf_end_token_ids(header), _gguf_sampling(header)
    else:
        spec = read_spec(source)
        ends, sampling = read_generation_defaults(source.path)
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
        eos_token_ids=frozenset(ends),
        default_sampling=sampling if config.sampling_defaults == "model" else {},
    )


def _gguf_spec(header: GgufHeader) -> ModelSpec:
    fields = GgufFields(header)
    return family_of_gguf(fields.architecture).spec_from_gguf(fields)


def _gguf_sampling(header: GgufHeader) -> dict[str, float | int]:
    """What newer files keep of generation_config.json."""
    stored = {ours: header.metadata.get(f"general.sampling.{key}") for ours, key in _GGUF_SAMPLING.items()}
    found = {name: value for name, value in stored.items() if value is not None}
    if found.get("top_k", 1) <= 0:
        found["top_k"] = -1
    return found
