"""The PyTorch decoder over paged KV, in chunks and beside another row, against transformers' logits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from radixmesh.backends.models.checkpoint import open_checkpoint
from radixmesh.backends.models.describe import read_spec
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.source import ModelSource
from radixmesh.backends.models.spec import ModelSpec
from radixmesh.backends.models.weights import iterate_params
from radixmesh.backends.torch_cuda.decoder import Decoder
from radixmesh.backends.torch_cuda.forward_batch import ForwardBatch, Sampling
from radixmesh.backends.torch_cuda.loader import dummy_weights, load_weights
from radixmesh.backends.torch_cuda.operations import TWINS
from radixmesh.backends.torch_cuda.ranks import Ranks
from tests.decoder_steps import PAGE, SEQUENCES, SPARE, STEPS, plan
from tests.oracle import oracle_logits
from tests.tiny_models import CONFIGS, save_tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    oracle = save_tiny_model(name, tmp_path)
    spec, decoder = load_decoder(tmp_path)
    kv_pages = torch.zeros(spec.num_layers * (SPARE + 1), spec.num_kv_heads, PAGE, 2 * spec.head_dim)
    got: list[list[NDArray[np.float32]]] = [[], []]
    done = [0, 0]
    for step in STEPS:
        tokens, positions, rows = plan(step, done)
        ids = torch.from_numpy(tokens)
        batch = ForwardBatch(
            token_ids=ids,
            positions=torch.from_numpy(positions),
            rows=type(rows)(*(torch.as_tensor(each) for each in rows[:-2])),
            logits_positions=ids,
            logits_rows=ids,
            slots=ids,
            sampling=Sampling(*[ids] * len(Sampling._fields)),
        )
        residual = decoder.embed(batch, ids, torch.zeros(PAGE * (SPARE + 1), dtype=ids.dtype))
        logits = decoder.logits(decoder.hidden(residual, batch, kv_pages)).numpy()
        start = 0
        for sequence, count in step:
            got[sequence].append(logits[start : start + count])
            start += count
            done[sequence] += count
    for token_ids, parts in zip(SEQUENCES, got, strict=True):
        want = oracle_logits(oracle, token_ids.tolist())
        np.testing.assert_allclose(np.concatenate(parts), want, rtol=2e-4, atol=2e-4)


def load_decoder(folder: Path) -> tuple[ModelSpec, Decoder]:
    source = ModelSource(str(folder), "hf", "tiny")
    spec = read_spec(source)
    params = param_table(spec)
    weights = iterate_params(spec, params, open_checkpoint(source))
    loaded = load_weights(spec, params, weights, torch.float32, CPU, Ranks())
    return spec, Decoder(spec, loaded, 64, TWINS, Ranks())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_keep_the_checkpoints_values(dtype: str, tmp_path: Path) -> None:
    """Fused matrices hold the projections row by row, bit by bit."""
    oracle = save_tiny_model("qwen2", tmp_path, dtype=dtype)
    source = ModelSource(str(tmp_path), "hf", "tiny")
    spec = read_spec(source)
    params = param_table(spec)
    checkpoint = iterate_params(spec, params, open_checkpoint(source))
    weights = load_weights(spec, params, checkpoint, getattr(torch, dtype), CPU, Ranks())
    for layer, ours in zip(oracle.model.layers, weights.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        torch.testing.assert_close(
            ours["qkv"].float(), torch.cat([each.weight for each in qkv]), rtol=0, atol=0
        )
        torch.testing.assert_close(ours["qkv_bias"].float(), torch.cat([each.bias for each in qkv]))
        torch.testing.assert_close(ours["o"].float(), attention.o_proj.weight, rtol=0, atol=0)
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        torch.testing.assert_close(ours["gate_up"].float(), gate_up, rtol=0, atol=0)
        torch.testing.assert_close(ours["down"].float(), mlp.down_proj.weight, rtol=0, atol=0)
    numbers = sum(each.numel() for each in oracle.parameters())
    assert weights.num_bytes == numbers * getattr(torch, dtype).itemsize


@pytest.mark.parametrize("name", ["gemma3", "llama-biased"])
def test_dummy_weights_are_small_and_of_the_seed(name: str, tmp_path: Path) -> None:
    save_tiny_model(name, tmp_path)
    spec = read_spec(ModelSource(str(tmp_path), "hf", "tiny"))
    first, again, other = (
        dummy_weights(spec, param_table(spec), seed, torch.float32, CPU, Ranks()) for seed in (1, 1, 2)
    )
    torch.testing.assert_close(first.layers[0]["qkv"], again.layers[0]["qkv"])
    assert (first.layers[0]["qkv"] != other.layers[0]["qkv"]).any()
    assert (first.layers[0]["qkv"] != first.layers[1]["qkv"]).any()
    assert 0.01 < first.layers[0]["gate_up"].std() < 0.03
    assert (first.outer["final_norm"] == 1 - spec.norm_offset).all()
