"""Finding a model and saying what the host must know of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from radixmesh.backends.models.describe import describe, read_spec
from radixmesh.backends.models.source import find_model
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.errors import ConfigError, ModelError
from radixmesh.engine.runner import ModelInfo

LLAMA: dict[str, Any] = dict(
    architectures=["LlamaForCausalLM"], vocab_size=100, hidden_size=64, intermediate_size=96,
    num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512, eos_token_id=7,
)  # fmt: skip


def folder_of(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def described(folder: Path, **options: Any) -> ModelInfo:
    config = EngineConfig(model_path=str(folder), load_format="dummy", **options)
    return describe(config, find_model(config))


def test_a_bare_config_is_enough(tmp_path: Path) -> None:
    info = described(folder_of(tmp_path, LLAMA))
    assert info == ModelInfo(
        name=str(tmp_path), path=str(tmp_path), vocab_size=100, context_length=512,
        eos_token_ids=frozenset({7}),
    )  # fmt: skip
    spec = read_spec(find_model(EngineConfig(model_path=str(tmp_path))))
    assert (spec.num_kv_heads, spec.head_dim, spec.tie_embeddings, spec.layers[0].window) == (
        4,
        16,
        False,
        None,
    )


def test_generation_config(tmp_path: Path) -> None:
    generation = dict(
        eos_token_id=[8, 9], temperature=0.6, top_k=0, top_p=0.95, max_length=20, do_sample=True
    )
    folder_of(tmp_path, LLAMA, generation)
    assert described(tmp_path).eos_token_ids == {7, 8, 9}
    assert described(tmp_path).default_sampling == dict(temperature=0.6, top_k=-1, top_p=0.95)
    assert described(tmp_path, sampling_defaults="openai").default_sampling == {}


def test_end_tokens_outside_the_vocabulary_are_none(tmp_path: Path) -> None:
    folder_of(tmp_path, LLAMA | dict(eos_token_id=[-1, 99, 100]))
    assert described(tmp_path).eos_token_ids == {99}


def test_sampling_defaults_that_cannot_be_used(tmp_path: Path) -> None:
    folder_of(tmp_path, LLAMA, dict(temperature="hot"))
    with pytest.raises(ModelError, match="temperature is 'hot'.*sampling_defaults=openai"):
        described(tmp_path)
    assert described(tmp_path, sampling_defaults="openai").default_sampling == {}


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json"])
def test_ends_of_a_turn_count_where_only_the_tokenizer_has_them(place: str, tmp_path: Path) -> None:
    tokens = {
        7: ("</s>", True),
        9: ("<|im_end|>", True),
        10: ("<|eot_id|>", False),
        11: ("<|im_start|>", True),
    }
    listed = [dict(id=index, content=text, special=special) for index, (text, special) in tokens.items()]
    if place == "tokenizer.json":
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(eos_token="</s>")))
        (tmp_path / place).write_text(json.dumps(dict(added_tokens=listed)))
    else:
        (tmp_path / place).write_text(json.dumps(dict(added_tokens_decoder={t["id"]: t for t in listed})))
    assert described(folder_of(tmp_path, LLAMA)).eos_token_ids == {7, 9}


def test_names_and_context(tmp_path: Path) -> None:
    folder_of(tmp_path, LLAMA)
    info = described(tmp_path, served_model_name="mine", context_length=128)
    assert (info.name, info.context_length) == ("mine", 128)
    with pytest.raises(ConfigError, match="context_length is 513; .* at most 512 tokens"):
        described(tmp_path, context_length=513)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(architectures=["MixtralForCausalLM"]), "MixtralForCausalLM.*accepted are LlamaForCausalLM"),
        (dict(architectures=None), r"architectures is \[\]"),
        (dict(quantization_config={"quant_method": "awq"}), "has quantization_config"),
        (dict(num_local_experts=8), "has num_local_experts"),
        (dict(hidden_act="relu"), "hidden_act is 'relu'.*silu"),
        (dict(hidden_size=None), "has no hidden_size"),
        (dict(dtype="float8"), "dtype is 'float8'.*bfloat16"),
        (dict(rope_scaling=dict(type="dynamic", factor=2.0)), "rope_type is 'dynamic'"),
        (dict(layer_types=["full_attention"]), "layer_types"),
        (dict(num_attention_heads="four"), "a field has the wrong type.*'four'"),
        (dict(num_attention_heads=0), "a field has the wrong type"),
        (dict(text_config=[1]), "a field has the wrong type"),
        (dict(rope_scaling=[1]), "a field has the wrong type"),
        (dict(num_key_value_heads=3), "num_kv_heads is 3 .* divisor of 4 heads"),
        (dict(head_dim=15), "head_dim is 15 .* even"),
        (dict(num_hidden_layers=0), "num_layers is 0 .* at least 1"),
        (dict(max_position_embeddings=-4), "context_length is -4 .* at least 1"),
        (dict(eos_token_id="7"), "eos_token_id is '7'"),
    ],
)
def test_what_cannot_be_served_is_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=named):
        described(folder_of(tmp_path, LLAMA | change))


def test_yarn_stretches_the_context(tmp_path: Path) -> None:
    rope = dict(type="yarn", factor=4.0, original_max_position_embeddings=512)
    assert described(folder_of(tmp_path, LLAMA | dict(rope_scaling=rope))).context_length == 2048


def test_broken_json_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(ModelError, match="config.json"):
            described(tmp_path)


@pytest.mark.parametrize("path", ["no-such-model", "./no/such", "/no/such/file.gguf", "a/b/c", "~/no-such"])
def test_a_missing_model_says_what_is_accepted(path: str) -> None:
    with pytest.raises(ModelError, match="config.json.*gguf.*Hugging Face.*smollm2-135m-instruct, gemma3"):
        find_model(EngineConfig(model_path=path))


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    source = find_model(EngineConfig(model_path=str(tmp_path)))
    assert (source.path, source.kind) == (str(tmp_path / "model.gguf"), "gguf")


def test_load_format_must_fit(tmp_path: Path) -> None:
    folder_of(tmp_path, LLAMA)
    with pytest.raises(ConfigError, match="load_format is 'gguf'.*folder with config.json"):
        find_model(EngineConfig(model_path=str(tmp_path), load_format="gguf"))


def test_a_hub_model_without_network_is_a_clear_error(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads HF_HUB_OFFLINE when it is imported."""
    script = (
        "from radixmesh.backends.models.source import find_model\n"
        "from radixmesh.engine.config import EngineConfig\n"
        "find_model(EngineConfig(model_path='owner/name'))\n"
    )
    changes = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | changes, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("radixmesh.engine.errors.ModelError: model_path is 'owner/name'")
    assert "Hugging Face" in last
