"""`LLM` for users: the engine's class with the real backends, and options as keywords."""

from typing import Any

from ..engine import llm
from ..engine.config import DEFAULT_MODEL, EngineConfig
from .registry import backend_for


class LLM(llm.LLM):
    """Offline generation, the engine in this process. Takes the options of `EngineConfig` as keywords.

    llm = LLM("smollm2-135m-instruct", context_length=2048)
    print(llm.chat([{"role": "user", "content": "Hello!"}])[0].text)
    """

    def __init__(self, model_path: str = DEFAULT_MODEL, **options: Any) -> None:
        """Load the model and warm it up. Raises ConfigError, ModelError."""
        config = EngineConfig.from_options(model_path=model_path, **options)
        super().__init__(config, backend_for(config))
