"""What the contract does not see: a decode step as a captured graph would run it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from radixmesh.backends.registry import create_runner, describe_model
from radixmesh.backends.torch_cuda.forward_batch import Layout, pack_pinned
from radixmesh.backends.torch_cuda.runner import TorchRunner
from radixmesh.backends.torch_cuda.warm_batches import chunks_batch
from radixmesh.engine.batch import SamplingVariant
from radixmesh.engine.config import EngineConfig
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> TorchRunner:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model("gemma3", Path(folder))
    config = EngineConfig(
        model_path=str(folder), backend="torch", dtype="float32", page_size=4, max_total_tokens=80,
        max_running_requests=8, chunked_prefill_size=32,
    )  # fmt: skip
    made = create_runner(config, describe_model(config))
    assert isinstance(made, TorchRunner)
    return made


@pytest.mark.parametrize("variant", [SamplingVariant.GREEDY, SamplingVariant.SAMPLE])
def test_a_bucket_says_what_the_exact_step_says(runner: TorchRunner, variant: SamplingVariant) -> None:
    """Three rows in a bucket of eight, whose array still holds what another step left."""
    step, capacity = runner._step, runner.capacity
    assert step is not None
    rng = np.random.default_rng(0)
    prompt = chunks_batch([5, 7, 9], capacity)
    prompt.token_ids[:] = rng.integers(3, 160, len(prompt.token_ids))
    decode = chunks_batch([6, 8, 10], capacity, variant)
    last = decode.cu_q_lens[1:] - 1
    decode = replace(
        decode,
        num_decode_rows=3,
        token_ids=np.array([-1, -2, -3], np.int32),
        positions=decode.positions[last],
        kv_slots=decode.kv_slots[last],
        cu_q_lens=np.arange(4, dtype=np.int32),
        logits_positions=np.arange(3, dtype=np.int32),
    )

    runner.forward([prompt]).result()
    want = runner.forward([decode]).result()[0].token_ids
    want_slots = step.state.slots.clone()

    runner.forward([prompt]).result()
    layout = Layout.decode(8, variant, capacity)
    static = torch.full((layout.size(),), 2, dtype=torch.int32)  # pages and slots that exist
    packed = pack_pinned(layout, decode, static.device)
    static[: len(packed)] = packed
    batch = layout.unpack(static)
    sampled = step.sample(step.logits(step.hidden(batch), batch), batch, variant)
    np.testing.assert_array_equal(sampled["token_ids"][:3].numpy(), want)
    np.testing.assert_array_equal(step.state.slots[:8].numpy(), want_slots[:8].numpy())
