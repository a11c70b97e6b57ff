"""`StepPlan`: a step while it is being planned, and what is left of its limits."""

from dataclasses import dataclass, field

from .batch_builder import Chunk
from .prompt_logprobs import scored_positions
from .radix_cache import RadixNode
from .request import Request
from .shared_prefixes import SharedPages

PageKey = tuple[RadixNode, bytes]


@dataclass(slots=True)
class StepPlan:
    """The decode rows and chunks of a step. Limits count down as they are added."""

    tokens: int
    page_indices: int
    wanted: int  # positions whose logits can be had
    decode: list[Request] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    shared: SharedPages = SharedPages()  # among the decode rows
    stalled: bool = False  # a running prefill found no page
    # pages that chunks of this step begin with: who would compute the same waits a step and finds it cached
    first_pages: set[PageKey] = field(default_factory=set)

    @property
    def is_full(self) -> bool:
        """Whether no chunk fits any more."""
        return not (self.tokens and self.wanted)

    def set_decode(self, rows: list[Request], page_indices: int) -> None:
        """Take the decode rows, whose page tables have so many entries together."""
        self.decode = rows
        self.tokens -= len(rows)
        self.wanted -= len(rows)
        self.page_indices -= page_indices

    def furthest(self, request: Request) -> int:
        """Where the next chunk of `request` ends at the latest, whatever its pages."""
        start = request.num_computed_tokens
        end = min(request.num_tokens, start + self.tokens)
        scored = scored_positions(request, start, end)
        return min(end, scored.start + self.wanted) if scored else end

    def add(self, chunk: Chunk) -> None:
        """Take a chunk, whose pages its request has."""
        self.chunks.append(chunk)
        self.tokens -= chunk.end - chunk.start
        self.wanted -= len(chunk.scored) + chunk.samples
        self.page_indices -= len(chunk.request.pages)

    def note_first_page(self, chunk: Chunk, page_size: int) -> None:
        """Remember with which page a chunk begins, if all of the page's tokens are known."""
        request = chunk.request
        if request.node is None:
            return
        start = chunk.start // page_size * page_size
        page = request.known_tokens(start, start + page_size)
        if len(page) == page_size:
            self.first_pages.add((request.node, page.tobytes()))
