"""Every automatic choice that can be made before weights are read, each with its reason.

`resolve` is the only place that turns None and "auto" into values; start-up prints what it returns.
The KV pool's size is not here: a runner chooses it from the memory that is free after loading.
"""

from dataclasses import replace
from typing import Any, Literal

from ..engine.config import Choice, EngineConfig
from ..engine.errors import ConfigError
from ..engine.runner import ModelInfo
from .hardware import Hardware

MAX_PAGE_SIZE = 256  # tokens; larger pages share next to no prefix

Device = Literal["cpu", "tpu", "gpu"]  # where the model will run, which need not be the best that is here


def resolve(
    config: EngineConfig, info: ModelInfo, hardware: Hardware
) -> tuple[EngineConfig, tuple[Choice, ...]]:
    """Make every automatic option concrete but max_total_tokens, which the runner finds out.

    An option that the user gave stays as it is, with the reason "as asked". Returns the new config
    and one Choice for each option in question. Raises ConfigError for a value that cannot be honoured and
    for options that contradict each other, naming them.
    """
    backend, device = _backend(config, hardware)
    dtype = _dtype(config, device)
    steps = _step_sizes(config, device, hardware.device_memory_bytes)
    choices = (
        backend,
        dtype,
        _kv_cache_dtype(config, dtype),
        _context_length(config, info),
        _page_size(config, device),
        *steps,
        _mem_fraction_static(config, device),
    )
    values: dict[str, Any] = {choice.name: choice.value for choice in choices}
    resolved = replace(config, **values)
    _check_pool(resolved)
    _check_backends_options(resolved)
    return resolved, choices


def jax_device(hardware: Hardware) -> Literal["cpu", "tpu"]:
    """What jax will run on: a TPU needs its library, and GPUs are torch's."""
    return "tpu" if hardware.platform == "tpu" and hardware.driver is not None else "cpu"


def torch_device(hardware: Hardware) -> Literal["cpu", "gpu"]:
    """What torch will run on: a GPU needs a build of PyTorch for it."""
    built = hardware.torch is not None and not hardware.torch.endswith("+cpu")
    return "gpu" if hardware.platform in ("cuda", "rocm") and built else "cpu"


def _backend(config: EngineConfig, hardware: Hardware) -> tuple[Choice, Device]:
    """The backend, and the device that it will run on."""
    if config.backend == "fake":
        return Choice("backend", "fake", "as asked"), "cpu"
    if config.backend == "jax":
        return Choice("backend", "jax", "as asked"), jax_device(hardware)
    if config.backend == "torch":
        return _asked_torch(hardware)
    seen = f"{hardware.count} x {hardware.kind}" if hardware.platform != "cpu" else hardware.kind
    if jax_device(hardware) == "tpu":
        return Choice("backend", "jax", f"{seen} is here ({hardware.reason})"), "tpu"
    if torch_device(hardware) == "gpu":
        return Choice("backend", "torch", f"{seen} is here ({hardware.reason})"), "gpu"
    if hardware.platform == "tpu":
        reason = f"{seen} is here, but the package libtpu is not, so jax runs on the CPU; install jax[tpu]"
    elif hardware.platform == "cpu":
        reason = f"only a CPU is here, {seen} ({hardware.reason})"
    else:
        reason = f"{seen} is here, but {_no_gpu_torch(hardware)}, so jax runs on the CPU"
    return Choice("backend", "jax", reason), "cpu"


def _asked_torch(hardware: Hardware) -> tuple[Choice, Device]:
    if hardware.torch is None:
        raise ConfigError(
            "backend is torch, but the package torch is not installed; accepted is jax, or torch after"
            " pip install 'radixmesh[torch]'"
        )
    device = torch_device(hardware)
    reason = "as asked"
    if device == "cpu":
        missing = "no GPU is here" if hardware.platform in ("cpu", "tpu") else _no_gpu_torch(hardware)
        reason = f"as asked; {missing}, so it runs on the CPU"
    return Choice("backend", "torch", reason), device


def _no_gpu_torch(hardware: Hardware) -> str:
    if hardware.torch is None:
        return "the package torch is not"
    return f"torch {hardware.torch} is a build for CPUs"


def _dtype(config: EngineConfig, device: Device) -> Choice:
    if config.dtype != "auto":
        return Choice("dtype", config.dtype, "as asked")
    if device == "tpu":
        return Choice("dtype", "bfloat16", "the TPU's matrix units take bfloat16")
    if device == "gpu":
        return Choice("dtype", "bfloat16", "the GPU's matrix units take bfloat16, and it halves what is read")
    reason = "a CPU's bfloat16 is slower than its float32, and float32 equals the reference"
    return Choice("dtype", "float32", reason)


