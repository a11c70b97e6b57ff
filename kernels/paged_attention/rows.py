"""`RaggedRows`: which tokens and pages belong to which row. The arguments that every
implementation of ragged paged attention shares."""

from typing import Any, NamedTuple


class RaggedRows(NamedTuple):
    """S rows over a flat axis of T tokens; entries past `num_rows` and `num_tokens` are padding.

    Row s owns tokens `cu_q_lens[s]:cu_q_lens[s + 1]`, the last ones of its `kv_lens[s]`, and the pages
    `page_indices[page_offsets[s]:page_offsets[s + 1]]`. The first `num_decode_rows` rows have one token
    each. Arrays are numpy, jax or torch, all int32.

    Decode rows that stand side by side may be a group: the first pages of all are the same ones, and end
    before the last page of each. An implementation may read them once for the group, or not look at this.
    """

    kv_slots: Any  # [T] flat pool position `page * page_size + offset` of each token's KV
    cu_q_lens: Any  # [S + 1]
    kv_lens: Any  # [S] keys of the row, this step's included; 0 for padding
    page_indices: Any  # [P]
    page_offsets: Any  # [S + 1]
    num_rows: Any  # []
    num_decode_rows: Any  # []
    group_rows: Any = None  # [S] at the first row of a group its rows, else 0; None: nothing is shared
    shared_pages: Any = None  # [S] first pages that the row's group shares, 0 if it is in none
