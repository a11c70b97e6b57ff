"""Where a model's files are: `EngineConfig.model_path` becomes a folder or a .gguf file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...engine.config import EngineConfig
from ...engine.errors import ConfigError, ModelError
from ...engine.runner import ModelInfo
from .embedded import EMBEDDED, fetch_embedded

# what a folder holds beside its weights: configuration, tokenizer, chat template
DESCRIPTION = ("*.json", "*.jinja", "tokenizer*", "*.model", "*.txt")
WEIGHTS = "weights.orbax"  # the folder in a model's folder that `radixmesh convert` writes
_HUB_DUPLICATES = ["original/*", "consolidated*"]  # the same weights in other layouts

_FOUND = {
    "safetensors": "a folder with config.json",
    "gguf": "a .gguf file",
    "orbax": "a folder that radixmesh convert wrote",
}


@dataclass(frozen=True)
class ModelSource:
    """A model on this machine. `path` is a folder with config.json ("hf") or a .gguf file ("gguf")."""

    path: str
    kind: Literal["hf", "gguf"]
    name: str  # what the API calls it

    @property
    def orbax(self) -> Path | None:
        """The Orbax checkpoint with the weights, if `radixmesh convert` wrote the model's folder."""
        folder = Path(self.path) if self.kind == "hf" else Path(self.path).parent
        return folder / WEIGHTS if (folder / WEIGHTS).is_dir() else None

    @property
    def load_format(self) -> Literal["safetensors", "gguf", "orbax"]:
        """The format of the weights."""
        if self.orbax:
            return "orbax"
        return "safetensors" if self.kind == "hf" else "gguf"


def find_model(config: EngineConfig) -> ModelSource:
    """Find the model, downloading an embedded one or a Hugging Face repo if it is not cached.

    Raises ModelError when nothing is found, ConfigError when `load_format` does not fit what is.
    """
    name = config.served_model_name or config.model_path
    source = _find(config, name)
    if config.load_format not in ("auto", "dummy", source.load_format):
        found = _FOUND[source.load_format]
        raise ConfigError(f"load_format is {config.load_format!r}, but {config.model_path} is {found}")
    return source


def source_of(info: ModelInfo) -> ModelSource:
    """Where the files are of a model that was found and described before."""
    return ModelSource(info.path, "gguf" if info.path.endswith(".gguf") else "hf", info.name)


def _find(config: EngineConfig, name: str) -> ModelSource:
    path = Path(config.model_path).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource(str(path), "gguf", name)
    if (path / "config.json").is_file():
        return ModelSource(str(path), "hf", name)
    if path.is_dir() and len(files := sorted(path.glob("*.gguf"))) == 1:
        return ModelSource(str(files[0]), "gguf", name)
    if config.model_path in EMBEDDED:
        return ModelSource(str(fetch_embedded(config.model_path)), "gguf", name)
    if not path.exists() and _looks_like_repo(config.model_path):
        return ModelSource(_download(config), "hf", name)
    if path.is_dir() and any(path.glob(f"{WEIGHTS}*")):
        raise ModelError(
            f"model_path is {config.model_path!r}, a folder that radixmesh convert did not finish; convert"
            " again"
        )
    raise ModelError(f"model_path is {config.model_path!r}, where no model was found; {_accepted()}")


def _accepted() -> str:
    names = ", ".join(EMBEDDED)
    return (
        "accepted are a folder with config.json and *.safetensors, one that radixmesh convert wrote, a .gguf"
        f" file, a Hugging Face repo id (owner/name), or an embedded model ({names})"
    )


def _looks_like_repo(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 2 and all(parts) and not text.startswith((".", "~")) and not text.endswith(".gguf")


def _download(config: EngineConfig) -> str:
    from huggingface_hub import snapshot_download

    weights = () if config.load_format == "dummy" else ("*.safetensors",)
    code = ("*.py",) if config.trust_remote_code else ()
    try:
        return snapshot_download(
            config.model_path,
            revision=config.revision,
            allow_patterns=[*DESCRIPTION, *weights, *code],
            ignore_patterns=_HUB_DUPLICATES,
        )
    except Exception as error:  # hub, network and file errors share no base class
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model_path is {config.model_path!r}, which is not on this machine and could not be had from"
            f" Hugging Face ({cause}); {_accepted()}"
        ) from error
