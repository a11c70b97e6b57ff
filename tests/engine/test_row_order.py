"""Where decode rows stand in a batch."""

import numpy as np

from tests.engine.test_scheduler import make_engine, make_request


def test_decode_rows_that_share_a_prefix_stand_side_by_side():
    engine = make_engine(rows=12, chunk=64)
    stems = [[7 * stem + token for token in range(8)] for stem in range(3)]
    for stem in stems:  # their prefixes are cached first
        engine.add_request(make_request(f"first of {stem[0]}", [*stem, 1], max_new=1))
    while engine.has_work:
        engine.step()
    for turn in range(12):
        engine.add_request(make_request(turn, [*stems[turn * 5 % 3], 100 + turn], max_new=30))
    batches, forward = [], engine.runner.forward

    def watched(given):
        batches.extend(given)
        return forward(given)

    engine.runner.forward = watched
    for _ in range(12):
        engine.step()
    batch = batches[-1]
    assert batch.num_decode_rows == 12
    first_pages = batch.page_indices[batch.page_offsets[:-1]]
    assert len(set(first_pages.tolist())) == 3
    assert np.count_nonzero(np.diff(first_pages)) == 2  # of three groups
