"""The sampler against numpy: which tokens the cuts leave, how often each is drawn, what penalties do."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from radixmesh.backends.jax.forward_batch import ForwardBatch, Sampling
from radixmesh.backends.jax.sampler import sample, sample_masked
from radixmesh.kernels.paged_attention.rows import RaggedRows
from radixmesh.kernels.sampling.reference import choose_tokens
from radixmesh.sharding.axis import ALONE, MeshAxis
from radixmesh.sharding.mesh import MeshSpec, make_mesh

VOCAB, DRAWS = 40, 4000
SAMPLE = {full: jax.jit(partial(sample, full=full, tensor=ALONE)) for full in (False, True)}
PAGE_SIZE = 4
NEUTRAL: dict[str, tuple[float, Any]] = {
    "temperature": (1.0, np.float32), "top_k": (0, np.int32), "top_p": (1.0, np.float32),
    "min_p": (0.0, np.float32), "frequency_penalty": (0.0, np.float32),
    "presence_penalty": (0.0, np.float32), "repetition_penalty": (1.0, np.float32),
    "prompt_lens": (0, np.int32),
}  # fmt: skip


def i32(values: Any) -> Any:
    return np.asarray(values, np.int32)


def batch_of(
    lengths: list[int], page_indices: list[int], biases: list[tuple[int, int, float]] | None = None,
    seeds: Any = None, **values: Any,
) -> ForwardBatch:  # fmt: skip
    """A batch whose rows have so many tokens, all wanted, with neutral sampling but for `values`."""
    rows = len(lengths)
    counts = [-(-each // PAGE_SIZE) for each in lengths]
    arrays: dict[str, Any] = {
        name: np.broadcast_to(np.asarray(values.get(name, value), dtype), rows)
        for name, (value, dtype) in NEUTRAL.items()
    }
    arrays["seeds"] = np.asarray(np.arange(rows) if seeds is None else seeds, np.uint32)
    biases = biases or [(rows, 0, 0.0)]  # a row that does not exist
    arrays["bias_values"] = np.asarray([value for _, _, value in biases], np.float32)
    empty = i32([])
    return ForwardBatch(
        token_ids=empty,
        positions=empty,
        rows=RaggedRows(
            kv_slots=empty,
            cu_q_lens=i32(np.arange(rows + 1)),
            kv_lens=i32(lengths),
            page_indices=i32([*page_indices, 0, 0]),  # padded, as in a bucket
            page_offsets=i32(np.concatenate([[0], np.cumsum(counts)])),
            num_rows=i32(rows),
            num_decode_rows=i32(rows),
        ),
        logits_positions=i32(np.arange(rows)),
        logits_rows=i32(np.arange(rows)),
        num_wanted=i32(rows),
        reshapes=jnp.asarray(False),
        masks=jnp.zeros((rows, 0), jnp.uint32),
        slots=empty,
        sampling=Sampling(
            indices=i32(lengths),
            bias_rows=i32([row for row, _, _ in biases]),
            bias_ids=i32([token for _, token, _ in biases]),
            asked_ids=i32([[(3 * row + each) % VOCAB for each in (0, 1, VOCAB - 5)] for row in range(rows)]),
            given_ids=i32([-1] * rows),
            **arrays,
        ),
    )


def run(logits: np.ndarray, batch: ForwardBatch, pages: Any, full: bool = False) -> dict[str, Any]:
    arrays = jax.tree.map(jnp.asarray, (logits, batch, pages))
    return jax.tree.map(np.asarray, SAMPLE[full](*arrays))


def expected_probs(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> Any:
    """Softmax of what top-k, then top-p, then min-p leave, by sorting."""
    probs = np.exp((logits - logits.max()) / temperature)
    probs /= probs.sum()
    order = np.argsort(-probs)
    if top_k:
        probs[order[top_k:]] = 0
        probs /= probs.sum()
    before = np.cumsum(probs[order]) - probs[order]
    probs[order[before >= top_p]] = 0
    probs[probs < min_p * probs.max()] = 0
    return probs / probs.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(1.0, 0, 1.0, 0.0), (0.5, 0, 1.0, 0.0), (1.0, 5, 1.0, 0.0), (1.3, 0, 0.7, 0.0), (1.0, 0, 1.0, 0.2),
     (0.8, 8, 0.6, 0.0), (1.5, 20, 0.9, 0.1), (1.0, 1, 0.5, 0.0)],
)  # fmt: skip
def test_draws_follow_the_cut_distribution(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.random.default_rng(3).normal(0, 2, VOCAB).astype(np.float32)
    batch = batch_of([1] * DRAWS, [0] * DRAWS, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    got = run(np.tile(logits, (DRAWS, 1)), batch, np.zeros((1, PAGE_SIZE), np.int32))
    want = expected_probs(logits.astype(np.float64), temperature, top_k, top_p, min_p)
    counted = np.bincount(got["token_ids"], minlength=VOCAB) / DRAWS
    assert set(np.flatnonzero(counted)) <= set(np.flatnonzero(want))
    # five standard deviations of a binomial, and a little for tokens that are next to never drawn
    assert (np.abs(counted - want) <= 5 * np.sqrt(want * (1 - want) / DRAWS) + 1e-3).all()


def test_rows_are_cut_each_by_its_own_and_seeds_decide() -> None:
    logits = np.random.default_rng(4).normal(0, 2, (6, VOCAB)).astype(np.float32)
    mixed = batch_of([5] * 6, list(range(12)), temperature=[0, 1, 1, 1, 0, 1], top_k=[0, 1, 0, 0, 3, 0],
                     top_p=[1, 1, 1e-6, 1, 0.5, 1], min_p=[0, 0, 0, 1, 0, 0], seeds=[7] * 6)  # fmt: skip
    pages = np.zeros((12, PAGE_SIZE), np.int32)
    got = run(logits, mixed, pages)["token_ids"]
    assert (got[:5] == logits.argmax(-1)[:5]).all()  # each in its way leaves one token
    alone = batch_of([5], [0, 1], temperature=1.0, seeds=[7])
    assert run(logits[5:], alone, pages)["token_ids"][0] == got[5]


def test_penalties_biases_and_logprobs() -> None:
    rng = np.random.default_rng(5)
    lengths, prompts = [9, 4, 11], [3, 4, 5]
    tables = [[6, 2, 4], [1], [0, 5, 3]]
    texts = [rng.integers(0, 12, each) for each in lengths]
    pages = rng.integers(0, 12, (7, PAGE_SIZE)).astype(np.int32)  # stale ids past the rows' ends
    for text, table in zip(texts, tables, strict=True):
        for at, token in enumerate(text):
            pages[table[at // PAGE_SIZE], at % PAGE_SIZE] = token
    options = {"frequency_penalty": [0.7, 0.0, -0.5], "presence_penalty": [0.3, 1.0, 0.0],
               "repetition_penalty": [1.0, 1.8, 1.3]}  # fmt: skip
    biases = [(0, 30, 50.0), (1, 31, 50.0), (1, 32, 60.0), (2, 33, -np.inf), (3, 0, 99.0)]
    for shift in range(VOCAB):  # the likeliest token moves through the vocabulary: greedy tells the order
        logits = np.roll(rng.normal(0, 1.5, (3, VOCAB)), shift, axis=1).astype(np.float32)
        want = logits.astype(np.float64).copy()
        for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
            counts = np.bincount(text[prompt:], minlength=VOCAB)
            want[row] -= options["frequency_penalty"][row] * counts
            want[row] -= options["presence_penalty"][row] * (counts > 0)
            for token in set(text.tolist()):
                factor = options["repetition_penalty"][row]
                want[row, token] *= factor if want[row, token] <= 0 else 1 / factor
        used = [] if shift % 2 else biases
        for row, token, value in used[:-1]:
            want[row, token] += value
        batch = batch_of(
            lengths, sum(tables, []), used or None, temperature=0.0, prompt_lens=prompts, **options
        )
        got = run(logits, batch, pages, full=True)
        assert (got["token_ids"] == want.argmax(-1)).all()
        logprobs = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
        np.testing.assert_allclose(
            got["logprobs"], logprobs[np.arange(3), got["token_ids"]], atol=1e-5
        )  # of the model's own distribution
        asked = np.take_along_axis(logprobs, np.asarray(batch.sampling.asked_ids), 1)
        np.testing.assert_allclose(got["asked_logprobs"], asked, atol=1e-5)
        assert (got["top_ids"] == np.argsort(-logprobs, -1)[:, : got["top_ids"].shape[1]]).all()


def test_draws_are_those_of_the_reference() -> None:
    """So a seed gives the same tokens on every backend."""
    rng = np.random.default_rng(7)
    rows = 64
    logits = rng.normal(0, 2, (rows, VOCAB)).astype(np.float32)
    options: dict[str, Any] = dict(
        temperature=rng.choice([0.0, 0.7, 1.0, 1.6], rows), top_k=rng.choice([0, 3, 12], rows),
        top_p=rng.choice([1.0, 0.6, 0.9], rows), min_p=rng.choice([0.0, 0.05], rows),
        seeds=rng.integers(0, 2**32, rows),
    )  # fmt: skip
    batch = batch_of(rng.integers(1, 9, rows).tolist(), [0] * 2 * rows, **options)
    got = run(logits, batch, np.zeros((1, PAGE_SIZE), np.int32))["token_ids"]
    names = ("temperature", "top_k", "top_p", "min_p", "seeds", "indices")
    want = choose_tokens(logits, *(np.asarray(getattr(batch.sampling, name)) for name in names))
    assert (got == want).all() and (got != logits.argmax(-1)).any()


@pytest.mark.parametrize("shards", [2, 8])
def test_a_split_vocabulary_changes_nothing(shards: int) -> None:
    """Cuts, draws, penalties, biases, logprobs and ties, with ids that only fill the last shard."""
    rng = np.random.default_rng(6)
    rows, vocab = 12, VOCAB - 3
    logits = rng.normal(0, 2, (rows, VOCAB)).astype(np.float32)
    logits[3, [5, 20, 30]] = logits[3].max() + 1  # ties between shards, and within one
    logits[3, [6, 21]] = logits[3].max()
    logits[:, vocab:] = -np.inf
    pages = rng.integers(0, vocab, (2 * rows, PAGE_SIZE)).astype(np.int32)
    batch = batch_of(
        [7] * rows, list(range(2 * rows)), biases=[(1, 36, 9.0), (2, 0, -np.inf), (11, 4, 5.0)],
        seeds=rng.integers(0, 2**32, rows), prompt_lens=3,
        temperature=[0, 1, 1, 0, 0.7, 1, 1.5, 1, 1, 0, 1, 2], top_k=[0, 0, 3, 0, 10, 0, 0, 40, 1, 0, 0, 0],
        top_p=[1, 1, 1, 1, 0.9, 0.5, 0.95, 1, 1, 1, 1, 1], min_p=[0, 0, 0, 0, 0, 0, 0.05, 0.1, 0, 0, 0, 0],
        frequency_penalty=[0, 0.5, 0, 0, 0, 0, 0, 0, 0, 1.0, 0, 0], presence_penalty=0.1,
        repetition_penalty=[1.0, 1.3, *[1.0] * 9, 1.2],
    )  # fmt: skip
    mesh = make_mesh(jax.devices(), MeshSpec(tensor=shards))
    masks = rng.integers(0, 2**32, (rows, 2), np.uint32)  # of 40 bits each; a shard of 5 ids lies across both
    masked = [batch._replace(masks=jnp.asarray(masks), reshapes=jnp.asarray(full)) for full in (False, True)]
    steps: list[tuple[Any, ForwardBatch, bool]] = [
        (partial(sample, full=full), batch, full) for full in (False, True)
    ]
    steps += [(sample_masked, each, bool(each.reshapes)) for each in masked]
    for step, batch, full in steps:
        arrays = jax.tree.map(jnp.asarray, (logits, batch, pages))
        split = jax.shard_map(
            partial(step, tensor=MeshAxis("tensor", shards)),
            mesh=mesh,
            in_specs=(PartitionSpec(None, "tensor"), PartitionSpec(), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        got = jax.tree.map(np.asarray, jax.jit(split)(*arrays))
        want = jax.tree.map(np.asarray, jax.jit(partial(step, tensor=ALONE))(*arrays))
        assert (got["token_ids"] == want["token_ids"]).all() and (got["token_ids"] < vocab).all()
        if step is sample_masked:
            chosen = got["token_ids"]
            assert (masks[np.arange(rows), chosen // 32] >> (chosen % 32) & 1).all()
        if full:
            assert (got["top_ids"] == want["top_ids"]).all()
            for name in ("logprobs", "top_logprobs", "asked_logprobs"):
                np.testing.assert_allclose(got[name], want[name], atol=1e-5)
