"""`AsyncLLM` for users. A file of its own, because it needs the server's packages and `LLM` does not."""

from typing import Any

from ..engine import async_llm
from ..engine.config import DEFAULT_MODEL, EngineConfig
from .registry import backend_for


class AsyncLLM(async_llm.AsyncLLM):
    """Streaming generation, the engine in its own process. Takes the options of `EngineConfig` as keywords.

    async with AsyncLLM("smollm2-135m-instruct") as llm:
        async for output in llm.generate("Once upon a time", SamplingParams(max_new_tokens=32)):
            print(output.text_delta, end="")
    """

    def __init__(self, model_path: str = DEFAULT_MODEL, **options: Any) -> None:
        """Raises ConfigError; the model is loaded by `start`."""
        config = EngineConfig.from_options(model_path=model_path, **options)
        super().__init__(config, backend_for(config))
