"""What `radixmesh doctor` tells of this machine. Nothing is fetched, loaded or started."""

from dataclasses import asdict

from ..engine.cli.joints import Machine
from ..engine.config import EngineConfig
from ..engine.runner import ModelInfo
from .hardware import detect
from .models.embedded import EMBEDDED, models_folder
from .registry import compiled_folder
from .resolve import resolve


def survey(config: EngineConfig) -> Machine:
    """The hardware, what would serve `config` on it, and what is kept here from earlier starts.

    Raises ConfigError for options that cannot be honoured here. The model is not looked at, so neither
    is whether it has the context that `config` asks for.
    """
    hardware = detect()
    unknown = ModelInfo(
        name=config.model_path,
        path="",
        vocab_size=0,
        context_length=config.context_length or 1,
        eos_token_ids=frozenset(),
    )
    _, choices = resolve(config, unknown, hardware)
    models = {name: models_folder() / model.file for name, model in EMBEDDED.items()}
    return Machine(
        hardware=asdict(hardware),
        choices=tuple(choice for choice in choices if choice.name != "context_length"),
        models={name: str(path) if path.is_file() else None for name, path in models.items()},
        folders={"models": str(models_folder()), "compiled steps": str(compiled_folder(config))},
    )
