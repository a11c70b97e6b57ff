"""Automatic choices: the value and the reason for each, on each kind of machine."""

from dataclasses import fields, replace
from typing import Any

import pytest

from radixmesh.backends.hardware import Hardware
from radixmesh.backends.resolve import resolve
from radixmesh.engine.config import Choice, EngineConfig
from radixmesh.engine.errors import ConfigError
from radixmesh.engine.runner import ModelInfo

GIB = 1024**3
CPU = Hardware(
    platform="cpu",
    kind="AMD EPYC",
    count=1,
    cores=2,
    memory_bytes=24 * GIB,
    free_bytes=20 * GIB,
    reason="no accelerator",
)
TPU = replace(CPU, platform="tpu", kind="TPU v5e", count=4, driver="0.0.52", reason="4 chips")
CUDA = replace(
    CPU, platform="cuda", kind="NVIDIA H100", count=1, driver="580.65", reason="nvidia-smi lists 1"
)
ROCM = replace(CPU, platform="rocm", kind="AMD GPU gfx942", count=8, driver="6.12", reason="/sys lists 8")
INFO = ModelInfo(
    name="tiny", path="/models/tiny", vocab_size=256, context_length=2048, eos_token_ids=frozenset({0})
)
GPUS = (replace(CUDA, torch="2.11.0+cu130"), replace(ROCM, torch="2.11.0+rocm7.0"))
RESOLVED = (
    "backend",
    "dtype",
    "kv_cache_dtype",
    "context_length",
    "page_size",
    "chunked_prefill_size",
    "max_running_requests",
    "mem_fraction_static",
)


def choose(hardware: Hardware = CPU, **options: Any) -> dict[str, Choice]:
    config, choices = resolve(EngineConfig(**options), INFO, hardware)
    for choice in choices:  # what is said is what is done
        assert getattr(config, choice.name) == choice.value
        assert choice.reason
    return {choice.name: choice for choice in choices}


@pytest.mark.parametrize("hardware", [CPU, TPU, CUDA, ROCM])
def test_nothing_stays_automatic_but_the_pool(hardware: Hardware) -> None:
    config, choices = resolve(EngineConfig(), INFO, hardware)
    assert tuple(choice.name for choice in choices) == RESOLVED
    assert all(getattr(config, name) not in (None, "auto") for name in RESOLVED)
    assert config.max_total_tokens is None
    untouched = [option.name for option in fields(config) if option.name not in RESOLVED]
    assert all(getattr(config, name) == getattr(EngineConfig(), name) for name in untouched)


def test_resolving_twice_changes_nothing() -> None:
    once, _ = resolve(EngineConfig(), INFO, CPU)
    twice, choices = resolve(once, INFO, TPU)
    assert twice == once
    assert {choice.reason for choice in choices} == {"as asked"}


@pytest.mark.parametrize(
    ("hardware", "reason"),
    [
        (CPU, "only a CPU is here, AMD EPYC (no accelerator)"),
        (TPU, "4 x TPU v5e is here (4 chips)"),
        (
            replace(TPU, driver=None),
            "4 x TPU v5e is here, but the package libtpu is not, so jax runs on the CPU; install jax[tpu]",
        ),
        (CUDA, "1 x NVIDIA H100 is here, but the package torch is not, so jax runs on the CPU"),
        (
            replace(ROCM, torch="2.13.0+cpu"),
            "8 x AMD GPU gfx942 is here, but torch 2.13.0+cpu is a build for CPUs, so jax runs on the CPU",
        ),
    ],
)
def test_backend_auto(hardware: Hardware, reason: str) -> None:
    assert choose(hardware)["backend"] == Choice("backend", "jax", reason)


@pytest.mark.parametrize(
    ("hardware", "reason"),
    [
        (GPUS[0], "1 x NVIDIA H100 is here (nvidia-smi lists 1)"),
        (GPUS[1], "8 x AMD GPU gfx942 is here (/sys lists 8)"),
    ],
)
def test_backend_auto_on_a_gpu(hardware: Hardware, reason: str) -> None:
    assert choose(hardware)["backend"] == Choice("backend", "torch", reason)


@pytest.mark.parametrize(
    ("hardware", "reason"),
    [
        (GPUS[0], "as asked"),
        (replace(CPU, torch="2.13.0+cpu"), "as asked; no GPU is here, so it runs on the CPU"),
        (
            replace(CUDA, torch="2.13.0+cpu"),
            "as asked; torch 2.13.0+cpu is a build for CPUs, so it runs on the CPU",
        ),
    ],
)
def test_torch_as_asked(hardware: Hardware, reason: str) -> None:
    chosen = choose(hardware, backend="torch")
    assert chosen["backend"] == Choice("backend", "torch", reason)
    assert chosen["dtype"].value == ("float32" if "CPU" in reason else "bfloat16")


def test_torch_without_its_package_is_refused() -> None:
    with pytest.raises(ConfigError, match="backend is torch, but the package torch is not installed"):
        choose(CPU, backend="torch")


@pytest.mark.parametrize("backend", ["jax", "fake"])
def test_backend_as_asked(backend: str) -> None:
    assert choose(CUDA, backend=backend)["backend"] == Choice("backend", backend, "as asked")


