"""What the host needs to know of a model before any weight is read."""

from pathlib import Path

from ...engine.config import EngineConfig
from ...engine.errors import ConfigError
from ...engine.gguf_header import read_gguf_header
from ...engine.runner import ModelInfo
from .families.registry import family_of_gguf, family_of_hf
from .gguf_file import GgufFields
from .hf_config import read_hf_config, read_json
from .source import ModelSource
from .spec import ModelSpec

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_spec(source: ModelSource) -> ModelSpec:
    """The decoder behind `source`. Raises ModelError for what no family can serve."""
    if source.kind == "gguf":
        fields = GgufFields(read_gguf_header(source.path))
        return family_of_gguf(fields.architecture).spec_from_gguf(fields)
    config = read_hf_config(source.path)
    return family_of_hf(config.architectures).spec_from_hf(config)


def describe(config: EngineConfig, source: ModelSource) -> ModelInfo:
    """Name, limits, end tokens and default sampling. ConfigError for a context longer than the model's."""
    spec = read_spec(source)
    context = config.context_length or spec.context_length
    if context > spec.context_length:
        raise ConfigError(
            f"context_length is {context}; {source.name} was made for at most {spec.context_length} tokens"
        )
    gguf = source.kind == "gguf"
    eos, sampling = _gguf_generation(source) if gguf else _hf_generation(Path(source.path))
    return ModelInfo(
        name=source.name,
        path=source.path,
        vocab_size=spec.vocab_size,
        context_length=context,
        eos_token_ids=frozenset(eos),
        default_sampling=sampling if config.sampling_defaults == "model" else {},
    )


def _gguf_generation(source: ModelSource) -> tuple[set[int], dict[str, float | int]]:
    metadata = read_gguf_header(source.path).metadata
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = {int(metadata[name]) for key in keys if (name := f"tokenizer.ggml.{key}") in metadata}
    return ids, {}


def _hf_generation(folder: Path) -> tuple[set[int], dict[str, float | int]]:
    config = read_hf_config(folder)
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = set() if eos is None else {eos} if isinstance(eos, int) else set(eos)
    found = {key: generation[key] for key in _SAMPLING if generation.get(key) is not None}
    if generation.get("do_sample") is False:
        found = {"temperature": 0.0}
    return ids, found
