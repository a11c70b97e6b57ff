"""The Triton kernels against the numpy references. `test_triton.py` runs this file in Triton's interpreter.

On a machine with a GPU, `python -m pytest tests/kernels/triton_cases.py` runs the same on the device.
"""

import time

import ml_dtypes
import numpy as np
import pytest
import torch
import triton

from radixmesh.kernels.all_reduce import reference as sum_reference
from radixmesh.kernels.all_reduce import triton as sums
from radixmesh.kernels.all_reduce.inbox import BLOCK, Inbox, bits_of, empty_inbox, inbox_shape
from radixmesh.kernels.embedding.reference import embed as embed_reference
from radixmesh.kernels.embedding.triton import embed
from radixmesh.kernels.gated_activation import reference as gate_reference
from radixmesh.kernels.gated_activation import triton as gate
from radixmesh.kernels.linear import reference as linear_reference
from radixmesh.kernels.linear import triton as few_rows
from radixmesh.kernels.linear.torch_ref import Norm
from radixmesh.kernels.linear.triton import LinearSizes, linear, linear_sizes, summed_sizes
from radixmesh.kernels.paged_attention import reference as attention_reference
from radixmesh.kernels.paged_attention import triton as attention
from radixmesh.kernels.paged_attention import triton_prefill
from radixmesh.kernels.paged_attention.rows import RaggedRows
from radixmesh.kernels.rms_norm import reference as norm_reference
from radixmesh.kernels.rms_norm import triton as norm
from radixmesh.kernels.rope_kv_write import reference as rope_reference
from radixmesh.kernels.rope_kv_write import triton as rope
from radixmesh.kernels.rope_kv_write.torch_ref import HeadNorms
from radixmesh.kernels.sampling import reference as sampling_reference
from radixmesh.kernels.sampling import triton as sampling
from radixmesh.kernels.tuning import target_of
from tests.kernels.test_paged_attention import BATCHES, ragged_case

# kernels work with infinities on purpose; numpy, which the interpreter runs on, warns of them
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = torch.device("cpu" if triton.knobs.runtime.interpret else "cuda")
RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def on_device(values, dtype=None):
    return torch.as_tensor(np.array(values)).to(DEVICE, dtype)


def wide(tensor):
    return tensor.float().cpu().numpy()


# Attention

BATCHES = BATCHES | {
    "more rows than lanes": [(1, length) for length in (3, 90, 1, 1, 40, 33, 64, 65, 2, 7, 16, 17, 128, 5)]
    + [(1, 20)] * 4,
    "nearly equal rows": [(1, 200), (1, 190), (1, 130)],  # each program within one head
    "many chunks": [(1, 33), (5, 5), (70, 200), (1, 1), (64, 64), (31, 95), (2, 300)],
}
OPTIONS = [
    {},
    {"window": 20},
    {"soft_cap": 3.0},
    {"window": 5, "soft_cap": 2.0},
    {"sinks": True, "window": 9},
    {"sinks": True},
]


