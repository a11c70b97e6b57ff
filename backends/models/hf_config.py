"""Hugging Face's config.json and generation_config.json, read as plain JSON.

Both today's `rope_parameters` (with one entry per layer type where they differ) and the older
`rope_theta` and `rope_scaling` are understood.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.errors import ModelError
from ...engine.text.gguf_tokenizer import END_TOKENS
from .spec import RopeSpec

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_REFUSED = {
    "quantization_config": "unquantized checkpoints",
    "num_local_experts": "models without experts",
    "num_experts": "models without experts",
}


@dataclass(frozen=True)
class HfConfig:
    """One config.json: the whole, and `text`, its `text_config` where it has one."""

    path: str
    architectures: list[str]
    text: dict[str, Any]
    whole: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of the text model's field; the default when it is absent or null."""
        value = self.text.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The value of the text model's field; ModelError when there is none."""
        value = self.get(key)
        if value is None:
            raise ModelError(f"{self.path} has no {key}")
        return value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ModelError when it is missing or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object")
    return value


def read_hf_config(path: str | Path) -> HfConfig:
    """Read a config file, or the config.json of a folder. Raises ModelError for what no family can serve."""
    path = Path(path)
    path = path if path.suffix == ".json" else path / "config.json"
    whole = read_json(path)
    text = whole.get("text_config") or whole
    for key, accepted in _REFUSED.items():
        if whole.get(key) or text.get(key):
            raise ModelError(f"{path} has {key}; accepted are {accepted}")
    return HfConfig(str(path), list(whole.get("architectures") or []), text, whole)


def hf_dimensions(config: HfConfig, tied: bool, head_dim: int | None = None) -> dict[str, Any]:
    """The fields of `ModelSpec` that every family stores alike, as keyword arguments.

    `tied` and `head_dim` are the family's defaults; without the latter it is hidden_size / heads.
    """
    heads = int(config.need("num_attention_heads"))
    hidden_size = int(config.need("hidden_size"))
    head_dim = int(config.get("head_dim", head_dim or hidden_size // heads))
    activation = config.get("hidden_activation") or config.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"hidden_act is {activation!r} in {config.path}; accepted are {', '.join(_ACTIVATIONS)}"
        )
    dtype = config.get("dtype") or config.get("torch_dtype") or config.whole.get("dtype") or "bfloat16"
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ModelError(f"dtype is {dtype!r} in {config.path}; accepted are float32, float16 and bfloat16")
    return dict(
        vocab_size=int(config.need("vocab_size")),
        hidden_size=hidden_size,
        intermediate_size=int(config.need("intermediate_size")),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads", heads)),
        head_dim=head_dim,
        context_length=_context_length(config),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        attention_scale=head_dim**-0.5,
        activation=_ACTIVATIONS[activation],
        tie_embeddings=bool(config.get("tie_word_embeddings", config.whole.get("tie_word_embeddings", tied))),
        dtype=dtype,
    )


def _context_length(config: HfConfig) -> int:
    """`max_position_embeddings`, or what yarn makes of the length it was trained on."""
    length = int(config.need("max_position_embeddings"))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) == "yarn" and rope.get("original_max_position_embeddings"):
        length = max(length, int(rope["original_max_position_embeddings"] * rope.get("factor", 1.0)))
    return length


def hf_rope(config: HfConfig, layer_type: str = "full_attention", base: float = 10000.0) -> RopeSpec:
    """The rope of one type of layer; `base` is the family's default.

    Raises ModelError for a kind that is not served.
    """
    rope = config.get("rope_parameters", {})
    if layer_type in rope:
        rope = rope[layer_type] or {}
    elif not rope and layer_type == "full_attention":  # older files scale full attention alone
        rope = {"rope_theta": config.get("rope_theta", base)} | (config.get("rope_scaling") or {})
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if share != 1.0:
        raise ModelError(f"partial_rotary_factor is {share} in {config.path}; accepted is 1")
    return _rope_of(rope, float(rope.get("rope_theta", base)), config)


