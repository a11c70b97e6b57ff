"""Block sizes of the TPU kernel: what is moved and computed at once, and the VMEM that it takes.

`tpu_blocks.json` holds sizes by chip and shape, each of which has been compiled; `scripts/tune_tpu_blocks.py`
writes it. Other shapes follow a rule that needs no compiler.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

MIB = 1 << 20
VMEM_MIB = {"v4": 16, "v5e": 128, "v5p": 64, "v6e": 128, "tpu7x": 64}  # of one core
TWO_CORES = ("v4", "v5p")  # two cores that may share one call
LANES = 128
TABLE_ROOM = 2 * LANES  # entries beyond a page table's end that the kernel may fetch with its last ones

# Pages in flight hide HBM's latency, about 2 us times its bandwidth; fewer keys than MIN_KEYS leave the
# matrix unit idle, more than MAX_KEYS are mostly masked in short requests.
BLOCK_BYTES = MIB
IN_FLIGHT_BYTES = 4 * MIB
MIN_KEYS, MAX_KEYS = 256, 1024
PREFILL_QUERIES, PREFILL_KEYS = 1024, 512  # enough products for each byte of KV on every chip
WRITE_KEYS = 128  # of a chunk, written together
TAILS = 4  # decode rows whose write may be under way


@dataclass(frozen=True)
class Shape:
    """What block sizes depend on: one device's share of a call."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    pool_dtype: str
    pool_itemsize: int  # bytes of a stored number
    itemsize: int  # bytes of a number in products

    @property
    def group(self) -> int:
        """Query heads of one KV head."""
        return self.heads // self.kv_heads

    @property
    def lanes(self) -> int:
        """Width of a query: narrow heads are padded, so that a product takes whole rows of the pool."""
        return max(self.head_dim, LANES)

    @property
    def new_itemsize(self) -> int:
        """Bytes of a new key's number: bfloat16 holds every one-byte number exactly."""
        return max(self.pool_itemsize, 2)

    @property
    def slack(self) -> int:
        """Tokens of a memory tile, by which a chunk's tokens may be out of step with their pages."""
        return 32 // self.new_itemsize

    @property
    def tile_rows(self) -> int:
        """Tokens of a page that are written together: a memory tile of the pool's dtype."""
        return min(32 // self.pool_itemsize, self.page_size)


@dataclass(frozen=True)
class BlockSizes:
    """How one call is cut up. Any sizes give the same result; they decide speed and VMEM."""

    kv_heads: int  # KV heads of one program; the programs of a call share nothing
    depth: int  # blocks of pages in VMEM: one at work, the others on their way
    decode_pages: int  # pages in a block that a decode row meets
    decode_rows: int  # decode rows whose queries and results travel together
    prefill_pages: int  # pages in a block that a tile of a prefill chunk meets
    prefill_tokens: int  # tokens in a tile, a power of two from 16
    write_pages: int  # pages of a chunk's new keys and values that are written together

    @property
    def pages(self) -> int:
        """Pages that a block has room for."""
        return max(self.decode_pages, self.prefill_pages, self.write_pages)


def vmem_bytes(shape: Shape, sizes: BlockSizes) -> int:
    """VMEM that a program takes: its buffers, and what a step computes between them."""
    h, row = sizes.kv_heads, 2 * shape.head_dim
    queries = shape.group * sizes.prefill_tokens
    padded_group = -(-shape.group // 16) * 16
    ring = sizes.depth * sizes.pages * h * shape.page_size * row * shape.pool_itemsize
    new = sizes.depth * h * (sizes.write_pages * shape.page_size + shape.slack) * row * shape.new_itemsize
    decode = 2 * sizes.decode_rows * h * (2 * padded_group * shape.lanes + 16 * row) * shape.itemsize
    prefill = 2 * h * queries * 2 * shape.lanes * shape.itemsize
    softmax = h * queries * (shape.lanes + 2 * LANES) * 4
    keys = sizes.prefill_pages * shape.page_size
    between = queries * keys * (4 + 4 + shape.itemsize) + 2 * keys * row * shape.itemsize
    between += queries * shape.lanes * 8
    return ring + new + decode + prefill + softmax + between + TAILS * h * shape.tile_rows * row * 4


def chosen_sizes(chip: str, shape: Shape) -> BlockSizes:
    """The table's sizes for a chip and shape, or else those of the rule."""
    found = _table().get(table_key(chip, shape))
    if found is None:
        return rule_sizes(chip, shape)
    return replace(found, prefill_tokens=_tile(shape, found.prefill_tokens))


def table_key(chip: str, shape: Shape) -> str:
    """What a table entry is for: any number of tokens."""
    heads = f"{shape.heads}/{shape.kv_heads} heads of {shape.head_dim}"
    return f"{chip}, {shape.pool_dtype}, {heads}, page {shape.page_size}"


def rule_sizes(chip: str, shape: Shape) -> BlockSizes:
    """Sizes that fit every chip and shape: the first that take half of VMEM by `vmem_bytes`, which is
    more than the compiler needs."""
    fitting = (each for each in ladder(chip, shape) if vmem_bytes(shape, each) <= VMEM_MIB[chip] * MIB // 2)
    return next(fitting)


def vmem_limit(chip: str, shape: Shape, sizes: BlockSizes) -> int:
    """What the kernel may take of VMEM: the compiler keeps other operations' arrays in the rest."""
    return min(vmem_bytes(shape, sizes), VMEM_MIB[chip] * MIB * 3 // 4)


def ladder(chip: str, shape: Shape) -> Iterator[BlockSizes]:
    """Sizes from those that VMEM without end would get, down to the smallest.

    Raises ValueError beyond the smallest.
    """
    heads = shape.kv_heads
    if chip in TWO_CORES and heads % 2 == 0:
        heads //= 2
    key_bytes = heads * 2 * shape.head_dim * shape.pool_itemsize
    keys = min(max(BLOCK_BYTES // key_bytes, MIN_KEYS), MAX_KEYS)
    pages = max(1, keys // shape.page_size)
    depth = IN_FLIGHT_BYTES // (pages * shape.page_size * key_bytes) + 1
    sizes = BlockSizes(
        kv_heads=heads,
        depth=min(max(depth, 3), 6),
        decode_pages=pages,
        decode_rows=8,
        prefill_pages=max(1, PREFILL_KEYS // shape.page_size),
        prefill_tokens=_tile(shape, PREFILL_QUERIES // shape.group),
        write_pages=max(1, WRITE_KEYS // shape.page_size),
    )
    while True:
        yield sizes
        sizes = _smaller(sizes)


def _tile(shape: Shape, wanted: int) -> int:
    """A power of two from 16 on, no larger than wanted nor than what the tokens need."""
    return max(16, 1 << min(wanted, shape.tokens).bit_length() - 1)


@cache
def _table() -> dict[str, BlockSizes]:
    entries = json.loads(Path(__file__).with_name("tpu_blocks.json").read_text(encoding="utf-8"))
    return {key: BlockSizes(*sizes) for key, sizes in entries.items()}


def _smaller(sizes: BlockSizes) -> BlockSizes:
    """The same with the least loss given up."""
    if sizes.depth > 3:
        return replace(sizes, depth=sizes.depth - 1)
    if sizes.prefill_tokens > 64:
        return replace(sizes, prefill_tokens=sizes.prefill_tokens // 2)
    if sizes.kv_heads > 1:
        return replace(sizes, kv_heads=_divisor(sizes.kv_heads))
    if sizes.pages > 1:
        half = {f: max(1, getattr(sizes, f) // 2) for f in ("decode_pages", "prefill_pages", "write_pages")}
        return replace(sizes, **half)
    if sizes.prefill_tokens > 16:
        return replace(sizes, prefill_tokens=sizes.prefill_tokens // 2)
    if sizes.depth > 2:
        return replace(sizes, depth=2)
    raise ValueError(f"heads of {sizes} do not fit VMEM")


def _divisor(heads: int) -> int:
    """The largest proper divisor."""
    return next(each for each in range(heads // 2, 0, -1) if heads % each == 0)
