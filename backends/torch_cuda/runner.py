"""The PyTorch model runner: plans in, tokens out, on an NVIDIA or AMD GPU or on the CPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.batch import ScheduleBatch, StepTokens
from ...engine.config import Choice, EngineConfig
from ...engine.runner import ModelInfo
from ..models.spec import ModelSpec
from .decoder import Decoder
from .forward_batch import Layout, pack_pinned
from .loader import Weights
from .operations import operations_for
from .pages import capacity_of, choose_pool, empty_state
from .sampler import Sampled
from .step import Step


@dataclass(frozen=True, slots=True)
class _Pending:
    """A launched step: host arrays that the device may still be filling, until `done`."""

    arrays: dict[str, Tensor]
    done: torch.cuda.Event | None

    def result(self) -> StepTokens:
        if self.done is not None:
            self.done.synchronize()
        return StepTokens(**{name: array.numpy() for name, array in self.arrays.items()})


class TorchRunner:
    """Runs a decoder on one device. `config` must be resolved: no option left to choose."""

    def __init__(
        self, config: EngineConfig, info: ModelInfo, spec: ModelSpec, weights: Weights, device: torch.device,
        choices: tuple[Choice, ...] = (),
    ) -> None:  # fmt: skip
        pool = choose_pool(config, info, spec, weights.num_bytes, device)
        self.choices: tuple[Choice, ...] = (*choices, pool)
        self.capacity = capacity_of(config, int(str(pool.value)))
        self._device = device
        operations = operations_for(device)
        decoder = Decoder(spec, weights, info.context_length, operations)
        state = empty_state(spec, getattr(torch, config.kv_cache_dtype), self.capacity, device)
        self._step: Step | None = Step(decoder, state, operations)

    def warmup(self) -> None:
        """Nothing to compile on a CPU."""

    @torch.inference_mode()
    def forward(self, batch: ScheduleBatch) -> _Pending:
        """Launch a step."""
        assert self._step is not None, "the runner is closed"
        layout = Layout.exact(batch, self.capacity)
        packed = pack_pinned(layout, batch, self._device).to(self._device, non_blocking=True)
        on_device = layout.unpack(packed)
        sampled = self._step.sample(self._step.hidden(on_device), on_device, batch.variant)
        return self._pending(sampled, len(batch.sampled))

    def close(self) -> None:
        """Drop weights and pool."""
        self._step = None

    def _pending(self, sampled: Sampled, count: int) -> _Pending:
        """Copy to the host what was sampled, without waiting for it."""
        if self._device.type == "cpu":
            return _Pending(sampled, None)
        host = {
            name: torch.empty_like(array[:count], device="cpu", pin_memory=True).copy_(
                array[:count], non_blocking=True
            )
            for name, array in sampled.items()
        }
        done = torch.cuda.Event()
        done.record()
        return _Pending(host, done)
