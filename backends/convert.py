"""`radixmesh convert`: any model that can be served becomes a folder with an Orbax checkpoint."""

import logging
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from ..engine.cli.joints import Conversion
from ..engine.config import EngineConfig
from ..engine.errors import ConfigError, ModelError
from .models.source import DESCRIPTION, WEIGHTS, ModelSource, find_model


def convert(config: EngineConfig, output: Path) -> Conversion:
    """Write the model of `config` to the new folder `output`, which serves by itself as a model_path.

    Weights are in `config.dtype`; "auto" keeps the stored one, float32 for what is quantized. The folder
    gets its name when it is whole. Raises ConfigError for an output that exists or a model that is
    converted already, ModelError for one that cannot be read or written.
    """
    output = output.expanduser().absolute()
    if output.exists():
        raise ConfigError(f"output is {str(output)!r}, which exists; accepted is the name of a new folder")
    if config.load_format == "dummy":
        raise ConfigError("load_format is 'dummy'; accepted for a conversion are auto, safetensors and gguf")
    source = find_model(config)
    if source.orbax:
        raise ConfigError(f"model_path is {config.model_path!r}, which is an Orbax checkpoint already")
    started = time.monotonic()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f"{output.name}.part-"))
        try:
            before = _write_weights(config, source, folder / WEIGHTS)
            _write_description(source, folder)
            folder.chmod(0o755)  # what mkdtemp makes is for its user alone
            folder.rename(output)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise ModelError(f"{output} cannot be written ({error})") from error
    return Conversion(
        weights=sum(path.stat().st_size for path in (output / WEIGHTS).rglob("*") if path.is_file()),
        seconds=time.monotonic() - started,
        peak_memory=_peak_memory(),
        memory_before=before,
    )


def _write_weights(config: EngineConfig, source: ModelSource, folder: Path) -> int:
    """Returns the peak memory before the first tensor was read."""
    import jax
    import jax.numpy as jnp

    from .jax.orbax_checkpoint import write_params
    from .models.checkpoint import open_checkpoint
    from .models.describe import read_spec
    from .models.families.registry import param_table
    from .models.weights import iterate_params

    jax.config.update("jax_platforms", "cpu")  # an accelerator may be serving; here none is needed
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what it does not find in our files
    spec, checkpoint = read_spec(source), open_checkpoint(source)
    dtype = None if config.dtype == "auto" else jnp.dtype(config.dtype)
    before = _peak_memory()
    write_params(
        folder,
        lambda param: iterate_params(spec, [param], checkpoint),
        param_table(spec),
        spec.num_layers,
        dtype,
    )
    return before


def _write_description(source: ModelSource, folder: Path) -> None:
    """Configuration and tokenizer. They come last: a folder without them is known to be unfinished."""
    from ..engine.gguf_header import read_gguf_header
    from .models.gguf_file import without_weights

    if source.kind == "gguf":
        (folder / "model.gguf").write_bytes(without_weights(read_gguf_header(source.path)))
        return
    for path in {path for pattern in DESCRIPTION for path in Path(source.path).glob(pattern)}:
        if path.is_file() and not path.name.endswith(".safetensors.index.json"):
            shutil.copyfile(path, folder / path.name)


def _peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of macOS and Linux disagree
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
