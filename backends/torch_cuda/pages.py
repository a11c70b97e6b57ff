"""The KV pool on the device: how large it can be, and what lies in it."""

from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from ...engine.config import Choice, EngineConfig
from ...engine.errors import ConfigError
from ...engine.runner import ModelInfo, RunnerCapacity
from ..models.spec import ModelSpec
from .ranks import Ranks

GIB = 1 << 30


class DeviceState(NamedTuple):
    """What a step changes, in place. One page and one slot more than the engine knows of take the
    writes of padding."""

    kv_pages: Tensor  # [layers * (pages + 1), kv_heads, page_size, 2 * head_dim]
    page_tokens: Tensor  # [(pages + 1) * page_size] int32, the token id behind each KV entry
    slots: Tensor  # [max_running_requests + 1] int32, the newest token of each running request


def empty_state(
    spec: ModelSpec, dtype: torch.dtype, capacity: RunnerCapacity, device: torch.device
) -> DeviceState:
    """Pages and slots of zeros: a kernel may multiply what no row has written, and 0 * nan is not 0."""
    pages, size = capacity.num_pages + 1, capacity.page_size
    kv_shape = (spec.num_layers * pages, spec.num_kv_heads, size, 2 * spec.head_dim)
    return DeviceState(
        torch.zeros(kv_shape, dtype=dtype, device=device),
        torch.zeros(pages * size, dtype=torch.int32, device=device),
        torch.zeros(capacity.max_running_requests + 1, dtype=torch.int32, device=device),
    )


def choose_pool(
    config: EngineConfig, info: ModelInfo, spec: ModelSpec, weight_bytes: int, device: torch.device,
    ranks: Ranks,
) -> Choice:  # fmt: skip
    """Tokens in the pool, the same on all ranks. Raises ConfigError when the weights leave no room for a
    page. spec: what a rank holds."""
    assert config.mem_fraction_static is not None and config.max_running_requests is not None
    assert config.page_size is not None
    itemsize = getattr(torch, config.kv_cache_dtype).itemsize
    token_bytes = spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim * itemsize + 4
    free = free_memory(device) // (ranks.size if device.type == "cpu" else 1)
    if config.max_total_tokens is not None:
        if config.max_total_tokens * token_bytes > free:
            raise ConfigError(
                f"max_total_tokens is {config.max_total_tokens}, which take"
                f" {config.max_total_tokens * token_bytes / GIB:.2f} GiB; {free / GIB:.2f} GiB are free here,"
                f" accepted is less than {free // token_bytes}"
            )
        return Choice("max_total_tokens", config.max_total_tokens, "as asked")
    budget = int(config.mem_fraction_static * (free + weight_bytes))
    fitting = ranks.least((budget - weight_bytes) // token_bytes, device)
    if fitting < config.page_size:
        need = (weight_bytes + config.page_size * token_bytes) / GIB
        raise ConfigError(
            f"mem_fraction_static is {config.mem_fraction_static}, which is {budget / GIB:.2f} GiB here; the"
            f" weights and one page of {config.page_size} tokens take {need:.2f} GiB, so"
            f" {need - budget / GIB:.2f} GiB are missing; raise it, or serve a smaller model"
        )
    useful = config.max_running_requests * info.context_length
    tokens = min(fitting, useful) // config.page_size * config.page_size
    bound = (
        f"{config.mem_fraction_static:.2f} of the {(free + weight_bytes) / GIB:.1f} GiB that"
        f" were free, less {weight_bytes / GIB:.2f} GiB of weights; the rest is for a step's intermediate"
        " results and captured graphs"
        if fitting < useful
        else "every running request at full context"
    )
    return Choice("max_total_tokens", tokens, f"{tokens * token_bytes / GIB:.2f} GiB of KV: {bound}")


def free_memory(device: torch.device) -> int:
    """Bytes that are free now on a GPU, or on the host."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def capacity_of(config: EngineConfig, tokens: int) -> RunnerCapacity:
    """The limits of a runner whose pool has so many tokens."""
    assert config.page_size and config.max_running_requests and config.chunked_prefill_size
    num_pages = max(tokens // config.page_size, 1)
    return RunnerCapacity(
        num_pages=num_pages,
        page_size=config.page_size,
        max_running_requests=config.max_running_requests,
        max_step_tokens=config.chunked_prefill_size,
        # rows that share a prefix list its pages once each, so a step may name more pages than exist
        max_page_indices=2 * num_pages + config.max_running_requests,
        reads_shared_pages_once=True,
    )
