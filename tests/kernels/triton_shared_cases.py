"""Decode attention of rows that share pages, in Triton, against the numpy reference, which reads each row's
own table. `test_triton.py` runs this file in Triton's interpreter; as `triton_cases.py` it runs on a GPU too.
"""

from typing import Any

import numpy as np
import pytest

from radixmesh.kernels.paged_attention import reference as attention_reference
from radixmesh.kernels.paged_attention import triton as attention
from tests.kernels.test_paged_attention import ragged_case
from tests.kernels.triton_cases import DTYPES, OPTIONS, attend_to, on_device, to_device, wide

# kernels work with infinities on purpose; numpy, which the interpreter runs on, warns of them
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# (rows, pages that they share) of each group, None: a row alone; (query length, own keys) of each row
GROUPS: dict[str, tuple[list[Any], list[Any]]] = {
    "two": ([(2, 5), None, (3, 9)], [(1, 1), (1, 20), (1, 70), (1, 5), (1, 64), (1, 3)]),
    "more than a unit": ([(40, 7)], [(1, 1 + row % 17) for row in range(40)]),
    "with chunks": (
        [None, (2, 30), (4, 2)],
        [(1, 40), (1, 4), (1, 9), (1, 1), (1, 16), (1, 17), (1, 33), (5, 50), (70, 70)],
    ),
}  # fmt: skip


def shared_case(name, *, page_size, heads, kv_heads, head_dim):
    """A batch some of whose rows begin with the same pages."""
    groups, own = GROUPS[name]
    group_rows, shared_pages = np.zeros((2, len(own) + 2), np.int32)
    row = 0
    for group in groups:
        count, pages = group or (1, 0)
        group_rows[row] = count if group else 0
        shared_pages[row : row + count] = pages
        row += count
    batch = [(q, keys + pages * page_size) for (q, keys), pages in zip(own, shared_pages, strict=False)]
    shape = {"page_size": page_size, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    args, layer_pages, tokens = ragged_case(batch, pad_rows=2, pad_tokens=3, **shape)
    table, offsets = args[4].page_indices, args[4].page_offsets
    for first in np.flatnonzero(group_rows):
        pages = shared_pages[first]
        for other in range(first + 1, first + group_rows[first]):
            table[offsets[other] :][:pages] = table[offsets[first] :][:pages]
    rows = args[4]._replace(group_rows=group_rows, shared_pages=shared_pages)
    return (*args[:4], rows), layer_pages, tokens


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attention_of_groups(name, options):
    case = shared_case(name, page_size=16, heads=6, kv_heads=2, head_dim=64)
    got, want = attend_to(case, options)
    np.testing.assert_allclose(got, want, atol=3e-5)


@pytest.mark.parametrize(
    "page_size, heads, kv_heads, head_dim",
    [(64, 4, 1, 128), (32, 8, 2, 256), (16, 3, 3, 16), (128, 7, 1, 64), (8, 20, 1, 48)],
)
@pytest.mark.parametrize("lines", [16, 64])
def test_attention_of_groups_of_all_shapes(page_size, heads, kv_heads, head_dim, lines, monkeypatch):
    """Also a unit of rows that one program has to itself, and one that many share."""
    shape = {"page_size": page_size, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    chosen = attention.DecodeSizes(16 if lines == 16 else 64, 2, 4, 3, lines=lines)
    monkeypatch.setattr(attention, "shared_sizes", lambda *_: chosen)
    for name in GROUPS:
        got, want = attend_to(shared_case(name, **shape), {"sinks": True})
        np.testing.assert_allclose(got, want, atol=3e-5)


def test_pages_that_a_group_shares_are_read_of_its_first_row_alone():
    """Those that the others name there are full of what no sum survives."""
    args, layer_pages, tokens = shared_case("two", page_size=64, heads=4, kv_heads=2, head_dim=64)
    q, k, v, kv_pages, rows = args
    scaled = {"first_page": layer_pages, "scale": 0.1}
    want, pages = attention_reference.ragged_paged_attention(q, k, v, kv_pages, rows, **scaled)
    pages[2 * layer_pages - 1] = np.nan  # no row's own
    for row in (1, 4, 5):
        rows.page_indices[rows.page_offsets[row] :][: rows.shared_pages[row]] = layer_pages - 1
    got = attention.ragged_paged_attention(on_device(q), on_device(pages), to_device(rows, 6, 6), **scaled)
    np.testing.assert_allclose(wide(got)[:tokens], want[:tokens], atol=3e-5)


@pytest.mark.parametrize("dtype, pool, atol", DTYPES)
def test_attention_of_groups_of_all_dtypes(dtype, pool, atol):
    given = shared_case("two", page_size=16, heads=4, kv_heads=2, head_dim=64)
    got, want = attend_to(given, {}, dtype, pool)
    np.testing.assert_allclose(got, want, atol=atol * max(1.0, np.abs(want).max()))
