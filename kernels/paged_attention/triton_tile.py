"""What the attention kernels share: how they load a tile of keys, and how a softmax meets it."""

import triton
import triton.language as tl

NO_WINDOW = 1 << 30  # keys, which is all


def stages(ahead: int) -> int:
    """Triton's `num_stages` that loads tiles so many turns ahead: it spreads them evenly over two loads,
    since a tile waits for its page's number."""
    return 2 * ahead + 1


def power_of_two_within(number: int, low: int, high: int) -> int:
    """The largest that is not above `number`, between two powers of two."""
    return min(high, max(low, 1 << max(number, 1).bit_length() - 1))


def lanes_for(rows: int) -> int:
    """Rows that a kernel is compiled for: few different ones, since each costs a compilation."""
    lanes = 16
    while lanes < rows:
        lanes *= 4
    return lanes


@triton.jit
def load_tile(
    kv, page_indices, table, head, start, length, first_page,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, PAGE_SIZE: tl.constexpr,
    TILE: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """Keys and values [TILE, DIM_PAD] of a row from position `start` on, zeros from `length` on: past a
    row's end a page may hold what no sum survives. Unless the tile is CUT, all of it lies before `length`."""
    at = tl.arange(0, TILE)
    dims = tl.arange(0, DIM_PAD)
    live = (start + at < length) if CUT else tl.full([TILE], True, tl.int1)
    if PAGE_SIZE >= TILE:
        page = tl.load(page_indices + table + start // PAGE_SIZE)
        line = ((first_page + page) * KV_HEADS + head) * PAGE_SIZE + start % PAGE_SIZE
        keys = kv + line.to(tl.int64) * (2 * HEAD_DIM) + (at[:, None] * (2 * HEAD_DIM) + dims[None, :])
    else:
        page = tl.load(page_indices + table + (start + at) // PAGE_SIZE, mask=live, other=0)
        line = ((first_page + page) * KV_HEADS + head) * PAGE_SIZE + (start + at) % PAGE_SIZE
        keys = kv + line.to(tl.int64)[:, None] * (2 * HEAD_DIM) + dims[None, :]
    live = live[:, None]
    if HEAD_DIM != DIM_PAD:
        live &= (dims < HEAD_DIM)[None, :]
    return tl.load(keys, mask=live, other=0.0), tl.load(keys + HEAD_DIM, mask=live, other=0.0)


@triton.jit
def scores_of(q, keys, inner, SOFT_CAP: tl.constexpr, PRECISION: tl.constexpr):
    """q @ keys, which `factor` makes exponents of 2."""
    scores = tl.dot(q, tl.trans(keys.to(q.dtype)), input_precision=PRECISION)
    if SOFT_CAP:
        scores = 1 - 2 / (tl.exp(2 * inner * scores) + 1)  # tanh
    return scores


@triton.jit
def weigh(scores, top, total, factor, MAY_SEE_NONE: tl.constexpr):
    """Add a tile's scores to a running softmax: its largest exponent and its sum.

    Scores are -inf where a key is not seen; MAY_SEE_NONE if a query may have seen none so far. Returns both,
    the weights of the tile's values, and the factor by which what was summed before fades.
    """
    new_top = tl.maximum(top, tl.max(scores, 1) * factor)
    # such a query's top is -inf, and -inf - -inf is not a number
    shift = tl.where(new_top == float("-inf"), 0.0, new_top) if MAY_SEE_NONE else new_top
    weights = tl.exp2(scores * factor - shift[:, None])
    fade = tl.exp2(top - shift)
    return new_top, total * fade + tl.sum(weights, 1), weights, fade


@triton.jit
def start_softmax(sinks, heads, live, begins, QUERY_ROWS: tl.constexpr, SINKS: tl.constexpr):
    """A softmax's first (top, total): that of the sink, if the model has them and this part `begins`."""
    if SINKS:
        sink = tl.load(sinks + heads, mask=live, other=0.0).to(tl.float32) * 1.4426950408889634
        return tl.where(begins, sink, float("-inf")), tl.where(begins, 1.0, 0.0) + 0.0 * sink
    else:
        return tl.full([QUERY_ROWS], float("-inf"), tl.float32), tl.zeros([QUERY_ROWS], tl.float32)
