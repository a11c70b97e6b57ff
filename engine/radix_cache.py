"""`RadixCache`: which token prefixes have their KV in which pages.

A radix tree over whole pages. An edge and the node below it are one object: `RadixNode` holds the tokens and
pages between its parent and itself. Children are found by the bytes of their first page of tokens; those
of the root also by the extra key, which keeps apart what must not be shared.

    root ── "You are a helpful " p3 p4 ──┬── "cat. ..." p7 p9
                                         └── "dog. ..." p5

A request locks the node where its prefix ends, and with it the path up to the root. Unlocked leaves may be
evicted, from their tail. A node has at least as many locks as its children together, so all
unlocked pages can be had by evicting leaves one after the other.
"""

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .page_pool import IntegrityError

I32 = NDArray[np.int32]


class RadixNode:
    """An edge of the tree and its lower end: `tokens` [len(pages) * page_size] and their `pages`."""

    __slots__ = (
        "children", "hits", "key", "last_used", "lock_count", "pages", "parent", "queued", "serial", "tokens",
    )  # fmt: skip

    def __init__(self, serial: int, tokens: I32, pages: list[int], parent: "RadixNode | None") -> None:
        self.serial = serial
        self.tokens = tokens
        self.pages = pages
        self.parent = parent
        self.key = b""  # under which the parent knows this node
        self.children: dict[bytes, RadixNode] = {}  # in order of their last use, the latest at the end
        self.lock_count = 0
        self.last_used = 0
        self.hits = 0  # how many requests found it here
        self.queued = False  # has an entry in the eviction heap


@dataclass(slots=True)
class PrefixMatch:
    """The longest cached prefix. `num_unlocked_pages` of its pages could be evicted until it is locked."""

    pages: list[int]
    node: RadixNode
    num_unlocked_pages: int


@dataclass(slots=True)
class Insertion:
    """`pages` are the tree's for the inserted tokens, ending at `node`; `duplicates` the caller's own pages
    that lost to a page already there. Both are empty if the cache is disabled and took nothing."""

    pages: list[int]
    node: RadixNode
    duplicates: list[int]


