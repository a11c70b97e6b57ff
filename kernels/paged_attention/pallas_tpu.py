"""Ragged paged attention for TPUs: one Pallas call serves decode rows and prefill chunks.

The kernel works in three phases: decode rows, of which each meets its pages and adds its new key and
value to the last of them on the way (`tpu_decode.py`); then the writing of the chunks' keys and values,
and after it the attention of the chunks in tiles of tokens (`tpu_chunks.py`). Pages come to VMEM several
blocks ahead of the computation (`tpu_stream.py`); the page table stays in HBM, and its pieces come to
scalar memory as they are needed, so that it bounds neither the number of rows nor their context.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .rows import RaggedRows
from .tpu_blocks import LANES, TAILS, VMEM_MIB, BlockSizes, Shape, chosen_sizes, vmem_limit
from .tpu_chunks import prefill, write_chunks
from .tpu_decode import decode
from .tpu_program import LOG2_E, MASKED, Program, Rows, Scratch
from .tpu_stream import Cursor, Pages, num_pieces
from .xla import NO_WINDOW, stored


class _Inputs(NamedTuple):
    """What the kernel reads, in its order; the first four go to scalar memory before it starts."""

    cu_q_lens: jax.Array  # [rows + 3]
    kv_lens: jax.Array  # [rows + 2]
    page_offsets: jax.Array  # [rows + 1]
    numbers: jax.Array  # num_rows, num_decode_rows, first_page, window
    factors: jax.Array  # float32: of scores, of values
    sinks: jax.Array  # [kv_heads, group, LANES] float32
    decode_q: jax.Array  # [rows, kv_heads, group, lanes]
    prefill_q: jax.Array  # [kv_heads, group, tokens, lanes]
    decode_kv: jax.Array  # [rows, kv_heads, 1, 2 * head_dim]
    prefill_kv: jax.Array  # [kv_heads, page_size + tokens + room, 2 * head_dim]
    table: jax.Array  # [pieces, 1, LANES]
    kv_pages: jax.Array


def ragged_paged_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kv_pages: jax.Array,
    rows: RaggedRows,
    *,
    first_page: jax.Array | int = 0,
    scale: float,
    window: jax.Array | int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    k_scale: jax.Array | float = 1.0,
    v_scale: jax.Array | float = 1.0,
    chip: str,
    sizes: BlockSizes | None = None,
    live_tokens: int | None = None,
    table_room: int = 0,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Write this step's keys and values into their pages, then let each token attend causally.

    Arguments and results as in `reference.py`; `first_page`, `window` and the two scales may be traced,
    so that one scanned layer body serves all layers. The result's rows of tokens that belong to no row
    are zero, and the output has q's dtype. `kv_slots` is not read: a row's new tokens are the last of
    its `kv_lens`, and what padding tokens carry is not written at all. A page that is written must
    belong to one row alone.

    Args beyond those of the reference:
        chip: the generation, one of `VMEM_MIB`.
        sizes: how to cut up the work; None chooses by chip and shapes.
        live_tokens: keys that all rows hold together, for the cost estimate; None counts every entry of
            the page table as a page that is full.
        table_room: entries at the end of `page_indices` that no row has. With TABLE_ROOM of them and a length
            that is a multiple of LANES the table is read where it lies; else each call copies it.
        interpret: as of `pallas_call`: `pltpu.InterpretParams()` runs on a CPU.

    Raises:
        ValueError: an unknown chip, or a head_dim, page size or dtype that the kernel does not take.
    """
    shape = _checked_shape(chip, q, kv_pages)
    sizes = sizes or chosen_sizes(chip, shape)
    new = [stored(k, k_scale, kv_pages.dtype), stored(v, v_scale, kv_pages.dtype)]
    score_factor = scale * k_scale * (LOG2_E if soft_cap is None else 1)
    numbers = (rows.num_rows, rows.num_decode_rows, first_page, NO_WINDOW if window is None else window)
    inputs = _Inputs(
        jnp.pad(rows.cu_q_lens, (0, 2), mode="edge"),  # a cursor looks one row beyond where it ends
        jnp.pad(rows.kv_lens, (0, 2)),
        rows.page_offsets,
        jnp.stack([jnp.asarray(each, jnp.int32) for each in numbers]),
        jnp.stack([jnp.asarray(each, jnp.float32) for each in (score_factor, v_scale)]),
        _sink_lanes(sinks, shape),
        *_queries(q.astype(_product_dtype(q, kv_pages)), rows, shape, sizes),
        *_new_kv(jnp.concatenate(new, axis=-1), rows, shape, sizes),
        table=_table_pieces(rows.page_indices, sizes, table_room),
        kv_pages=kv_pages,
    )
    static = dict(sizes=sizes, head_dim=shape.head_dim, soft_cap=soft_cap, has_sinks=sinks is not None)
    decoded, prefilled, kv_pages = pl.pallas_call(
        functools.partial(_kernel, static),
        grid_spec=_grid(shape, sizes, inputs, q.dtype),
        out_shape=[
            jax.ShapeDtypeStruct(inputs.decode_q.shape, q.dtype),
            jax.ShapeDtypeStruct(inputs.prefill_q.shape, q.dtype),
            jax.ShapeDtypeStruct(kv_pages.shape, kv_pages.dtype),
        ],
        input_output_aliases={_Inputs._fields.index("kv_pages"): 2},
        cost_estimate=_cost(shape, rows, live_tokens),
        compiler_params=pltpu.CompilerParams(
            # the compiler takes all of this from what it keeps in VMEM between operations
            dimension_semantics=("parallel",),
            disable_bounds_checks=True,  # a quarter of what it costs to send for a page; tests have them
            vmem_limit_bytes=vmem_limit(chip, shape, sizes),
        ),
        interpret=interpret,
        name="ragged_paged_attention",
    )(*inputs)
    return _joined(decoded, prefilled, rows, shape), kv_pages


