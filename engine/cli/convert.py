"""Write a model as a folder with an Orbax checkpoint, which loads onto any mesh.

Each process then reads only its own part of the weights. The folder holds configuration and tokenizer
too: `radixmesh serve --model-path FOLDER` needs nothing else. Weights pass through the host one tensor
at a time.
"""

import argparse
import dataclasses
from pathlib import Path

from ..config import EngineConfig
from .joints import Joints
from .options import add_options, read_options

_OPTIONS = ("model_path", "revision", "load_format", "dtype")
_EXCLUDED = tuple(each.name for each in dataclasses.fields(EngineConfig) if each.name not in _OPTIONS)
_HELPS = {
    "dtype": "dtype of the weights as written; auto keeps the stored one, float32 for quantized weights"
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command, and the engine's that say which model."""
    parser.add_argument("--output", metavar="FOLDER", required=True, help="a new folder")
    add_options(parser, EngineConfig, _HELPS, _EXCLUDED)


def run(arguments: argparse.Namespace, joints: Joints) -> int:
    """Convert, and tell how long it took and how much memory."""
    config = EngineConfig(**read_options(arguments, EngineConfig))
    done = joints.convert(config, Path(arguments.output))
    print(
        f"wrote {done.weights / 1e6:.0f} MB to {arguments.output} in {done.seconds:.1f} s;"
        f" peak host memory {done.peak_memory / 1e6:.0f} MB"
        f" ({done.memory_before / 1e6:.0f} MB before the first tensor)"
    )
    return 0