class RadixCache:
    """Longest-prefix lookup and eviction. Owns the pages that were inserted until `evict` returns them."""

    def __init__(
        self, page_size: int, *, eviction_policy: Literal["lru", "lfu"] = "lru", enabled: bool = True
    ) -> None:
        self.page_size = page_size
        self.enabled = enabled
        self._lfu = eviction_policy == "lfu"
        self.clock = 0  # uses so far
        self.reset()

    def reset(self) -> None:
        """Forget everything, locked or not, without freeing a page. For a new or a broken tree only."""
        self._serials = count()
        self.root = RadixNode(next(self._serials), np.empty(0, np.int32), [], None)
        self.cached_pages = 0  # in the tree
        self.evictable_pages = 0  # of these, not locked
        # (hits, last use, serial, node); an entry's key may be out of date, which is found when it is popped
        self._heap: list[tuple[int, int, int, RadixNode]] = []

    # ---- lookup ----

    def match_prefix(self, tokens: I32, extra_key: str = "") -> PrefixMatch:
        """The longest cached prefix of `tokens` [n] in whole pages. Splits a node in which it ends."""
        node, inside, _ = self._walk(tokens, extra_key)
        node = self._split(node, inside)
        path = self._use(node)
        pages = [page for each in path for page in each.pages]
        unlocked = sum(len(each.pages) for each in path if not each.lock_count)
        return PrefixMatch(pages, node, unlocked)

    def peek(self, tokens: I32, extra_key: str = "") -> tuple[RadixNode, int]:
        """Node in which the longest cached prefix ends, and its tokens. Changes nothing."""
        node, _, length = self._walk(tokens, extra_key)
        return node, length

    def lock(self, node: RadixNode, *, hit: bool = False) -> None:
        """Keep the prefix that ends at `node` from eviction. `hit`: a request found it, which LFU counts."""
        each: RadixNode | None = node
        while each is not None:
            if not each.lock_count:
                self.evictable_pages -= len(each.pages)
            each.lock_count += 1
            each.hits += hit
            each = each.parent

    def unlock(self, node: RadixNode) -> None:
        """Undo one `lock`."""
        each: RadixNode | None = node
        while each is not None:
            if each.lock_count <= 0:
                raise IntegrityError(f"radix node {each.serial} was unlocked more often than locked")
            each.lock_count -= 1
            if not each.lock_count:
                self.evictable_pages += len(each.pages)
            each = each.parent
        self._offer(node)

    # ---- change ----

    def insert(self, tokens: I32, pages: list[int], extra_key: str = "") -> Insertion:
        """Give `pages` to the tree as the KV of `tokens` [>= len(pages) * page_size].

        Where the tree has a page for the same tokens already, the tree's stays and the caller's is returned
        in `duplicates` (unless it is the same page).
        """
        if not self.enabled:
            return Insertion([], self.root, [])
        tokens = tokens[: len(pages) * self.page_size]
        node, inside, length = self._walk(tokens, extra_key)
        node = self._split(node, inside)
        if length < len(tokens):
            known = length // self.page_size
            node = self._add_child(node, tokens[length:], pages[known:], extra_key)
        tree_pages = [page for each in self._use(node) for page in each.pages]
        duplicates = [mine for mine, kept in zip(pages, tree_pages, strict=True) if mine != kept]
        return Insertion(tree_pages, node, duplicates)

    def evict(self, num_pages: int) -> list[int]:
        """Drop up to `num_pages` unlocked pages, least valuable leaf first, tail first; return them."""
        freed: list[int] = []
        while len(freed) < num_pages and self._heap:
            hits, last_used, _, node = heapq.heappop(self._heap)
            node.queued = False
            if node.lock_count or node.children:
                continue  # offered again when that ends
            if (hits, last_used) != self._value(node):
                self._offer(node)
                continue
            self._drop_tail(node, num_pages - len(freed), freed)
        self.cached_pages -= len(freed)
        self.evictable_pages -= len(freed)
        return freed

    def flush(self) -> list[int]:
        """Drop every unlocked page and return them."""
        return self.evict(self.evictable_pages)

    # ---- inside ----

    def _walk(self, tokens: I32, extra_key: str) -> tuple[RadixNode, int, int]:
        """(last node reached, pages of it that match, tokens matched in all)."""
        node, done = self.root, 0
        size = self.page_size
        prefix = extra_key.encode("utf-8", "surrogatepass")
        end = len(tokens) // size * size
        while done < end:
            child = node.children.get(prefix + tokens[done : done + size].tobytes())
            if child is None:
                break
            prefix = b""
            common = self._common_pages(child.tokens, tokens[done:end])
            done += common * size
            node = child
            if common < len(child.pages):
                return node, common, done
        return node, len(node.pages), done

    def _common_pages(self, left: I32, right: I32) -> int:
        length = min(len(left), len(right))
        unequal = left[:length] != right[:length]
        first = int(unequal.argmax())
        return (first if unequal[first] else length) // self.page_size

    def _split(self, node: RadixNode, num_pages: int) -> RadixNode:
        """The node that ends after the first `num_pages` pages of `node`: `node` itself if that is all.

        The lower part stays the same object, so that whoever locked `node` still holds its end.
        """
        if num_pages == len(node.pages):
            return node
        assert node.parent is not None
        cut = num_pages * self.page_size
        upper = RadixNode(next(self._serials), node.tokens[:cut], node.pages[:num_pages], node.parent)
        upper.key, upper.lock_count = node.key, node.lock_count
        upper.last_used, upper.hits = node.last_used, node.hits
        node.parent.children[node.key] = upper
        node.tokens, node.pages, node.parent = node.tokens[cut:], node.pages[num_pages:], upper
        node.key = node.tokens[: self.page_size].tobytes()
        upper.children[node.key] = node
        return upper

    def _add_child(self, parent: RadixNode, tokens: I32, pages: list[int], extra_key: str) -> RadixNode:
        # a copy: the caller's array may be a small part of something large
        node = RadixNode(next(self._serials), tokens.astype(np.int32), list(pages), parent)
        prefix = extra_key.encode("utf-8", "surrogatepass") if parent is self.root else b""
        node.key = prefix + node.tokens[: self.page_size].tobytes()
        parent.children[node.key] = node
        self.cached_pages += len(pages)
        self.evictable_pages += len(pages)
        self._offer(node)
        return node

    def _use(self, node: RadixNode) -> list[RadixNode]:
        """Mark the path to `node` as used now; return it, topmost first, without the root."""
        self.clock += 1
        path = []
        each = node
        while each.parent is not None:
            each.last_used = self.clock
            siblings = each.parent.children
            siblings[each.key] = siblings.pop(each.key)  # to the end
            path.append(each)
            each = each.parent
        path.reverse()
        return path

    def _value(self, node: RadixNode) -> tuple[int, int]:
        return (node.hits if self._lfu else 0, node.last_used)

    def _offer(self, node: RadixNode) -> None:
        """Queue an unlocked leaf for eviction, once. Its value only grows, so an old entry is never late."""
        if not (node.queued or node.lock_count or node.children or node.parent is None):
            node.queued = True
            heapq.heappush(self._heap, (*self._value(node), node.serial, node))

    def _drop_tail(self, leaf: RadixNode, num_pages: int, freed: list[int]) -> None:
        keep = max(0, len(leaf.pages) - num_pages)
        freed.extend(leaf.pages[keep:])
        if keep:
            del leaf.pages[keep:]
            leaf.tokens = leaf.tokens[: keep * self.page_size]
            self._offer(leaf)
            return
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.key]
        leaf.parent = None
        self._offer(parent)

    def check_integrity(self) -> None:
        """Walk the whole tree. Raises IntegrityError if any counter, key, lock or page is wrong."""
        pages: list[int] = []
        evictable = 0
        stack = [self.root]
        while stack:
            node = stack.pop()
            locks = sum(child.lock_count for child in node.children.values())
            uses = [child.last_used for child in node.children.values()]
            _require(uses == sorted(uses), f"the children of node {node.serial} are out of order")
            _require(node.lock_count >= locks, f"node {node.serial} has fewer locks than its children")
            for key, child in node.children.items():
                first = child.tokens[: self.page_size].tobytes()
                _require(child.key == key and key.endswith(first), f"node {child.serial} has the wrong key")
                _require(child.parent is node, f"node {child.serial} has the wrong parent")
                _require(len(child.tokens) == len(child.pages) * self.page_size > 0, "tokens without pages")
                stack.append(child)
            leaf = not node.children and not node.lock_count and node.parent is not None
            _require(node.queued or not leaf, f"leaf {node.serial} can never be evicted")
            pages += node.pages
            evictable += 0 if node.lock_count else len(node.pages)
        _require(len(set(pages)) == len(pages), "a page is in the tree twice")
        _require(len(pages) == self.cached_pages, "cached_pages is wrong")
        _require(evictable == self.evictable_pages, "evictable_pages is wrong")


def _require(good: bool, message: str) -> None:
    if not good:
        raise IntegrityError("radix cache: " + message)