def attend(name, options, *, page_size, heads, kv_heads, head_dim, dtype="float32", pool="float32"):
    """What the kernel and the reference make of a batch whose KV the reference has written."""
    shape = {"page_size": page_size, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    return attend_to(ragged_case(BATCHES[name], pad_rows=2, pad_tokens=3, **shape), options, dtype, pool)


def attend_to(case, options, dtype="float32", pool="float32"):
    """The same of a batch that is given."""
    (q, k, v, kv_pages, rows), layer_pages, tokens = case
    heads, head_dim = q.shape[1:]
    q, k, v, kv_pages = (wide(on_device(each, getattr(torch, dtype))) for each in (q, k, v, kv_pages))
    if options.get("sinks"):
        options = dict(options, sinks=draw(heads))
    options = dict(options, first_page=layer_pages, scale=0.8 * head_dim**-0.5, k_scale=0.5, v_scale=2.0)
    kv_pages = wide(on_device(kv_pages).to(getattr(torch, pool)))
    want, pages = attention_reference.ragged_paged_attention(q, k, v, kv_pages, rows, **options)
    pages = on_device(pages).to(getattr(torch, pool))
    if pool != "float32":  # how the pool rounds is not what is tested here
        k, v = stored_new(wide(pages), rows, layer_pages, options)
        want, _ = attention_reference.ragged_paged_attention(q, k, v, wide(pages), rows, **options)
    poison(pages, rows, layer_pages)
    if options.get("sinks") is not None:
        options["sinks"] = on_device(options["sinks"])
    rows = to_device(rows, int(rows.num_rows), int(rows.num_decode_rows))
    got = attention.ragged_paged_attention(on_device(q, getattr(torch, dtype)), pages, rows, **options)
    return wide(got)[:tokens], want[:tokens]


def to_device(rows, num_rows, num_decode_rows):
    arrays = {name: on_device(each) for name, each in rows._asdict().items() if each is not None}
    return RaggedRows(**arrays | {"num_rows": num_rows, "num_decode_rows": num_decode_rows})


def stored_new(pages, rows, layer_pages, options):
    """This step's keys and values as the pool holds them, padded to all tokens."""
    page, offset = np.divmod(rows.kv_slots, pages.shape[2])
    keys, values = np.split(pages[layer_pages + page, :, offset], 2, axis=-1)
    return keys * options["k_scale"], values * options["v_scale"]


def poison(pages, rows, layer_pages):
    """Where no token lies, a page holds whatever it held: here what no sum survives."""
    worst = 127 if pages.dtype == torch.int8 else float("nan")
    page_size = pages.shape[2]
    for row in range(int(rows.num_rows)):
        last = int(rows.page_indices[rows.page_offsets[row + 1] - 1]) + layer_pages
        pages[last, :, (int(rows.kv_lens[row]) - 1) % page_size + 1 :] = worst


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attention_of_all_batches(name, options):
    got, want = attend(name, options, page_size=16, heads=6, kv_heads=2, head_dim=64)
    np.testing.assert_allclose(got, want, atol=3e-5)


@pytest.mark.parametrize("name", ["decode", "mixed"])
@pytest.mark.parametrize(
    "page_size, heads, kv_heads, head_dim",
    [(16, 4, 1, 128), (32, 8, 2, 256), (64, 3, 3, 16), (128, 7, 1, 64), (256, 4, 2, 128), (8, 20, 1, 48),
     (1, 2, 2, 32)],
)  # fmt: skip
def test_attention_of_all_shapes(name, page_size, heads, kv_heads, head_dim):
    shape = {"page_size": page_size, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    for options in ({}, {"window": 40, "sinks": True}):
        got, want = attend(name, options, **shape)
        np.testing.assert_allclose(got, want, atol=3e-5)


@pytest.mark.parametrize("sizes", [(64, 64, 4, 5), (16, 16, 4, 3)])
def test_prefill_by_other_sizes(sizes, monkeypatch):
    """Those of a Hopper card, and fewer rows than a KV head has query heads."""
    chosen = triton_prefill.PrefillSizes(*sizes)
    monkeypatch.setattr(triton_prefill, "prefill_sizes", lambda *_: chosen)
    for page_size, options in ((64, {}), (16, {"window": 40}), (128, {"soft_cap": 2.0})):
        got, want = attend("many chunks", options, page_size=page_size, heads=20, kv_heads=1, head_dim=64)
        np.testing.assert_allclose(got, want, atol=3e-5)


DTYPES = [
    ("float16", "float16", 3e-3),
    ("float32", "float8_e4m3fn", 1e-4),
    ("float32", "int8", 1e-4),
    ("float32", "bfloat16", 1e-4),
]
if not triton.knobs.runtime.interpret:  # which multiplies the bits of bfloat16 as integers
    DTYPES += [("bfloat16", pool, 4e-2) for pool in ("bfloat16", "float8_e4m3fn", "int8")]


@pytest.mark.parametrize("dtype, pool, atol", DTYPES)
def test_attention_of_all_dtypes(dtype, pool, atol):
    shape = {"page_size": 16, "heads": 4, "kv_heads": 2, "head_dim": 64}
    for name in ("mixed", "decode"):
        got, want = attend(name, {}, **shape, dtype=dtype, pool=pool)
        np.testing.assert_allclose(got, want, atol=atol * max(1.0, np.abs(want).max()))


def test_shares_of_decode_leave_the_counts_as_they_found_them():
    """The scratch of one call serves the next one, of other rows."""
    shape = {"page_size": 16, "heads": 4, "kv_heads": 2, "head_dim": 64}
    for name in ("decode", "one token", "more rows than lanes", "decode"):
        got, want = attend(name, {}, **shape)
        np.testing.assert_allclose(got, want, atol=3e-5)


def test_padding_rows_of_a_decode_bucket_change_nothing():
    """A captured graph runs its bucket's rows; those without keys get no work, whatever their pages say."""
    args, layer_pages, tokens = ragged_case(
        BATCHES["decode"], page_size=16, heads=4, kv_heads=2, head_dim=64, pad_rows=5, pad_tokens=5
    )
    q, k, v, kv_pages, rows = args
    scaled = {"first_page": layer_pages, "scale": 0.1}
    want, pages = attention_reference.ragged_paged_attention(q, k, v, kv_pages, rows, **scaled)
    got = attention.ragged_paged_attention(
        on_device(q), on_device(pages), to_device(rows, 9, 9), first_page=layer_pages, scale=0.1
    )
    np.testing.assert_allclose(wide(got)[:tokens], want[:tokens], atol=3e-5)


# Embeddings


@pytest.mark.parametrize("size, scale", [(64, 1.0), (24, 7.5), (3000, 0.5)])
def test_embeddings_of_given_and_sampled_tokens(size, scale):
    table, slots = draw(50, size), np.array([7, 49, 0, 3], np.int32)
    token_ids, kv_slots = (
        np.array([5, -1, 49, -4, -2, 0], np.int32),
        np.array([9, 3, 0, 39, 20, 21], np.int32),
    )
    page_tokens = np.full(40, 99, np.int32)
    want, want_pages = embed_reference(token_ids, slots, table, page_tokens, kv_slots, scale=scale)
    pages, ids, taken = (on_device(each) for each in (page_tokens, token_ids, slots))
    got = embed(ids, taken, on_device(table), pages, on_device(kv_slots), scale=scale)
    np.testing.assert_allclose(wide(got), want, rtol=1e-6)
    assert (pages.cpu().numpy() == want_pages).all()


# Rotary embedding and KV write


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, page_size", [(9, 3, 64, 16), (4, 1, 256, 4), (16, 16, 12, 1)]
)
@pytest.mark.parametrize("pool, scale", [("float32", 1.0), ("int8", 0.02), ("float8_e4m3fn", 0.005)])
def test_rope_and_write(normed, heads, kv_heads, head_dim, page_size, pool, scale):
    tokens, slots = 5, np.array([5, 6, 15, 0, 11], np.int32)
    qkv = draw(tokens, heads + 2 * kv_heads, head_dim)
    q, k, v = np.split(qkv, [heads, heads + kv_heads], axis=1)
    cos_sin, positions = draw(31, head_dim), np.array([3, 9, 0, 30, 4], np.int32)
    q_norm, k_norm = draw(2, head_dim)
    pages = torch.zeros(64, kv_heads, page_size, 2 * head_dim).to(getattr(torch, pool)).to(DEVICE)
    numpy_pool = np.zeros(pages.shape, ml_dtypes.float8_e4m3fn if pool == "float8_e4m3fn" else pool)
    want_q, want_pages = rope_reference.rope_and_write(
        q, k, v, cos_sin, positions, numpy_pool, slots, first_page=4, k_scale=scale, v_scale=2 * scale,
        norms=(q_norm, k_norm, 1e-3, 1.0) if normed else None,
    )  # fmt: skip
    given = on_device(qkv)
    parts = given.split([heads, kv_heads, kv_heads], dim=1)
    got_q = rope.rope_and_write(
        parts[0], parts[1], parts[2], on_device(cos_sin), on_device(positions), pages, on_device(slots),
        first_page=4,
        norms=HeadNorms(on_device(q_norm), on_device(k_norm), 1e-3, 1.0) if normed else None,
        k_scale=scale, v_scale=2 * scale,
    )  # fmt: skip
    np.testing.assert_allclose(wide(got_q), want_q, atol=1e-5)
    np.testing.assert_array_equal(wide(given), qkv)
    got, want = wide(pages), want_pages.astype(np.float32)
    if pool == "float32":
        np.testing.assert_allclose(got, want, atol=1e-5)
    else:  # a value next to a rounding boundary may fall to either side
        carried = (2 * got == want) & (np.abs(np.frexp(want)[0]) == 0.5)
        if triton.knobs.runtime.interpret:  # it loses the carry when a float8 rounds up to a power of two
            got = np.where(carried, want, got)
        assert (got != want).mean() < 1e-3
        np.testing.assert_allclose(got, want, rtol=0.13, atol=1)


# Norms and gates


@pytest.mark.parametrize("shape", [(7, 576), (1, 4096), (3, 1000), (5, 1)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 1e-2), ("float16", 2e-3)])
def test_norms(shape, dtype, tolerance):
    kind = getattr(torch, dtype)
    x, residual, weight = (on_device(each, kind) for each in (draw(*shape), draw(*shape), draw(shape[-1])))
    want = norm_reference.rms_norm(wide(x), wide(weight), 1e-3, 1.0)
    np.testing.assert_allclose(
        wide(norm.rms_norm(x, weight, 1e-3, 1.0)), want, rtol=tolerance, atol=tolerance
    )
    want = wide(residual) + norm_reference.rms_norm(wide(x), wide(weight), 1e-3)
    total = norm.rms_norm(x, weight, 1e-3, onto=residual)
    assert total is residual
    np.testing.assert_allclose(wide(total), want, rtol=2 * tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(3, 2 * 1536), (1, 20), (4, 2 * 1030)])