def test_automatic_values_on_a_cpu() -> None:
    for hardware in (CPU, CUDA, ROCM, replace(TPU, driver=None)):
        values = {name: choice.value for name, choice in choose(hardware).items()}
        assert values == {
            "backend": "jax",
            "dtype": "float32",
            "kv_cache_dtype": "float32",
            "context_length": 2048,
            "page_size": 16,
            "chunked_prefill_size": 512,
            "max_running_requests": 64,
            "mem_fraction_static": 0.6,
        }


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("hardware", GPUS)
def test_automatic_values_on_a_gpu(hardware: Hardware, backend: str) -> None:
    values = {name: choice.value for name, choice in choose(hardware, backend=backend).items()}
    assert values == {
        "backend": "torch",
        "dtype": "bfloat16",
        "kv_cache_dtype": "bfloat16",
        "context_length": 2048,
        "page_size": 64,
        "chunked_prefill_size": 8192,
        "max_running_requests": 256,
        "mem_fraction_static": 0.9,
    }


@pytest.mark.parametrize("memory, rows", [(24, 256), (48, 256), (80, 512), (192, 512), (None, 256)])
def test_a_gpu_of_much_memory_runs_more_requests(memory: int | None, rows: int) -> None:
    gpu = replace(GPUS[0], device_memory_bytes=None if memory is None else memory << 30)
    assert choose(gpu, backend="torch")["max_running_requests"].value == rows


@pytest.mark.parametrize("backend", ["auto", "jax"])
def test_automatic_values_on_a_tpu(backend: str) -> None:
    values = {name: choice.value for name, choice in choose(TPU, backend=backend).items()}
    assert values == {
        "backend": "jax",
        "dtype": "bfloat16",
        "kv_cache_dtype": "bfloat16",
        "context_length": 2048,
        "page_size": 64,
        "chunked_prefill_size": 2048,
        "max_running_requests": 256,
        "mem_fraction_static": 0.9,
    }


def test_fake_backend_is_never_on_a_tpu() -> None:
    assert choose(TPU, backend="fake")["dtype"].value == "float32"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "bfloat16"),
        ("kv_cache_dtype", "bfloat16"),
        ("context_length", 100),
        ("context_length", 2048),
        ("page_size", 1),
        ("page_size", 256),
        ("chunked_prefill_size", 100),
        ("max_running_requests", 3),
        ("mem_fraction_static", 0.3),
    ],
)
def test_given_values_stay(name: str, value: Any) -> None:
    assert choose(CPU, **{name: value})[name] == Choice(name, value, "as asked")


def test_kv_cache_dtype_follows_the_given_dtype() -> None:
    assert choose(dtype="bfloat16")["kv_cache_dtype"].value == "bfloat16"
    assert choose(TPU, dtype="float32")["kv_cache_dtype"].value == "float32"


@pytest.mark.parametrize("context_length", [2049, 10**9])
def test_context_longer_than_the_models_is_refused(context_length: int) -> None:
    with pytest.raises(ConfigError, match=f"context_length is {context_length}; accepted is at most 2048"):
        choose(context_length=context_length)


@pytest.mark.parametrize("page_size", [3, 12, 255, 257, 512])
def test_page_size_must_be_a_power_of_two(page_size: int) -> None:
    with pytest.raises(
        ConfigError, match=f"page_size is {page_size}; accepted is a power of two from 1 to 256"
    ):
        choose(page_size=page_size)


def test_more_rows_than_tokens_are_refused_and_both_are_named() -> None:
    message = "max_running_requests is 65 and chunked_prefill_size is 64"
    with pytest.raises(ConfigError, match=message):
        choose(max_running_requests=65, chunked_prefill_size=64)
    choose(max_running_requests=64, chunked_prefill_size=64)


def test_the_automatic_one_gives_way() -> None:
    few_tokens = choose(chunked_prefill_size=16)["max_running_requests"]
    assert few_tokens == Choice("max_running_requests", 16, "no more rows than chunked_prefill_size")
    many_rows = choose(max_running_requests=1000)["chunked_prefill_size"]
    assert many_rows == Choice("chunked_prefill_size", 1000, "one token for each of max_running_requests")
    assert choose(TPU, max_running_requests=1000)["chunked_prefill_size"].value == 2048


def test_chunks_may_be_smaller_than_a_page() -> None:
    assert choose(chunked_prefill_size=8, page_size=64)["chunked_prefill_size"].value == 8


def test_pool_smaller_than_a_page_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_total_tokens is 15; accepted is at least one page, 16 tokens"):
        choose(max_total_tokens=15)
    config, _ = resolve(EngineConfig(max_total_tokens=16), INFO, CPU)
    assert config.max_total_tokens == 16


def test_torch_in_several_groups_is_refused() -> None:
    with pytest.raises(ConfigError, match="dp_size is 2; the torch backend serves one group"):
        choose(replace(CPU, torch="2.13.0+cpu"), backend="torch", dp_size=2)
    choose(replace(CPU, torch="2.13.0+cpu"), backend="torch", tp_size=2)


@pytest.mark.parametrize(
    ("backend", "option", "said"),
    [
        ("jax", {"strict_kernels": True}, "strict_kernels is on; it is for the kernels of backend=torch"),
        ("torch", {"compilation_cache_dir": "/somewhere"}, "are for backend=jax"),
        ("torch", {"disable_compilation_cache": True}, "are for backend=jax"),
    ],
)
def test_an_option_of_the_other_backend_is_refused(backend: Any, option: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(EngineConfig(backend=backend, **option), INFO, GPUS[0])
