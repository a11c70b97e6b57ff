"""`PagePool`: which pages of KV memory are free. Ids only; the memory itself is the runner's."""

import logging
from collections.abc import Iterable, Sequence

logger = logging.getLogger(__name__)


class IntegrityError(AssertionError):
    """The engine's own bookkeeping is wrong: a bug here, never a user's fault."""


class PagePool:
    """Page ids `0..num_pages - 1` and a free list.

    Freeing a page that is already free (or no page at all) is a bug of the caller: with `strict` it raises
    IntegrityError; without, the page is skipped, which repairs it, and logged and counted.
    """

    def __init__(self, num_pages: int, *, strict: bool = False) -> None:
        self.num_pages = num_pages
        self.strict = strict
        self.num_violations = 0
        self._free: list[int] = []
        self._is_free = bytearray()
        self.repair(())

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` pages, or None when fewer are free: the caller evicts or preempts first."""
        if count > len(self._free):
            return None
        if count == 0:
            return []
        pages = self._free[-count:]
        del self._free[-count:]
        for page in pages:
            self._is_free[page] = 0
        return pages

    def free(self, pages: Sequence[int]) -> None:
        """Give pages back. Raises IntegrityError on a double free if the pool is strict."""
        for page in pages:
            if not 0 <= page < self.num_pages or self._is_free[page]:
                self._violation(f"page {page} was freed, but it is not in use")
                continue
            self._is_free[page] = 1
            self._free.append(page)

    def repair(self, in_use: Iterable[int]) -> None:
        """Make exactly the pages outside `in_use` free, whatever was recorded before."""
        self._is_free = bytearray(b"\x01" * self.num_pages)
        for page in in_use:
            self._is_free[page] = 0
        # reversed, so that the lowest ids are handed out first
        self._free = [page for page in reversed(range(self.num_pages)) if self._is_free[page]]

    def _violation(self, message: str) -> None:
        self.num_violations += 1
        if self.strict:
            raise IntegrityError(message)
        logger.error("page pool: %s", message)