def _grid(shape: Shape, sizes: BlockSizes, inputs: _Inputs, out_dtype: Any) -> pltpu.PrefetchScalarGridSpec:
    """One program for each group of KV heads; what it moves, it moves itself."""
    in_smem, in_hbm = (pl.BlockSpec(memory_space=space) for space in (pltpu.SMEM, pltpu.HBM))
    sinks = pl.BlockSpec((sizes.kv_heads, shape.group, LANES), lambda program, *_: (program, 0, 0))
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=4,
        grid=(shape.kv_heads // sizes.kv_heads,),
        in_specs=[in_smem, sinks, *[in_hbm] * 6],
        out_specs=[in_hbm] * 3,
        scratch_shapes=_scratch(shape, sizes, inputs, out_dtype),
    )


def _kernel(static: dict[str, Any], *refs: Any) -> None:
    inputs, refs = _Inputs(*refs[: len(_Inputs._fields)]), refs[len(_Inputs._fields) :]
    decode_out, prefill_out, pool, *scratch = refs
    sizes = static["sizes"]
    first_head = pl.multiple_of(pl.program_id(0) * sizes.kv_heads, sizes.kv_heads)
    num_rows, num_decode_rows, first_page, window = (inputs.numbers[i] for i in range(4))
    num_scratch = len(Scratch._fields)
    pages = Pages(
        pool,
        inputs.table,
        inputs.page_offsets,
        first_page,
        pl.ds(first_head, sizes.kv_heads),
        *scratch[num_scratch:],
    )
    program = Program(
        **static,
        rows=Rows(inputs.cu_q_lens, inputs.kv_lens, num_rows, num_decode_rows, window),
        pages=pages,
        factors=inputs.factors,
        sinks=inputs.sinks,
        decode_q=inputs.decode_q,
        decode_kv=inputs.decode_kv,
        prefill_q=inputs.prefill_q,
        prefill_kv=inputs.prefill_kv,
        decode_out=decode_out,
        prefill_out=prefill_out,
        scratch=Scratch(*scratch[:num_scratch]),
    )
    decode(program)

    @pl.when(num_rows > num_decode_rows)
    def _() -> None:
        write_chunks(program)
        prefill(program)


