"""The operations that have a kernel of ours, each with its PyTorch twin: chosen once, at start."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from ...kernels.embedding import torch_ref as embedding
from ...kernels.linear import torch_ref as linear
from ...kernels.paged_attention import torch_ref as paged_attention
from ...kernels.rms_norm import torch_ref as rms_norm
from ...kernels.rope_kv_write import torch_ref as rope_kv_write
from ...kernels.sampling import torch_ref as sampling

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operations:
    """One implementation of each; signatures and meaning stand in `kernels/*/torch_ref.py`."""

    embed: Callable[..., Any]
    ragged_paged_attention: Callable[..., Any]
    rope_and_write: Callable[..., Any]
    rms_norm: Callable[..., Any]
    linear: Callable[..., Any]
    greedy: Callable[..., Any]
    choose_tokens: Callable[..., Any]

    @property
    def twins(self) -> tuple[str, ...]:
        """Names of the operations that PyTorch runs, among them those whose kernel did not compile."""
        chosen = {each.name: getattr(self, each.name) for each in fields(self)}
        return tuple(
            name
            for name, kernel in chosen.items()
            if kernel is getattr(TWINS, name) or (isinstance(kernel, _WithTwin) and kernel.failed)
        )


TWINS = Operations(
    embedding.embed,
    paged_attention.ragged_paged_attention,
    rope_kv_write.rope_and_write,
    rms_norm.rms_norm,
    linear.linear,
    sampling.greedy,
    sampling.choose_tokens,
)


def operations_for(device: torch.device, strict: bool) -> Operations:
    """Triton kernels on a GPU, their twins on a CPU.

    A kernel that the installed Triton cannot compile is replaced by its twin, with a warning that names it,
    and so are all where there is no Triton; with `strict` the error is raised.
    """
    if device.type == "cpu":
        return TWINS
    if not strict and find_spec("triton") is None:
        logger.warning("the package triton is not installed; PyTorch runs every operation, much slower")
        return TWINS
    kernels: dict[str, Callable[..., Any]] = {}
    for each in fields(Operations):
        twin = getattr(TWINS, each.name)
        kernel = getattr(_triton_beside(twin), each.name)
        kernels[each.name] = kernel if strict else _WithTwin(kernel, twin)
    return replace(TWINS, **kernels)


def _triton_beside(twin: Callable[..., Any]) -> ModuleType:
    return import_module(".triton", twin.__module__.rpartition(".")[0])


class _WithTwin:
    """A kernel, until it fails to compile; from then on its twin."""

    def __init__(self, kernel: Callable[..., Any], twin: Callable[..., Any]) -> None:
        from triton.errors import TritonError

        self._kernel, self._twin, self._error = kernel, twin, TritonError
        self.failed = False

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.failed:
            return self._twin(*args, **options)
        try:
            return self._kernel(*args, **options)
        except self._error as error:
            self.failed = True
            logger.warning(
                "the Triton kernel %s does not compile here; PyTorch runs it, much slower (%s)",
                self._twin.__name__, error,
            )  # fmt: skip
            return self._twin(*args, **options)
