"""The ranks of tensor parallelism, one process each: who holds what, and what they tell each other."""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..models.params import ParamSpec
from ..models.partition import partition
from ..models.spec import ModelSpec

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # up to torch 2.12
_SUMMED_BIASES = ("o_bias", "down_bias")  # added to what is then summed over ranks


@dataclass(frozen=True)
class Ranks:
    """One of `size` ranks. With more than one, torch's default process group joins them.

    Heads and MLP features are split; every KV head is repeated where there are fewer than ranks. Each rank
    holds the whole embedding and its share of the rows of the output matrix.
    """

    rank: int = 0
    size: int = 1

    def held(self, spec: ModelSpec) -> ModelSpec:
        """`spec` as one rank sees it. Raises ConfigError for a size that does not come out even."""
        return replace(
            spec,
            num_heads=spec.num_heads // self.size,
            num_kv_heads=partition(spec, self.size).num_kv_heads // self.size,
            intermediate_size=spec.intermediate_size // self.size,
        )

    def cut(self, param: ParamSpec) -> tuple[slice, ...]:
        """This rank's part of a parameter of the whole model."""
        return tuple(
            self._part(axis, size) if param.name != "embed" else slice(0, size)
            for axis, size in zip(param.axes, param.shape, strict=True)
        )

    def adds(self, param: ParamSpec) -> bool:
        """Whether this rank has the parameter at all: a bias is added once, not by every rank."""
        return self.rank == 0 or param.name not in _SUMMED_BIASES

    def own_rows(self, embed: Tensor) -> Tensor:
        """The rows of a tied embedding [vocab, embed] whose logits this rank computes."""
        return embed[self._part("vocab", len(embed))]

    def join_logits(self, logits: Tensor, vocab: int) -> Tensor:
        """[n, vocab] from every rank's columns."""
        if self.size == 1:
            return logits
        columns = -(-vocab // self.size)
        if lacking := columns - logits.shape[1]:  # F.pad would copy even if there is none
            logits = F.pad(logits, (0, lacking))
        rows = len(logits)
        every = logits.new_empty(self.size * rows, columns)
        _all_gather(every, logits)
        whole = every.view(self.size, rows, columns).transpose(0, 1).reshape(rows, self.size * columns)
        return whole[:, :vocab]

    def least(self, value: int, device: torch.device) -> int:
        """The smallest of all ranks' values."""
        if self.size == 1:
            return value
        every = torch.tensor([value], device=device)
        dist.all_reduce(every, dist.ReduceOp.MIN)
        return int(every.item())

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    def _part(self, axis: str | None, size: int) -> slice:
        match axis:
            case "heads" | "mlp" | "vocab":
                each = -(-size // self.size)
                return slice(min(self.rank * each, size), min((self.rank + 1) * each, size))
            case "kv_heads":
                each = max(size // self.size, 1)
                first = self.rank * size // self.size
                return slice(first, first + each)
        return slice(0, size)