def _rope_of(rope: dict[str, Any], base: float, config: HfConfig) -> RopeSpec:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ModelError(
            f"rope_type is {kind!r} in {config.path}; accepted are default, linear, llama3 and yarn"
        )
    if kind == "default":
        return RopeSpec(base)
    if "factor" not in rope:
        raise ModelError(f"rope_type is {kind!r} in {config.path} without a factor")
    factor = float(rope["factor"])
    if kind == "linear":
        return RopeSpec(base, "linear", factor)
    original = int(rope.get("original_max_position_embeddings") or config.need("max_position_embeddings"))
    if kind == "llama3":
        slow, fast = float(rope.get("low_freq_factor", 1.0)), float(rope.get("high_freq_factor", 4.0))
        return RopeSpec(base, "llama3", factor, slow, fast, original)
    if rope.get("truncate", True) is not True:
        raise ModelError(
            f"truncate is {rope['truncate']} in the rope parameters of {config.path}; accepted is true"
        )
    return RopeSpec(
        base,
        "yarn",
        factor,
        original_context=original,
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        attention_factor=_yarn_attention_factor(rope, factor),
    )


def _yarn_attention_factor(rope: dict[str, Any], factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return grown(rope["mscale"]) / grown(rope["mscale_all_dim"])
    return grown(1.0)


def hf_windows(
    config: HfConfig, pattern: int | None = None, window: int | None = None, slides: bool = True
) -> list[int | None]:
    """The sliding window of each layer, None for full attention.

    `layer_types` decides where it is given. Else every `pattern`-th layer is full and the others slide;
    without a pattern, all slide from layer `max_window_layers` on, unless `use_sliding_window` is false.
    `window` and `slides` are the family's defaults.
    """
    number = int(config.need("num_hidden_layers"))
    window = config.get("sliding_window", window)
    if types := config.get("layer_types"):
        if len(types) != number or set(types) - {"full_attention", "sliding_attention"}:
            raise ModelError(
                f"layer_types of {config.path} is {types}; accepted is full_attention or sliding_attention"
                f" for each of {number} layers"
            )
        return [window if kind == "sliding_attention" else None for kind in types]
    if pattern is not None:
        return [window if (layer + 1) % pattern else None for layer in range(number)]
    if not config.get("use_sliding_window", slides):
        return [None] * number
    first = config.get("max_window_layers", 0)
    return [window if layer >= first else None for layer in range(number)]


def read_generation_defaults(folder: str | Path) -> tuple[set[int], dict[str, float | int]]:
    """End tokens and sampling defaults of config.json, generation_config.json and the tokenizer's files.

    Ends of a turn count, which some chat models name in their template alone.

    Sampling fields are named as in `SamplingParams`; those the files leave out are left out.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    generation: dict[str, Any] = {}
    if (folder / "generation_config.json").exists():
        generation = read_json(folder / "generation_config.json")
    text = config.get("text_config") or {}
    ids: set[int] = set()
    for source in (generation, config, text):
        value = source.get("eos_token_id")
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int):
                ids.add(each)
            elif each is not None:
                raise ModelError(f"eos_token_id is {value!r} in {folder}; accepted are integers")
    sampling = {name: generation[name] for name in _SAMPLING_FIELDS if generation.get(name) is not None}
    if sampling.get("top_k") == 0:
        sampling["top_k"] = -1  # both mean: keep the whole vocabulary
    return ids | _known_end_tokens(folder), sampling


def _known_end_tokens(folder: Path) -> set[int]:
    """Special tokens of a tokenizer that are known to end a text or a turn."""
    config, whole = folder / "tokenizer_config.json", folder / "tokenizer.json"
    # Either file may list them; the second can be tens of megabytes.
    added: dict[str, Any] = read_json(config).get("added_tokens_decoder") or {} if config.exists() else {}
    if not added and whole.exists():
        added = {str(each["id"]): each for each in read_json(whole).get("added_tokens") or []}
    return {int(key) for key, each in added.items() if each.get("special") and each["content"] in END_TOKENS}
