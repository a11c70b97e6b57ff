"""What every route needs: the engine's async edge, the options and the metrics."""

from dataclasses import dataclass, field

from ..async_llm import AsyncLLM
from ..errors import NotServingError
from .door import Guard
from .formats import Formats, choose_formats
from .journal import Journal
from .logprobs import TokenTexts
from .metrics import Metrics
from .options import ServerOptions
from .tracing import Tracer
from .visit import Visit


@dataclass(slots=True)
class Server:
    """One running server, over a started engine. `draining` is set once, when it was told to stop."""

    llm: AsyncLLM
    options: ServerOptions
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    visits: dict[str, Visit] = field(default_factory=dict)  # open requests by the engine's ids
    guard: Guard = field(init=False)
    journal: Journal = field(init=False)
    texts: TokenTexts = field(init=False)
    formats: Formats = field(init=False)

    def __post_init__(self) -> None:
        self.guard = Guard(self.options)
        endpoint = self.options.otlp_traces_endpoint
        tracer = Tracer(endpoint, self.llm.info.name) if endpoint else None
        self.journal = Journal(self.options.access_log, tracer)
        self.formats = choose_formats(self.llm.tokenizer, self.options)
        self.texts = TokenTexts(self.llm.tokenizer)
        self.metrics.watch_engine(lambda: self.llm.stats)

    def sickness(self) -> str | None:
        """Why requests cannot be served now, in one sentence; None when they can. Takes no time."""
        if not self.llm.alive:
            restarts = self.options.restart_engine and not self.draining
            return "the engine process has ended" + ("; a new one is being started" if restarts else "")
        if self.draining:
            return "draining: the server is shutting down"
        age = self.llm.heartbeat_age
        if age > self.options.heartbeat_timeout:
            return (
                f"the engine gave no sign of life for {age:.1f} s;"
                f" the bound is {self.options.heartbeat_timeout:g} s"
            )
        return None

    def check_serving(self) -> None:
        """Raise NotServingError while draining."""
        if self.draining:
            raise NotServingError("the server is shutting down and takes no new requests")