def test_gates(kind, shape):
    given = 3 * draw(*shape)
    want = gate_reference.gated_activation(given, kind)
    np.testing.assert_allclose(
        wide(gate.gated_activation(on_device(given), kind)), want, atol=1e-5, rtol=1e-5
    )


# Sums over ranks


def inboxes(ranks, capacity, dtype):
    """One of each rank, all in this process's memory."""
    shape, kind = inbox_shape(ranks, capacity), bits_of(getattr(torch, dtype))
    slots = [torch.empty(shape, dtype=kind, device=DEVICE) for _ in range(ranks)]
    addresses = [each.data_ptr() for each in slots]
    return [empty_inbox(rank, slots[rank], addresses) for rank in range(ranks)]


def bits(tensor):
    return tensor.view(bits_of(tensor.dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("ranks, rank", [(2, 0), (2, 1), (4, 2)])
@pytest.mark.parametrize("added", [False, True])
def test_sums_of_one_rank(dtype, ranks, rank, added):
    """The others' shares are laid into its inbox by hand, in three slots that take turns; what it sends is
    read out of theirs, which nobody empties here."""
    every, kind = inboxes(ranks, 5 * BLOCK - 1, dtype), getattr(torch, dtype)
    capacity = every[rank].capacity
    assert capacity == 4 * BLOCK
    for call, size in enumerate([capacity, 70, 3 * BLOCK, 3 * BLOCK + 8, 64, capacity, capacity]):
        shares = [on_device(draw(1, size).round(1), kind) for _ in range(ranks)]
        for share in shares:
            share[0, ::7] = -0.0
        residual = on_device(draw(1, size), kind)
        turns = every[rank].turns.tolist()
        for block in range(-(-size // BLOCK)):
            part = slice(block * BLOCK, min((block + 1) * BLOCK, size))
            for other in set(range(ranks)) - {rank}:
                sent = shares[other][0, part] + 0.0  # a rank that sums sends no negative zeros
                every[rank].slots[turns[block], other, part] = bits(sent)
        got = sums.all_reduce_add(shares[rank], residual if added else None, every[rank])
        want = sum_reference.all_reduce_add(
            [each.cpu().numpy() for each in shares], residual.cpu().numpy() if added else None
        )
        np.testing.assert_array_equal(got.cpu().numpy(), want, err_msg=f"call {call}")
        for block in range(-(-size // BLOCK)):
            turn, part = turns[block], slice(block * BLOCK, min((block + 1) * BLOCK, size))
            assert every[rank].turns[block] == (turn + 1) % 3
            for other in set(range(ranks)) - {rank}:
                torch.testing.assert_close(
                    every[other].slots[turn, rank, part], bits(shares[rank][0, part] + 0.0)
                )
                spent = every[rank].slots[turn - 1, other, block * BLOCK : (block + 1) * BLOCK]
                assert (spent == torch.iinfo(spent.dtype).min).all()


@pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="of two GPUs; benchmarks/gpu_all_reduce.py checks that"
)
def test_sums_of_two_processes_that_run_at_once():
    """Each stores into the other's memory while that waits; every call has another size, and
    many need several launches."""
    shape = inbox_shape(2, 2 * BLOCK)
    slots = [torch.empty(shape, dtype=torch.int32).share_memory_() for _ in range(2)]
    for each in slots:
        empty_inbox(0, each, [0, 0])
    context = torch.multiprocessing.spawn(_sum_often, (slots,), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    try:
        while not context.join(timeout=1):  # raises what a rank raised
            assert time.monotonic() < deadline, "a rank waits for what never comes"
    finally:
        for process in context.processes:
            process.kill()


def _sum_often(rank, slots):
    addresses = torch.tensor([each.data_ptr() for each in slots])
    inbox = Inbox(rank, slots[rank], addresses, torch.zeros(2, dtype=torch.int32))
    rng, late = np.random.default_rng(1), np.random.default_rng(rank)
    for _ in range(60):
        shares = rng.standard_normal((2, 1, rng.integers(1, 5 * BLOCK))).astype(np.float32)
        time.sleep(late.random() / 100)
        got = sums.all_reduce_add(torch.from_numpy(shares[rank]), None, inbox)
        np.testing.assert_array_equal(got.numpy(), sum_reference.all_reduce_add([*shares]))


# Sampling

VOCABS = [40, 4096, 9000]


@pytest.mark.parametrize("vocab", VOCABS)
def test_greedy_takes_the_first_of_equals(vocab):
    logits = draw(4, vocab).round(1)
    logits[3] = 0
    logits[2, -1] = 9
    np.testing.assert_array_equal(wide(sampling.greedy(on_device(logits))), logits.argmax(-1))


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 5}, {"temperature": 1.3, "top_p": 0.7}, {"min_p": 0.2},
     {"temperature": 0.8, "top_k": 20, "top_p": 0.6}, {"top_k": 1}, {"top_k": 100_000, "top_p": 0.99},
     {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.1}, {"temperature": 0.0, "top_k": 3}],
    ids=str,
)  # fmt: skip
def test_draws_are_those_of_the_reference(vocab, options):
    rows = 6
    logits = 3 * draw(rows, vocab)
    logits[1, 5:] = -np.inf  # fewer tokens than top_k
    logits[2] = logits[2].round()  # many equals
    logits[3] = 5 + logits[3] / 500  # as likely as each other: too many to gather
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    arrays = [
        np.full(rows, value, np.int32 if name == "top_k" else np.float32) for name, value in neutral.items()
    ]
    seeds, indices = np.array([-1, 2, 3, 4, 5, 2**31 - 1], np.int32), np.arange(rows, dtype=np.int32)
    assert_same_tokens(logits, *arrays, seeds, indices)


def assert_same_tokens(*args):
    got = wide(sampling.choose_tokens(*(on_device(each) for each in args)))
    np.testing.assert_array_equal(got, sampling_reference.choose_tokens(*args))
    return got


def test_draws_from_logits_of_half_precision():
    logits = on_device(3 * draw(5, 5000)).half()
    floats = [np.full(5, each, np.float32) for each in (0.9, 0.8, 0.0)]
    top_k, words = np.array([0, 7, 0, 300, 1], np.int32), np.arange(5, dtype=np.int32)
    args = [floats[0], top_k, floats[1], floats[2], words, words]
    got = sampling.choose_tokens(logits, *(on_device(each) for each in args))
    np.testing.assert_array_equal(wide(got), sampling_reference.choose_tokens(wide(logits), *args))


def test_rows_are_cut_each_by_its_own():
    logits = 2 * draw(6, 50)
    options = {
        "temperature": [0, 1, 1, 1, 0, 0.7], "top_k": [0, 1, 0, 0, 3, 4], "top_p": [1, 1, 1e-6, 1, 0.5, 0.9],
        "min_p": [0, 0, 0, 1, 0, 0.01],
    }  # fmt: skip
    arrays = [np.array(each, np.int32 if name == "top_k" else np.float32) for name, each in options.items()]
    words = np.arange(6, dtype=np.int32)
    got = assert_same_tokens(logits, *arrays, words, words)
    assert (got[:5] == logits.argmax(-1)[:5]).all()  # each in its way leaves one token


def test_the_device_is_known():
    target = target_of(DEVICE)
    assert target.cores > 0 and target.shared_bytes >= 64 << 10


# Products


@pytest.mark.parametrize("rows", [1, 5, 16, 17])
@pytest.mark.parametrize("outputs, inputs", [(96, 64), (64, 192), (5056, 32)])
@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"norm": True}, {"onto": True}, {"norm": True, "gate": "silu"},
                {"gate": "gelu_tanh", "bias": True}, {"onto": True, "bias": True}], ids=str,
)  # fmt: skip
def test_products_of_few_rows(rows, outputs, inputs, options):
    x, weight = draw(rows, inputs), draw(outputs, inputs)
    bias = draw(outputs) if options.get("bias") else None
    norm = (draw(inputs), 1e-2, 1.0) if options.get("norm") else None
    onto = draw(rows, outputs) if options.get("onto") else None
    want = linear_reference.linear(x, weight, bias, norm=norm, gate=options.get("gate"), onto=onto)
    shape, kinds = (outputs, inputs), {"normed": "norm" in options, "gated": "gate" in options}
    assert linear_sizes(target_of(DEVICE), shape, 16, **kinds), "no kernel is tested"
    assert summed_sizes(target_of(DEVICE), shape, 16), "no kernel is tested"
    got = linear(
        on_device(x), on_device(weight), None if bias is None else on_device(bias), gate=options.get("gate"),
        norm=None if norm is None else Norm(on_device(norm[0]), *norm[1:]),
        onto=None if onto is None else on_device(onto),
    )  # fmt: skip
    np.testing.assert_allclose(wide(got), want, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 5, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_products_of_few_rows_behind_a_norm_by_warps(monkeypatch, rows, bias):
    monkeypatch.setattr(few_rows, "summed_sizes", lambda *_, normed: LinearSizes(16, 64, 4 - 2 * bias, 2))
    x, weight, scale, biases = draw(rows, 192), draw(48, 192), draw(192), draw(48) if bias else None
    want = linear_reference.linear(x, weight, biases, norm=(scale, 1e-2, 1.0))
    norm = Norm(on_device(scale), 1e-2, 1.0)
    got = linear(on_device(x), on_device(weight), None if biases is None else on_device(biases), norm=norm)
    np.testing.assert_allclose(wide(got), want, atol=2e-3, rtol=1e-4)


def test_products_of_more_rows_and_of_large_matrices(monkeypatch):
    sizes = LinearSizes(64, 64, 8, 2)
    monkeypatch.setattr(few_rows, "linear_sizes", lambda *_, **__: sizes)
    x, weight, scale = draw(29, 256), draw(640, 256) / 16, draw(256)
    want = linear_reference.linear(x, weight, norm=(scale, 1e-2, 0.0), gate="silu")
    got = linear(on_device(x), on_device(weight), norm=Norm(on_device(scale), 1e-2), gate="silu")
    np.testing.assert_allclose(wide(got), want, atol=2e-3)
