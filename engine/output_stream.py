"""`OutputStream`: what has come of one caller's request and was not read yet."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from .output_collector import OutputState
from .outputs import RequestOutput, TokenOutput
from .request import FinishReason


class OutputStream:
    """Outputs on their way to one caller: at most one for each sequence, so memory is bounded."""

    def __init__(self) -> None:
        self.states: dict[str, OutputState] = {}
        self.aborted = False  # before there was anything to abort
        self._waiting: dict[int, RequestOutput] = {}
        self._news = asyncio.Event()
        self._error: Exception | None = None

    @property
    def finished(self) -> bool:
        return bool(self.states) and all(state.finished for state in self.states.values())

    def put(self, output: RequestOutput) -> None:
        older = self._waiting.get(output.index)
        self._waiting[output.index] = _merge(older, output) if older else output
        self._news.set()

    def fail(self, error: Exception) -> None:
        if not self.finished:
            self._error = error
            self._news.set()

    def abort(self) -> None:
        """End every sequence that has not ended."""
        self.aborted = True
        for request_id, state in self.states.items():
            if not state.finished:
                end = TokenOutput(request_id=request_id, token_ids=[], finish_reason=FinishReason.ABORT)
                self.put(state.feed(end))

    async def outputs(self) -> AsyncIterator[RequestOutput]:
        while self._error is None and not (self.finished and not self._waiting):
            await self._news.wait()
            self._news.clear()
            for output in self._take() if self._error is None else ():
                yield output
        if self._error is not None:
            raise self._error

    def _take(self) -> Iterator[RequestOutput]:
        waiting, self._waiting = self._waiting, {}
        yield from waiting.values()


def _merge(older: RequestOutput, newer: RequestOutput) -> RequestOutput:
    """Two outputs of one sequence as one, for a reader that was not there in between."""
    newer.text_delta = older.text_delta + newer.text_delta
    older.new_token_ids += newer.new_token_ids  # in place: a reader may stay away for 100,000 tokens
    newer.new_token_ids = older.new_token_ids
    return newer