def _kv_cache_dtype(config: EngineConfig, dtype: Choice) -> Choice:
    if config.kv_cache_dtype != "auto":
        return Choice("kv_cache_dtype", config.kv_cache_dtype, "as asked")
    return Choice("kv_cache_dtype", dtype.value, "the same as dtype")


def _context_length(config: EngineConfig, info: ModelInfo) -> Choice:
    asked = config.context_length
    if asked is None:
        return Choice("context_length", info.context_length, "the model's own")
    if asked > info.context_length:
        raise ConfigError(
            f"context_length is {asked}; accepted is at most {info.context_length}, which is what"
            f" {info.name} was made for"
        )
    return Choice("context_length", asked, "as asked")


def _page_size(config: EngineConfig, device: Device) -> Choice:
    asked = config.page_size
    if asked is not None:
        if asked & (asked - 1) or asked > MAX_PAGE_SIZE:
            raise ConfigError(f"page_size is {asked}; accepted is a power of two from 1 to {MAX_PAGE_SIZE}")
        return Choice("page_size", asked, "as asked")
    if device == "tpu":
        return Choice("page_size", 64, "a page is one copy from HBM, and longer copies use its bandwidth")
    if device == "gpu":
        return Choice("page_size", 64, "longer reads use the memory's bandwidth, and page tables stay short")
    reason = "small pages share more of a prefix, and a CPU gains nothing from larger ones"
    return Choice("page_size", 16, reason)


def _step_sizes(config: EngineConfig, device: Device, memory: int | None) -> tuple[Choice, Choice]:
    """chunked_prefill_size and max_running_requests: every running row needs a token of a step's budget."""
    chunk, rows = config.chunked_prefill_size, config.max_running_requests
    if chunk is not None and rows is not None and rows > chunk:
        raise ConfigError(
            f"max_running_requests is {rows} and chunked_prefill_size is {chunk}; accepted is at most as"
            " many rows as a step has tokens"
        )
    if device == "tpu":
        auto_chunk, auto_rows = 2048, 256
        why_chunk = "enough tokens in a step to keep the matrix units busy"
        why_rows = "decode is bound by reading weights until about this many rows share them"
    elif device == "gpu":
        auto_chunk, auto_rows = 8192, 512 if (memory or 0) >= 64 << 30 else 256
        why_chunk = "enough tokens in a step to keep the matrix units busy"
        why_rows = "about as many as memory for their KV and reading the weights together make worthwhile"
    else:
        auto_chunk, auto_rows = 512, 64
        why_chunk = "a CPU needs about a second for as many, the longest that running requests wait"
        why_rows = "beyond this a CPU's step grows nearly as fast as its rows"

    if chunk is not None:
        chunk_choice = Choice("chunked_prefill_size", chunk, "as asked")
    elif rows is not None and rows > auto_chunk:
        chunk_choice = Choice("chunked_prefill_size", rows, "one token for each of max_running_requests")
    else:
        chunk_choice = Choice("chunked_prefill_size", auto_chunk, why_chunk)

    if rows is not None:
        return chunk_choice, Choice("max_running_requests", rows, "as asked")
    if chunk is not None and chunk < auto_rows:
        return chunk_choice, Choice("max_running_requests", chunk, "no more rows than chunked_prefill_size")
    return chunk_choice, Choice("max_running_requests", auto_rows, why_rows)


def _mem_fraction_static(config: EngineConfig, device: Device) -> Choice:
    if config.mem_fraction_static is not None:
        return Choice("mem_fraction_static", config.mem_fraction_static, "as asked")
    if device == "tpu":
        return Choice(
            "mem_fraction_static", 0.9, "the TPU's memory is the engine's alone; a step needs the rest"
        )
    if device == "gpu":
        return Choice(
            "mem_fraction_static",
            0.9,
            "the GPU's memory is the engine's alone; steps and graphs need the rest",
        )
    return Choice("mem_fraction_static", 0.6, "the host's memory is shared with every other process")


def _check_pool(config: EngineConfig) -> None:
    tokens, page = config.max_total_tokens, config.page_size
    if tokens is not None and page is not None and tokens < page:
        raise ConfigError(f"max_total_tokens is {tokens}; accepted is at least one page, {page} tokens")


def _check_backends_options(config: EngineConfig) -> None:
    """Raise ConfigError for an option that the chosen backend could only ignore."""
    if config.backend == "jax" and config.strict_kernels:
        raise ConfigError("strict_kernels is on; it is for the kernels of backend=torch, accepted is off")
    if config.backend == "torch" and (config.compilation_cache_dir or config.disable_compilation_cache):
        raise ConfigError(
            "compilation_cache_dir and disable_compilation_cache are for backend=jax; backend=torch keeps no"
            " such cache, accepted is neither"
        )
    if config.backend == "torch" and config.dp_size != 1:
        raise ConfigError(f"dp_size is {config.dp_size}; the torch backend serves one group, accepted is 1")
