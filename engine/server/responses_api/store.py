"""Where finished and running responses are kept: in memory, so many and no more."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..errors import ResponseNotFoundError
from ..keys import Key
from ..protocol.base import shorten
from ..streaming import event
from .answer import Answer

MAX_COUNT = 1024  # responses
MAX_BYTES = 64 * 2**20  # of all, as JSON


class Told:
    """The events of a response in the background, for whoever follows it, now or later."""

    def __init__(self) -> None:
        self.events: list[bytes] = []  # by their sequence numbers
        self._ended = False
        self._news = asyncio.Event()  # set when there is more, and replaced

    def add(self, events: Iterable[bytes], last: bool = False) -> None:
        """More was told, or with `last` all."""
        self.events += events
        self._ended |= last
        self._news.set()
        self._news = asyncio.Event()

    async def after(self, number: int) -> AsyncGenerator[bytes, None]:
        """The events that come after that of this number, to the last one."""
        begin = number + 1
        while True:
            news = self._news
            if new := self.events[begin:]:
                begin += len(new)
                yield b"".join(new)
            elif self._ended:
                return
            else:
                await news.wait()


@dataclass(slots=True)
class Kept:
    """A response, and what it takes to go on from it."""

    answer: Answer
    owner: Key | None  # who asked for it, and alone may see it
    items: list[dict[str, Any]]  # all before its output
    task: "asyncio.Task[None] | None" = field(default=None)  # that makes it, of one in the background
    told: Told | None = None  # of one in the background that was asked for as a stream
    size: int = 0  # bytes, when the store last looked

    def tell(self, events: Iterable[dict[str, Any]], last: bool = False) -> None:
        """Keep the events for those who follow the response."""
        if self.told is not None:
            self.told.add((event(each, each["type"]) for each in events), last)

    @property
    def finished(self) -> bool:
        return self.answer.response["status"] not in ("queued", "in_progress")


class ResponseStore:
    """Responses by their ids. The oldest finished ones go when there are too many, or they take too much."""

    def __init__(self, max_count: int = MAX_COUNT, max_bytes: int = MAX_BYTES) -> None:
        self._max_count, self._max_bytes = max_count, max_bytes
        self._kept: dict[str, Kept] = {}  # oldest first
        self._size = 0

    def keep(self, kept: Kept) -> None:
        """Keep a response; of one that is not finished, `resize` must follow."""
        self._kept[kept.answer.response["id"]] = kept
        self.resize(kept)

    def resize(self, kept: Kept) -> None:
        """A response has grown; nothing, if it was deleted meanwhile."""
        if kept.answer.response["id"] not in self._kept:
            return
        self._size -= kept.size
        kept.size = len(msgspec.json.encode([kept.answer.response, kept.items]))
        kept.size += sum(map(len, kept.told.events if kept.told else ()))
        self._size += kept.size
        for old in [each for each, one in self._kept.items() if one.finished]:
            if len(self._kept) <= self._max_count and self._size <= self._max_bytes:
                break
            self._drop(old)

    def find(self, id: str, caller: Key | None) -> Kept:
        """The response of this id. Raises ResponseNotFoundError if it is gone, or another's."""
        kept = self._kept.get(id)
        if kept is None or kept.owner != caller:
            raise ResponseNotFoundError(
                f"there is no response {shorten(id)}; kept are the newest {self._max_count} that were not"
                " deleted or asked for with store false",
                "response_id",
            )
        return kept

    def delete(self, id: str, caller: Key | None) -> Kept:
        """Forget a response, and return it. Raises ResponseNotFoundError."""
        kept = self.find(id, caller)
        self._drop(id)
        return kept

    def _drop(self, id: str) -> None:
        self._size -= self._kept.pop(id).size
