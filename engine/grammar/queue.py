"""`GrammarQueue`: new requests whose grammar is not there yet."""

from ..errors import GrammarError
from ..request import Request
from .constrain import constrain
from .service import Compilation, GrammarService


class GrammarQueue:
    """Holds requests back from the engine until they have their matcher. Used by the engine's thread."""

    def __init__(self, service: GrammarService) -> None:
        self._service = service
        self._waiting: dict[str, tuple[Request, Compilation]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Take a request with a grammar in. Raises GrammarError."""
        assert request.params.grammar is not None
        self._waiting[request.id] = request, self._service.compile(request.params.grammar)

    def abort(self, request_id: str) -> None:
        """Forget a request, or all children of a parent; nothing happens if there is none."""
        for request, _ in list(self._waiting.values()):
            if request_id in (request.id, request.parent_id):
                del self._waiting[request.id]

    def take(self) -> list[tuple[Request, GrammarError | None]]:
        """Requests that wait no longer, for they have their matcher now, or never will."""
        taken: list[tuple[Request, GrammarError | None]] = []
        for request, compilation in list(self._waiting.values()):
            try:
                grammar = compilation.poll()
                if grammar is None:
                    continue
                constrain(request, grammar)
                taken.append((request, None))
            except GrammarError as error:
                taken.append((request, error))
            del self._waiting[request.id]
        return taken
