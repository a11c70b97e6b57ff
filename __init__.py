"""radixmesh: an LLM inference engine, JAX/TPU first, PyTorch/Triton for GPUs.

The public names load on first use, so `import radixmesh` costs nothing:

- `LLM`: offline generation, the engine in this process.
- `AsyncLLM`: streaming generation, the engine in a process of its own.
- `SamplingParams`: how one request's tokens are chosen.
- `EngineConfig`: every option of the engine.
- `plan`: how a model would lie on a TPU slice that need not be here, and how fast it can be.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends.api import LLM
    from .backends.async_api import AsyncLLM
    from .backends.planner import plan
    from .engine.config import EngineConfig
    from .engine.request import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "EngineConfig", "SamplingParams", "__version__", "plan"]

_HOME = {
    "LLM": ".backends.api",
    "AsyncLLM": ".backends.async_api",
    "EngineConfig": ".engine.config",
    "SamplingParams": ".engine.request",
    "plan": ".backends.planner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'radixmesh' has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
