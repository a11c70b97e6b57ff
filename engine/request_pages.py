"""`RequestPages`: how running requests come by pages and leave them, between pool and radix tree."""

import numpy as np

from .page_pool import PagePool
from .radix_cache import RadixCache
from .request import Request


class RequestPages:
    """Changes the `pages`, `node` and `num_computed_tokens` of requests, for the scheduler alone."""

    def __init__(self, pool: PagePool, cache: RadixCache, page_size: int) -> None:
        self._pool, self._cache, self._page_size = pool, cache, page_size

    @property
    def available(self) -> int:
        """Pages that are free, or would be after an eviction."""
        return self._pool.num_free + self._cache.evictable_pages

    def take(self, num_pages: int) -> list[int]:
        """Pages from the pool, evicting as needed. At most `available` may be asked for."""
        short = num_pages - self._pool.num_free
        if short > 0:
            self._pool.free(self._cache.evict(short))
        pages = self._pool.allocate(num_pages)
        assert pages is not None, "more pages were promised than there are"
        return pages

    def insert(self, request: Request, num_tokens: int) -> None:
        """Give the full pages of the first `num_tokens` tokens to the tree, and hold them through it."""
        num_pages = num_tokens // self._page_size
        if num_pages <= request.num_tree_pages:
            return
        tokens = request.known_tokens(0, num_pages * self._page_size)
        insertion = self._cache.insert(tokens, request.pages[:num_pages], request.extra_key)
        self._cache.lock(insertion.node)
        if request.node is not None:
            self._cache.unlock(request.node)
        request.node, request.num_tree_pages = insertion.node, len(insertion.pages)
        if insertion.duplicates:
            # the same KV was there already; from the next step on the request reads the tree's
            request.pages[: len(insertion.pages)] = insertion.pages
            request.page_ids[: len(insertion.pages)] = insertion.pages
            self._pool.free(insertion.duplicates)

    def release(self, request: Request, keep: bool) -> None:
        """Take all pages from a request. `keep`: what can be cached goes to the tree."""
        known = len(request.prompt_ids) + len(request.output_ids)
        if keep:
            self.insert(request, min(known, request.num_computed_tokens))
        if request.node is not None:
            self._cache.unlock(request.node)
        self._pool.free(request.pages[request.num_tree_pages :])
        request.pages, request.page_ids = [], request.page_ids[:0]
        request.node, request.num_tree_pages, request.num_computed_tokens = None, 0, 0


def add_pages(request: Request, pages: list[int]) -> None:
    """Let a request hold more pages."""
    if pages:
        request.pages += pages
        request.page_ids = np.concatenate((request.page_ids, np.array(pages, np.int32)))
