"""Kernels that are compiled before their first launch: that none is missed, and what becomes of failures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from radixmesh.backends.models.describe import read_spec
from radixmesh.backends.models.families.registry import param_table
from radixmesh.backends.models.source import ModelSource
from radixmesh.backends.torch_cuda import compile_ahead
from radixmesh.backends.torch_cuda.decoder import Decoder
from radixmesh.backends.torch_cuda.forward_batch import Layout, pack_pinned
from radixmesh.backends.torch_cuda.loader import dummy_weights
from radixmesh.backends.torch_cuda.operations import operations_for
from radixmesh.backends.torch_cuda.pages import capacity_of, empty_state
from radixmesh.backends.torch_cuda.ranks import Ranks
from radixmesh.backends.torch_cuda.sampler import Masks
from radixmesh.backends.torch_cuda.step import Step
from radixmesh.backends.torch_cuda.warm_batches import chunks_batch
from radixmesh.engine.batch import SamplingVariant
from radixmesh.engine.config import EngineConfig
from radixmesh.engine.runner import ModelInfo
from radixmesh.kernels.embedding import triton as embedding
from radixmesh.kernels.gated_activation import triton as gated_activation
from radixmesh.kernels.linear import triton as linear
from radixmesh.kernels.paged_attention import triton as paged_attention
from radixmesh.kernels.rms_norm import triton as rms_norm
from radixmesh.kernels.rope_kv_write import triton as rope_kv_write
from radixmesh.kernels.tuning import OPTIONS, Target
from tests.tiny_models import save_tiny_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
INFO = ModelInfo("tiny", "", 160, 256, frozenset())
CONFIG = EngineConfig(
    model_path="", dtype="bfloat16", kv_cache_dtype="bfloat16", page_size=8, max_running_requests=40,
    chunked_prefill_size=96,
)  # fmt: skip
Seen = set[tuple[Any, ...]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What launches on an H100 would have to be compiled: nothing is, and nothing runs."""
    found: Seen = set()

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False)) | options
        if kernel.__name__ == "_pick":
            given["token_ids"].zero_()  # what it would write; PyTorch looks tokens up
        kinds = [(each.name, _kind(each, given.pop(each.name))) for each in kernel.params]
        found.add((kernel.__name__, *kinds, *sorted(given.items())))

    monkeypatch.setattr(JITFunction, "run", record)
    for module in (embedding, gated_activation, linear, paged_attention, rms_norm, rope_kv_write):
        monkeypatch.setattr(module, "target_of", lambda device: Target("sm_90", 132))
    monkeypatch.setattr(compile_ahead, "operations_for", lambda device, strict: operations_for(GPU, strict))
    return found


def _kind(param: Any, value: Any) -> Any:
    """What Triton compiles an argument for, by its documentation of specialization."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if param.is_constexpr:
        return value
    if isinstance(value, int) and not param.do_not_specialize:
        return value if value == 1 else value % 16 == 0
    return type(value)


@pytest.mark.parametrize("name", ["llama", "llama-biased", "qwen2-window", "qwen3", "gemma3"])
def test_no_step_launches_what_was_not_compiled(name: str, tmp_path: Path, seen: Seen) -> None:
    """Prefill, decode and both, of any number of rows, every variant, with masks and without."""
    save_tiny_model(name, tmp_path)
    spec = read_spec(ModelSource(str(tmp_path), "hf", "tiny"))
    params, ranks = param_table(spec), Ranks()
    compile_ahead.take_steps(CONFIG, INFO, spec, params, CPU, ranks)
    compiled = seen.copy()
    seen.clear()
    capacity = capacity_of(CONFIG, 640)
    operations = operations_for(GPU, strict=True)
    weights = dummy_weights(spec, params, 0, torch.bfloat16, CPU, ranks)
    state = empty_state(spec, torch.bfloat16, capacity, CPU)
    step = Step(Decoder(spec, weights, 256, operations, ranks), state, operations)
    for lengths, decode_rows in _steps():
        for variant in SamplingVariant:
            batch = replace(chunks_batch(lengths, capacity, variant), num_decode_rows=decode_rows)
            layout = Layout.exact(batch, capacity)
            on_device = layout.unpack(pack_pinned(layout, batch, CPU))
            logits = step.logits(step.hidden(on_device), on_device)
            step.sample(logits, on_device, variant)
            step.sample(logits, on_device, variant, Masks(torch.tensor([0]), torch.full((1, 5), -1)))
    for rows in (1, 5, 17, 33, 40):  # that share pages
        layout = Layout.decode(rows, SamplingVariant.GREEDY, capacity, shares=True)
        step.hidden(layout.unpack(pack_pinned(layout, chunks_batch([], capacity), CPU)))
    assert len(compiled) > 15 and seen <= compiled


def _steps() -> Iterator[tuple[list[int], int]]:
    for rows in (1, 2, 3, 16, 17, 32, 33, 40):
        yield [1] * rows, rows
        yield [2] * rows, 0
        yield [1] * (rows - 1) + [7], rows - 1
    yield [96], 0
    yield [1, 90, 5], 1


def test_steps_of_a_rank_need_no_other(tmp_path: Path, seen: Seen) -> None:
    """There is no process group here."""
    save_tiny_model("llama", tmp_path)
    spec = read_spec(ModelSource(str(tmp_path), "hf", "tiny"))
    compile_ahead.take_steps(CONFIG, INFO, spec, param_table(spec), CPU, Ranks(1, 2))
    assert len(seen) > 15 and "_sum" not in {each[0] for each in seen}


@triton.jit
def _doubled(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, 2 * tl.load(x + at))


@pytest.fixture
def absent_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Triton compiles for an H100 that is not here, into an empty cache. Returns the kernels as they come."""
    found: list[str] = []
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 227 << 10},
        load_binary=lambda *given: (1, 1, 0, 0, 1024),
        unload_module=lambda module: None,
    )
    there = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=lambda source, metadata: lambda *given: None,
        utils=utils,
    )
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda *, src, **given: found.append(src.name))
    monkeypatch.setattr(driver, "_active", there)  # set_active's opposite looks for a GPU
    return found


def test_threads_compile_and_a_failure_is_met_again_at_the_launch(absent_gpu: list[str]) -> None:
    x, bad = torch.empty(64), 48  # not a power of two, as tl.arange must have
    compilers = compile_ahead.Compilers(GPU, 2)
    with compilers.instead_of_launches():
        for size in (16, 32, bad, 32):
            _doubled[(1,)](x, x, SIZE=size, **OPTIONS)
        assert absent_gpu == []
    compilers.wait(quiet=True)
    compilers.close()
    assert [each.result() for each in compilers.kernels] == [True, True, False]
    assert absent_gpu == ["_doubled"] * 2
    _doubled[(1,)](x, x, SIZE=32, **OPTIONS)
    assert len(absent_gpu) == 2  # compiled before
    with pytest.raises(CompilationError):
        _doubled[(1,)](x, x, SIZE=bad, **OPTIONS)
    assert triton.knobs.runtime.jit_cache_hook is None


def test_a_cpu_compiles_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with compile_ahead.compile_ahead(CONFIG, INFO, None, (), CPU, Ranks()):  # type: ignore[arg-type]
        pass
    assert capsys.readouterr().err == ""
