"""Orbax checkpoints of our own parameters: written piece by piece, restored straight to the shards of a mesh.

A checkpoint holds each parameter of the table (`models/params.py`) under its name, layers stacked in
front, as one zarr3 array. Its files are a layer each, or part of one; inside a file lie chunks along the
axis that tensor parallelism splits, each with a checksum, so that a device reads its own heads, hidden
units or vocabulary rows and little else.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint import future, type_handlers
from tqdm import tqdm

from ...engine.errors import ModelError
from ..models.params import ParamSpec
from ..models.weights import Weight

CHUNK = 1 << 20  # bytes read at a time: small beside a shard, large beside a seek
FILE = 64 << 20  # bytes at most, where the split axis allows: what is held while it is written

_SPLIT = ("vocab", "heads", "kv_heads", "mlp")  # logical axes that a mesh may split


@dataclass(frozen=True)
class _Layout:
    """How one layer of a parameter is cut along `axis`: into files, and those into chunks."""

    axis: int
    files: int
    chunks: int  # in all; a multiple of `files`

    def shape(self, whole: tuple[int, ...], parts: int) -> tuple[int, ...]:
        return tuple(size // parts if axis == self.axis else size for axis, size in enumerate(whole))


def _layout(param: ParamSpec, itemsize: int) -> _Layout:
    axis = next((axis for axis, name in enumerate(param.axes) if name in _SPLIT), 0)
    size, nbytes = param.shape[axis], math.prod(param.shape) * itemsize
    if param.axes[axis] not in _SPLIT:
        return _Layout(axis, 1, 1)
    divisors = [each for each in range(1, size + 1) if size % each == 0]
    chunks = max((each for each in divisors if nbytes >= each * CHUNK), default=1)
    files = min(each for each in divisors if chunks % each == 0 and (nbytes <= each * FILE or each == chunks))
    return _Layout(axis, files, chunks)


def write_params(
    folder: Path,
    weights: Callable[[ParamSpec], Iterator[Weight]],
    params: Sequence[ParamSpec],
    num_layers: int,
    dtype: np.dtype | None,
) -> None:
    """Write a checkpoint to the new folder `folder`, holding no more than one tensor at a time.

    `weights` reads a parameter's tensors, layer after layer. `dtype` None keeps that of the tensors.
    Shows progress on stderr. Raises ModelError for a parameter whose layers differ in dtype.
    """
    steps = sum(num_layers if param.stacked else 1 for param in params)
    with tqdm(total=steps, desc="converting", unit="tensor", leave=False, dynamic_ncols=True) as progress:
        tree = {
            param.name: _Unwritten(param, num_layers, dtype, weights(param), progress) for param in params
        }
        registry = type_handlers.create_type_handler_registry((_Unwritten, _Writer()))
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True, type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))


def stored_params(folder: Path, params: Iterable[ParamSpec], num_layers: int) -> Iterator[Weight]:
    """Every parameter of a checkpoint, layer after layer when stacked; what is sliced is read, and no more.

    Raises ModelError, naming folder and parameter, for a checkpoint that is damaged or of another model;
    so does reading.
    """
    for param in params:
        path = folder / param.name
        shape = (num_layers, *param.shape) if param.stacked else param.shape
        stored = _Stored.open(path)
        if stored.shape != shape:
            raise ModelError(f"{path} has shape {stored.shape}; the model's configuration says {shape}")
        for layer in range(num_layers) if param.stacked else (None,):
            yield param, layer, cast(np.ndarray, stored if layer is None else stored[layer])


@dataclass(frozen=True)
class _Stored:
    """An array on disk, sliced like a numpy array, and read when it is made one."""

    store: tensorstore.TensorStore
    path: Path

    @classmethod
    def open(cls, path: Path) -> "_Stored":
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "fill_missing_data_reads": False,
        }
        try:
            return cls(tensorstore.open(spec, read=True).result(), path)
        except ValueError as error:
            raise _damaged(path, error) from error

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.store.shape)

    def __getitem__(self, index: Any) -> "_Stored":
        # a slice of numpy's begins at 0 again, one of tensorstore's only when told to
        return _Stored(self.store[index][tensorstore.d[:].translate_to[0]], self.path)

    def take(self, indices: np.ndarray, axis: int) -> "_Stored":
        return self[(slice(None),) * axis + (indices,)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            array = self.store.read().result()
        except ValueError as error:
            raise _damaged(self.path, error) from error
        return array if dtype is None else array.astype(dtype, copy=False)


def _damaged(path: Path, error: Exception) -> ModelError:
    cause = str(error).splitlines()[0]
    return ModelError(f"{path} is no complete array of a checkpoint ({cause}); run radixmesh convert again")


@dataclass(frozen=True, eq=False)
class _Unwritten:
    """A leaf of the tree that is saved: a parameter that is read while it is written."""

    param: ParamSpec
    num_layers: int
    dtype: np.dtype | None
    weights: Iterator[Weight]
    progress: tqdm

    async def write(self, path: Path) -> None:
        """Copy the weights into a new zarr3 array at `path`."""
        store = None
        for param, layer, array in self.weights:
            if store is None:
                dtype = self.dtype or array.dtype
                layout = _layout(param, dtype.itemsize)
                store = await tensorstore.open(self._array(path, dtype, layout), create=True)
            elif self.dtype is None and array.dtype != store.dtype.numpy_dtype:
                raise ModelError(
                    f"{param.name} is {array.dtype} in layer {layer} and {store.dtype.name} before;"
                    " accepted is one dtype, which dtype=float32 or bfloat16 makes of them"
                )
            target = store if layer is None else store[layer]
            step = param.shape[layout.axis] // layout.files
            for start in range(0, param.shape[layout.axis], step):
                part = (slice(None),) * layout.axis + (slice(start, start + step),)
                await target[part].write(np.asarray(array[part], dtype))
            self.progress.update()

    def _array(self, path: Path, dtype: np.dtype, layout: _Layout) -> tensorstore.Spec:
        param = self.param
        layers, each = ((self.num_layers,), (1,)) if param.stacked else ((), ())
        checked = {"name": "crc32c"}
        chunk = {
            "chunk_shape": [*each, *layout.shape(param.shape, layout.chunks)],
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, checked],
        }
        file = [*each, *layout.shape(param.shape, layout.files)]
        return tensorstore.Spec(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{path}/"},
                "metadata": {
                    "shape": [*layers, *param.shape],
                    "data_type": dtype.name,
                    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": file}},
                    "codecs": [{"name": "sharding_indexed", "configuration": chunk}],
                },
                "store_data_equal_to_fill_value": True,  # what is absent is damage
            }
        )


class _Writer(type_handlers.TypeHandler):
    """Orbax's way to save an `_Unwritten`; what it saves is restored as a jax array."""

    def typestr(self) -> str:
        return "jax.Array"

    async def serialize(
        self, values: Sequence[_Unwritten], infos: Sequence[Any], args: Any = None
    ) -> list[future.Future]:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            await value.write(Path(info.path))
        return []

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        raise NotImplementedError("a checkpoint is read with Orbax's own handlers")

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        raise NotImplementedError("a checkpoint is read with Orbax's own handlers")
