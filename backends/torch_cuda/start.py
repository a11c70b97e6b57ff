"""From a resolved config to a runner: the device, this rank's weights, and the other ranks' processes."""

import math

import torch

from ...engine.config import Choice, EngineConfig
from ...engine.errors import ConfigError
from ...engine.runner import ModelInfo, ModelRunner
from ..hardware import Hardware
from ..models.checkpoint import open_checkpoint
from ..models.describe import read_spec
from ..models.families.registry import param_table
from ..models.params import ParamSpec
from ..models.source import source_of
from ..models.spec import ModelSpec
from ..models.weights import iterate_params
from ..resolve import torch_device
from .compile_ahead import compile_ahead
from .loader import dummy_weights, load_weights
from .pages import GIB, free_memory
from .ranked_runner import RankedRunner
from .ranks import Ranks
from .runner import TorchRunner


def start_runner(
    config: EngineConfig, info: ModelInfo, hardware: Hardware, choices: tuple[Choice, ...]
) -> ModelRunner:
    """The runner that `config` asks for, its weights loaded. Raises ConfigError, ModelError."""
    if config.nnodes > 1:
        raise ConfigError(f"nnodes is {config.nnodes}; accepted for backend=torch is 1")
    on_gpu = torch_device(hardware) == "gpu"
    if on_gpu:
        _check_gpus(config, hardware)
    if orbax := source_of(info).orbax:
        raise ConfigError(f"backend is torch; {orbax} is an Orbax checkpoint, which backend=jax reads")
    Ranks(0, config.tp_size).held(read_spec(source_of(info)))  # refused before any process is started
    if config.tp_size == 1:
        return build_rank(config, info, Ranks(), on_gpu, choices)
    return RankedRunner(config, info, on_gpu, lambda ranks: build_rank(config, info, ranks, on_gpu, choices))


def build_rank(
    config: EngineConfig, info: ModelInfo, ranks: Ranks, on_gpu: bool, choices: tuple[Choice, ...] = ()
) -> TorchRunner:
    """One rank's runner; with several ranks their process group exists already."""
    device = torch.device("cuda", ranks.rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        choices = (*choices, *_choose_products())
    source = source_of(info)
    spec = read_spec(source)
    params = param_table(spec)
    dtype = getattr(torch, config.dtype)
    _check_room(config, info, _weight_bytes(spec, params, ranks, dtype), free_memory(device))
    with compile_ahead(config, info, spec, params, device, ranks):
        if config.load_format == "dummy":
            weights = dummy_weights(spec, params, config.random_seed or 0, dtype, device, ranks)
        else:
            stored = iterate_params(spec, params, open_checkpoint(source))
            weights = load_weights(spec, params, stored, dtype, device, ranks)
    runner = TorchRunner(config, info, spec, weights, device, choices, ranks)
    ranks.wait()
    return runner


def _choose_products() -> tuple[Choice, ...]:
    """Which of NVIDIA's libraries multiplies many rows: a setting of torch for the whole process."""
    if not torch.version.cuda:
        return ()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    reason = "of 128 rows it was up to 14% faster than cuBLAS's own choice, of 64, 256 and 512 about as fast"
    return (Choice("products", "cublaslt", reason),)


def _check_gpus(config: EngineConfig, hardware: Hardware) -> None:
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{hardware.kind} is here, but torch {hardware.torch} cannot use it (driver {hardware.driver});"
            " accepted is a build of PyTorch for that driver, or backend=jax"
        )
    if config.tp_size > torch.cuda.device_count():
        raise ConfigError(f"tp_size is {config.tp_size}; {torch.cuda.device_count()} GPUs are here")


def _check_room(config: EngineConfig, info: ModelInfo, need: int, free: int) -> None:
    """Raise ConfigError, before anything is loaded, if the weights alone are too much."""
    if need > free:
        raise ConfigError(
            f"the weights of {info.name} take {need / GIB:.2f} GiB in {config.dtype} on each of"
            f" {config.tp_size} devices, and {free / GIB:.2f} GiB are free: {(need - free) / GIB:.2f} GiB are"
            " missing; a smaller model would fit, or more devices (tp_size)"
        )


def _weight_bytes(spec: ModelSpec, params: tuple[ParamSpec, ...], ranks: Ranks, dtype: torch.dtype) -> int:
    """What a rank's weights take."""
    return dtype.itemsize * sum(
        math.prod(part.stop - part.start for part in ranks.cut(param))
        * (spec.num_layers if param.stacked else 1)
        for param in params
    )
