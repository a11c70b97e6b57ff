"""Tensors of a checkpoint by name, read one at a time: safetensors here, GGUF in `gguf_file.py`."""

import json
import struct
from pathlib import Path
from typing import Literal, Protocol

import ml_dtypes
import numpy as np

from ...engine.errors import ModelError
from .gguf_file import GgufCheckpoint
from .hf_config import read_json
from .source import ModelSource

_DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100 << 20  # bytes; the format's own limit

# Multimodal checkpoints hold the text model under one of these; it is found under its plain name.
_TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}


class Checkpoint(Protocol):
    """Named tensors."""

    @property
    def kind(self) -> Literal["hf", "gguf"]:
        """Whose names and layouts they have."""
        ...

    def names(self) -> set[str]:
        """Every tensor's name."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor: float32, float16 or ml_dtypes.bfloat16, mapped from the file where it can be."""
        ...


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Open the weights of a model without reading them. Raises ModelError when there are none."""
    if source.kind == "gguf":
        return GgufCheckpoint(source.path)
    return SafetensorsCheckpoint(source.path)


class SafetensorsCheckpoint:
    """The safetensors files of a folder, one or many, mapped into memory and read when asked."""

    kind: Literal["hf"] = "hf"

    def __init__(self, folder: str | Path) -> None:
        self._entries: dict[str, _Entry] = {}
        for path in _files(Path(folder)):
            for name, entry in _read_header(path).items():
                self._entries[_plain_name(name)] = entry

    def names(self) -> set[str]:
        return set(self._entries)

    def read(self, name: str) -> np.ndarray:
        """One tensor, a read-only view of the file. Raises ModelError for a dtype that is not served."""
        path, dtype, shape, offset = self._entries[name]
        if dtype not in _DTYPES:
            raise ModelError(f"tensor {name} of {path} has dtype {dtype}; accepted are {', '.join(_DTYPES)}")
        if 0 in shape:
            return np.empty(shape, _DTYPES[dtype])
        try:
            return np.memmap(path, _DTYPES[dtype], "r", offset, shape)
        except ValueError as error:
            raise ModelError(f"tensor {name} lies beyond the end of {path}") from error


_Entry = tuple[Path, str, tuple[int, ...], int]  # file, dtype, shape, offset in bytes


def _files(folder: Path) -> list[Path]:
    if (folder / _INDEX).exists():
        names = sorted(set(read_json(folder / _INDEX).get("weight_map", {}).values()))
        return [folder / name for name in names]
    if (folder / "model.safetensors").exists():  # others beside it are other formats of the same
        return [folder / "model.safetensors"]
    files = sorted(folder.glob("*.safetensors"))
    if not files and (pickles := sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)):
        raise ModelError(
            f"the weights of {folder} are in {pickles[0]}, a pickle, which could run code as it is read;"
            " accepted are *.safetensors files, as save_pretrained of transformers writes them"
        )
    if not files:
        raise ModelError(f"{folder} holds no *.safetensors files; load_format=dummy needs none")
    return files


def _read_header(path: Path) -> dict[str, _Entry]:
    """Eight bytes of length, then JSON with dtype, shape and position of each tensor, then the data."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER:
                raise ValueError(f"its header would take {length} bytes")
            header = json.loads(file.read(length))
        return {
            name: (path, each["dtype"], tuple(each["shape"]), 8 + length + each["data_offsets"][0])
            for name, each in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{path} is not a complete safetensors file ({error})") from error


def _plain_name(name: str) -> str:
    for prefix, plain in _TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name
