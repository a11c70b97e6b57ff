"""Weights in our own layout, one tensor at a time: from a checkpoint, or drawn at random."""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from ...engine.errors import ModelError
from .checkpoint import Checkpoint
from .params import ParamSpec
from .spec import ModelSpec

_DRAWN = 1_048_573  # values drawn; a prime, so that rows of a matrix do not repeat each other
_STD = 0.02

# Rotary tables are computed, and the towers of multimodal models are not served.
_NOT_PARAMETERS = re.compile(
    r".*rotary_emb\.(inv_freq|cos_cached|sin_cached)$|rope_freqs\.weight$"
    r"|(model\.)?(vision_tower|multi_modal_projector)\."
)

Weight = tuple[ParamSpec, int | None, np.ndarray]


def iterate_params(spec: ModelSpec, specs: Iterable[ParamSpec], checkpoint: Checkpoint) -> Iterator[Weight]:
    """Every parameter's array in the shape that its ParamSpec states, layer after layer when stacked.

    Yields (ParamSpec, layer or None, array in the checkpoint's dtype). Arrays may be views that are read
    from disk when used. Raises ModelError naming a tensor that is missing or of the wrong shape.
    """
    names = checkpoint.names()
    for param in specs:
        for layer in range(spec.num_layers) if param.stacked else (None,):
            name = _stored_name(param, layer, checkpoint)
            if name not in names:
                raise ModelError(f"the checkpoint has no tensor {name}, which a {spec.family} model needs")
            stored = checkpoint.read(name)
            transform = param.from_hf if checkpoint.kind == "hf" else param.from_gguf
            try:
                array = transform(stored)
            except ValueError:
                array = stored
            if array.shape != param.shape:
                raise ModelError(
                    f"tensor {name} has shape {stored.shape}, which does not give {param.name}"
                    f" its shape {param.shape}"
                )
            yield param, layer, array


def dummy_params(spec: ModelSpec, specs: Iterable[ParamSpec], seed: int = 0) -> Iterator[Weight]:
    """Like `iterate_params`, with small random float32 values; norms multiply by 1.

    One draw serves all: each tensor repeats it from a place of its own, as fast as memory is copied.
    """
    random = np.random.default_rng(seed)
    drawn = (random.standard_normal(_DRAWN) * _STD).astype(np.float32)
    for param in specs:
        for layer in range(spec.num_layers) if param.stacked else (None,):
            if param.name.endswith("_norm"):
                yield param, layer, np.full(param.shape, 1.0 - spec.norm_offset, np.float32)
            else:
                yield param, layer, np.resize(np.roll(drawn, random.integers(_DRAWN)), param.shape)


def unclaimed_tensors(spec: ModelSpec, specs: Iterable[ParamSpec], checkpoint: Checkpoint) -> set[str]:
    """Names in the checkpoint that no parameter reads, those left out that are known to be needless."""
    claimed = {
        _stored_name(param, layer, checkpoint)
        for param in specs
        for layer in (range(spec.num_layers) if param.stacked else (None,))
    }
    if spec.tie_embeddings:
        claimed.add("lm_head.weight")  # some files hold the tied matrix twice
    return {name for name in checkpoint.names() - claimed if not _NOT_PARAMETERS.match(name)}


def _stored_name(param: ParamSpec, layer: int | None, checkpoint: Checkpoint) -> str:
    return (param.hf if checkpoint.kind == "hf" else param.gguf).format(layer=layer)