def _scratch(shape: Shape, sizes: BlockSizes, inputs: _Inputs, out_dtype: Any) -> list[Any]:
    """What `Scratch` and the last fields of `Pages` name."""
    h, depth, row = sizes.kv_heads, sizes.depth, 2 * shape.head_dim
    products, new, pool = inputs.decode_q.dtype, inputs.decode_kv.dtype, inputs.kv_pages.dtype
    decode_tile = (2, sizes.decode_rows, h, shape.group, shape.lanes)
    prefill_tile = (2, h, shape.group, sizes.prefill_tokens, shape.lanes)
    queries = shape.group * sizes.prefill_tokens
    return [
        pltpu.VMEM(decode_tile, products),
        pltpu.VMEM((2, sizes.decode_rows, h, 1, row), new),
        pltpu.VMEM(decode_tile, out_dtype),
        pltpu.VMEM((TAILS, h, shape.tile_rows, row), pool),
        pltpu.VMEM(prefill_tile, products),
        pltpu.VMEM(prefill_tile, out_dtype),
        pltpu.VMEM((depth, h, sizes.write_pages * shape.page_size + shape.slack, row), new),
        *[pltpu.VMEM((h, queries, lanes), jnp.float32) for lanes in (LANES, LANES, shape.lanes)],
        *[pltpu.SemaphoreType.DMA((count,)) for count in (2, 2, TAILS, depth, 1)],
        pltpu.VMEM((depth, sizes.pages, h, shape.page_size, row), pool),
        pltpu.SMEM((depth + 1, num_pieces(sizes.pages), 1, LANES), jnp.int32),
        pltpu.SMEM((depth + 1, len(Cursor._fields)), jnp.int32),
        *[pltpu.SemaphoreType.DMA((count,)) for count in (depth, depth + 1)],
    ]


def _cost(shape: Shape, rows: RaggedRows, live_tokens: int | None) -> pl.CostEstimate:
    """Keys and values of live tokens read once, and what goes in and out besides. Every row is taken to
    have as many tokens and keys as any other; what the tiles of a long chunk read again is not counted."""
    if live_tokens is None:
        live_tokens = rows.page_indices.shape[0] * shape.page_size
    key_bytes = shape.kv_heads * 2 * shape.head_dim * shape.pool_itemsize
    token_bytes = 2 * shape.heads * shape.lanes * shape.itemsize + 3 * key_bytes
    pairs = shape.heads * live_tokens * shape.tokens // min(rows.kv_lens.shape[0], shape.tokens)
    return pl.CostEstimate(
        flops=4 * pairs * shape.head_dim,
        transcendentals=pairs,
        bytes_accessed=live_tokens * key_bytes + shape.tokens * token_bytes,
    )


def _checked_shape(chip: str, q: jax.Array, kv_pages: jax.Array) -> Shape:
    tokens, heads, head_dim = q.shape
    _, kv_heads, page_size, _ = kv_pages.shape
    if chip not in VMEM_MIB:
        raise ValueError(f"chip {chip!r} is unknown: one of {', '.join(VMEM_MIB)}")
    if head_dim != 64 and head_dim % LANES:
        raise ValueError(f"head_dim {head_dim} is neither 64 nor a multiple of {LANES}")
    if page_size < 16 or page_size & (page_size - 1):
        raise ValueError(f"page_size {page_size} is not a power of two from 16 on")
    if heads % kv_heads:
        raise ValueError(f"{heads} heads cannot share {kv_heads} KV heads evenly")
    return Shape(
        tokens, heads, kv_heads, head_dim, page_size,
        pool_dtype=kv_pages.dtype.name,
        pool_itemsize=kv_pages.dtype.itemsize,
        itemsize=jnp.dtype(_product_dtype(q, kv_pages)).itemsize,
    )  # fmt: skip


