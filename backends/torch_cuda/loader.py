"""Weights to the device, each tensor straight to its place in the matrix that it is part of.

q, k and v are one matrix, gate and up another: one product each. Matrices lie as [out, in], which is
how checkpoints hold them, so that loading transposes nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..models.params import ParamSpec
from ..models.spec import ModelSpec
from ..models.weights import Weight
from .ranks import Ranks

_DUMMY_STD = 0.02
_FUSED = {
    "q": "qkv", "k": "qkv", "v": "qkv", "q_bias": "qkv_bias", "k_bias": "qkv_bias", "v_bias": "qkv_bias",
    "gate": "gate_up", "up": "gate_up", "gate_bias": "gate_up_bias", "up_bias": "gate_up_bias",
}  # fmt: skip
_INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}  # leading axes that are summed over


@dataclass(frozen=True)
class Weights:
    """Everything that a decoder multiplies by. `outer` are the parameters outside of layers; a layer has

    qkv        [(heads + 2 * kv_heads) * head_dim, embed]    qkv_bias      [(heads + 2 * kv_heads) * head_dim]
    o          [embed, heads * head_dim]                     o_bias        [embed]
    gate_up    [2 * mlp, embed]                              gate_up_bias  [2 * mlp]
    down       [embed, mlp]                                  down_bias     [embed]

    and its norms, as far as the model has them.
    """

    outer: Mapping[str, Tensor]
    layers: tuple[Mapping[str, Tensor], ...]

    @property
    def num_bytes(self) -> int:
        return sum(each.nbytes for group in (self.outer, *self.layers) for each in group.values())


class _Places:
    """Uninitialised weights on the device, and where in them each parameter lies."""

    def __init__(
        self, spec: ModelSpec, params: Iterable[ParamSpec], dtype: torch.dtype, device: torch.device,
        ranks: Ranks,
    ) -> None:  # fmt: skip
        sizes: dict[str, dict[str, int]] = {}  # fused name -> parameter -> rows
        shapes: dict[str, tuple[int, ...]] = {}
        stacked = {}
        for param in params:
            held = _held(param, ranks)
            name, shape = _FUSED.get(param.name, param.name), _stored_shape(held)
            rows = sizes.setdefault(name, {})
            rows[param.name] = shape[0]
            shapes[name] = (sum(rows.values()), *shape[1:])
            stacked[name] = param.stacked
        self.outer = {
            name: torch.empty(shape, dtype=dtype, device=device)
            for name, shape in shapes.items()
            if not stacked[name]
        }
        self.layers = tuple(
            {
                name: torch.empty(shape, dtype=dtype, device=device)
                for name, shape in shapes.items()
                if stacked[name]
            }
            for _ in range(spec.num_layers)
        )
        self._rows = sizes

    def of(self, param: ParamSpec, layer: int | None) -> Tensor:
        """Where the parameter belongs: a view."""
        name = _FUSED.get(param.name, param.name)
        start = 0
        for each, rows in self._rows[name].items():
            if each == param.name:
                return (self.outer if layer is None else self.layers[layer])[name][start : start + rows]
            start += rows
        raise KeyError(param.name)


def empty_weights(
    spec: ModelSpec, params: tuple[ParamSpec, ...], dtype: torch.dtype, device: torch.device, ranks: Ranks
) -> Weights:
    """Uninitialised."""
    places = _Places(spec, params, dtype, device, ranks)
    return Weights(places.outer, places.layers)


def load_weights(
    spec: ModelSpec, params: tuple[ParamSpec, ...], weights: Iterator[Weight], dtype: torch.dtype,
    device: torch.device, ranks: Ranks,
) -> Weights:  # fmt: skip
    """Copy this rank's part of every parameter to the device in `dtype`, one tensor at a time. Shows
    progress on stderr."""
    places = _Places(spec, params, dtype, device, ranks)
    steps = sum(spec.num_layers if param.stacked else 1 for param in params)
    for param, layer, array in tqdm(
        weights, total=steps, desc="loading weights", unit="tensor", leave=False, dynamic_ncols=True,
        disable=ranks.rank > 0,
    ):  # fmt: skip
        place = places.of(param, layer)
        if ranks.adds(param):
            place.copy_(_tensor(_as_stored(_held(param, ranks), array[ranks.cut(param)])))
        else:
            place.zero_()
    return Weights(places.outer, places.layers)


def dummy_weights(
    spec: ModelSpec, params: tuple[ParamSpec, ...], seed: int, dtype: torch.dtype, device: torch.device,
    ranks: Ranks,
) -> Weights:  # fmt: skip
    """Small random values, drawn where they will stay; norms multiply by 1."""
    places = _Places(spec, params, dtype, device, ranks)
    generator = torch.Generator(device).manual_seed(seed)
    for param in params:
        for layer in range(spec.num_layers) if param.stacked else (None,):
            place = places.of(param, layer)
            if param.name.endswith("_norm"):
                place.fill_(1.0 - spec.norm_offset)
            else:
                place.normal_(0.0, _DUMMY_STD, generator=generator)
    return Weights(places.outer, places.layers)


def _held(param: ParamSpec, ranks: Ranks) -> ParamSpec:
    """The parameter as this rank has it."""
    return replace(param, shape=tuple(part.stop - part.start for part in ranks.cut(param)))


def _stored_shape(param: ParamSpec) -> tuple[int, ...]:
    """The shape of `_as_stored`."""
    if param.name not in _INPUTS:
        return (int(np.prod(param.shape)),) if param.name.endswith("_bias") else param.shape
    inputs = _INPUTS[param.name]
    return int(np.prod(param.shape[inputs:])), int(np.prod(param.shape[:inputs]))


def _as_stored(param: ParamSpec, array: np.ndarray) -> np.ndarray:
    """A parameter of the table's shape as [out, in], or as it is when it is no matrix."""
    rows, *columns = _stored_shape(param)
    return array.reshape(*columns, rows).T if param.name in _INPUTS else array.reshape(rows, *columns)


def _tensor(array: np.ndarray) -> Tensor:
    """A copy that torch may own: files are mapped read-only, and torch does not know ml_dtypes."""
    copy = np.array(array)
    if copy.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)
