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

Device = Literal["cpu", "tpu"]  # where the model will run, which need not be the best that is here


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
    steps = _step_sizes(config, device)
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
    return resolved, choices


def jax_device(hardware: Hardware) -> Device:
    """What jax will run on: a TPU needs its library, and GPUs are not served yet."""
    return "tpu" if hardware.platform == "tpu" and hardware.driver is not None else "cpu"


def _backend(config: EngineConfig, hardware: Hardware) -> tuple[Choice, Device]:
    """The backend, and the device that it will run on."""
    seen = f"{hardware.count} x {hardware.kind}" if hardware.platform != "cpu" else hardware.kind
    if config.backend == "fake":
        return Choice("backend", "fake", "as asked"), "cpu"
    if config.backend == "jax":
        return Choice("backend", "jax", "as asked"), jax_device(hardware)
    if jax_device(hardware) == "tpu":
        return Choice("backend", "jax", f"{seen} is here ({hardware.reason})"), "tpu"
    if hardware.platform == "tpu":
        reason = f"{seen} is here, but the package libtpu is not, so jax runs on the CPU; install jax[tpu]"
    elif hardware.platform == "cpu":
        reason = f"only a CPU is here, {seen} ({hardware.reason})"
    else:
        reason = (
            f"{seen} is here ({hardware.reason}), but there is no GPU backend yet, so jax runs on the CPU"
        )
    return Choice("backend", "jax", reason), "cpu"


def _dtype(config: EngineConfig, device: Device) -> Choice:
    if config.dtype != "auto":
        return Choice("dtype", config.dtype, "as asked")
    if device == "tpu":
        return Choice("dtype", "bfloat16", "the TPU's matrix units take bfloat16")
    reason = "XLA's CPU path for bfloat16 is slower than float32, and float32 equals the reference"
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
    reason = "small pages share more of a prefix, and a CPU gains nothing from larger ones"
    return Choice("page_size", 16, reason)


def _step_sizes(config: EngineConfig, device: Device) -> tuple[Choice, Choice]:
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
    return Choice("mem_fraction_static", 0.6, "the host's memory is shared with every other process")


def _check_pool(config: EngineConfig) -> None:
    tokens, page = config.max_total_tokens, config.page_size
    if tokens is not None and page is not None and tokens < page:
        raise ConfigError(f"max_total_tokens is {tokens}; accepted is at least one page, {page} tokens")