def _product_dtype(q: jax.Array, kv_pages: jax.Array) -> Any:
    """The dtype that queries, keys, values and softmax weights are multiplied in; sums are float32."""
    return jnp.float32 if jnp.float32 in (q.dtype, kv_pages.dtype) else jnp.bfloat16


def _sink_lanes(sinks: jax.Array | None, shape: Shape) -> jax.Array:
    """[kv_heads, group, LANES]: where the softmax of each head begins."""
    if sinks is None:
        return jnp.full((shape.kv_heads, shape.group, LANES), MASKED, jnp.float32)
    sinks = (sinks.astype(jnp.float32) * LOG2_E).reshape(shape.kv_heads, shape.group, 1)
    return jnp.broadcast_to(sinks, (*sinks.shape[:2], LANES))


def _queries(q: jax.Array, rows: RaggedRows, shape: Shape, sizes: BlockSizes) -> tuple[jax.Array, jax.Array]:
    """Queries by row for decoding, and by head for chunks, both in whole tiles."""
    q = _padded(q, 2, shape.lanes).reshape(shape.tokens, shape.kv_heads, shape.group, shape.lanes)
    by_row = q[: rows.kv_lens.shape[0]]
    return (
        _padded(by_row, 0, _round_up(by_row.shape[0], sizes.decode_rows)),
        _padded(q.transpose(1, 2, 0, 3), 2, _round_up(shape.tokens, sizes.prefill_tokens)),
    )


def _new_kv(kv: jax.Array, rows: RaggedRows, shape: Shape, sizes: BlockSizes) -> tuple[jax.Array, jax.Array]:
    """New keys and values by row for decoding, and by head for chunks, with room to read beyond both ends."""
    kv = kv.astype(jnp.bfloat16) if shape.pool_itemsize == 1 else kv
    by_row = kv[: rows.kv_lens.shape[0], :, None]
    room = sizes.write_pages * shape.page_size + shape.slack
    return (
        _padded(by_row, 0, _round_up(by_row.shape[0], sizes.decode_rows)),
        jnp.pad(kv.transpose(1, 0, 2), ((0, 0), (shape.page_size, room), (0, 0))),
    )


def _table_pieces(page_indices: jax.Array, sizes: BlockSizes, room: int) -> jax.Array:
    """The page table in pieces, with room to read beyond its end."""
    pieces = (page_indices.shape[0] - room) // LANES + num_pieces(sizes.pages)
    if page_indices.shape[0] % LANES or page_indices.shape[0] < pieces * LANES:
        page_indices = _padded(page_indices, 0, pieces * LANES)
    return page_indices.reshape(-1, 1, LANES)


def _joined(decoded: jax.Array, prefilled: jax.Array, rows: RaggedRows, shape: Shape) -> jax.Array:
    """[tokens, heads, head_dim]: each token's result from where it was computed."""
    token = jnp.arange(shape.tokens)[:, None, None, None]
    decoded = _padded(decoded[: shape.tokens], 0, shape.tokens)
    prefilled = prefilled[:, :, : shape.tokens].transpose(2, 0, 1, 3)
    out = jnp.where(token < rows.cu_q_lens[rows.num_rows], prefilled, 0)
    out = jnp.where(token < rows.num_decode_rows, decoded, out)
    # of a padded head's lanes the last are its values
    return out[..., shape.lanes - shape.head_dim :].reshape(shape.tokens, shape.heads, shape.head_dim)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _padded(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Zeros after `x` along an axis, up to `size`."""
    return jnp.pad(x, [(0, size - length if i == axis else 0) for i, length in enumerate(x.shape)])
