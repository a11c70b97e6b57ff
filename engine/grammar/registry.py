"""Which libraries there are. Each is imported when the first grammar needs it."""

from importlib.util import find_spec
from typing import Protocol

from ..config import EngineConfig
from ..errors import ConfigError
from .grammar import Grammar, GrammarKind, GrammarSpec
from .vocabulary import Vocabulary

_MODULES = {
    "llguidance": "llguidance",
    "xgrammar": "xgrammar",
    "outlines": "outlines_core",
}  # backend -> the module that must be installed


class Library(Protocol):
    """What compiles grammars. Its methods may be called from several threads."""

    @property
    def kinds(self) -> frozenset[GrammarKind]:
        """What it can do."""
        ...

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Raises GrammarError with the library's reason."""
        ...

    def close(self) -> None:
        """Release what it holds. It is not used after."""
        ...


def backend_of(config: EngineConfig) -> str:
    """The name of the library that `config` asks for. Raises ConfigError if it is not installed."""
    name = "llguidance" if config.grammar_backend == "auto" else config.grammar_backend
    if find_spec(_MODULES[name]) is None:
        raise ConfigError(
            f"grammar_backend is {name}, which is not installed; accepted is llguidance, or"
            " pip install 'radixmesh[grammar]'"
        )
    return name


def load_library(config: EngineConfig, vocabulary: Vocabulary) -> Library:
    """The library that `config` asks for, ready for the vocabulary."""
    compact = config.constrained_json_disable_any_whitespace
    match backend_of(config):
        case "xgrammar":
            from .xgrammar import XgrammarLibrary

            return XgrammarLibrary(vocabulary, compact, config.grammar_timeout)
        case "outlines":
            from .outlines import OutlinesLibrary

            return OutlinesLibrary(vocabulary, compact, config.grammar_timeout)
        case _:
            from .llguidance import LlguidanceLibrary

            return LlguidanceLibrary(vocabulary, compact)
