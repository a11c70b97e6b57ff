"""From logits to tokens, inside the compiled step.

Steps of greedy rows alone take an argmax and nothing else. Sampled rows find their top-k and top-p
cut by bisection over the float32 bit patterns instead of sorting the vocabulary: exact, ties kept. The
randomness of a row depends on its seed and the index of the token alone, never on its neighbours nor
on the mesh. Logits may be split over the vocabulary: what looks across goes through `VocabShards`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from ...engine.request import MAX_TOP_LOGPROBS
from ...sharding.axis import MeshAxis
from .forward_batch import ForwardBatch, Sampling
from .partition import VocabShards

_GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio: spreads small numbers over all words


def sample(
    logits: jax.Array, batch: ForwardBatch, pages: jax.Array, full: bool, tensor: MeshAxis
) -> dict[str, jax.Array]:
    """Token ids [L] int32 and, if `full`, logprobs of logits [L, vocab] float32.

    pages: [pages, page_size] the token ids behind the KV pool. `tensor` is the mesh axis over which the
    vocabulary is split; all its shards return the same.
    """
    vocab = VocabShards(tensor, logits.shape[-1])
    shaped = _reshape(logits, batch, pages, vocab) if full else logits
    token_ids = _draw(shaped, batch.sampling, vocab)
    if not full:
        return {"token_ids": token_ids}
    token_ids = _given(token_ids, batch.sampling)
    return {"token_ids": token_ids, **_logprobs(logits, token_ids, batch.sampling.asked_ids, vocab)}


def sample_masked(
    logits: jax.Array, batch: ForwardBatch, pages: jax.Array, tensor: MeshAxis
) -> dict[str, jax.Array]:
    """`sample` of those tokens alone that the batch's masks allow. Whether it is full is decided as it runs;
    where it is not, logprobs are zeros."""
    vocab = VocabShards(tensor, logits.shape[-1])
    full = batch.reshapes
    shaped = lax.cond(full, lambda x: _reshape(x, batch, pages, vocab), lambda x: x, logits)
    shaped = jnp.where(vocab.unpack(batch.masks), shaped, -jnp.inf)
    token_ids = _draw(shaped, batch.sampling, vocab)
    token_ids = _given(token_ids, batch.sampling)
    of_chosen = partial(_logprobs, vocab=vocab)
    operands = (logits, token_ids, batch.sampling.asked_ids)
    shapes = jax.eval_shape(of_chosen, *operands)
    nothing = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
    return {"token_ids": token_ids, **lax.cond(full, of_chosen, lambda *_: nothing, *operands)}


def _draw(logits: jax.Array, sampling: Sampling, vocab: VocabShards) -> jax.Array:
    """Token ids [L] from logits as they are to be sampled."""
    greedy = vocab.argmax(logits)
    drawing = sampling.temperature > 0
    drawn = lax.cond(jnp.any(drawing), lambda x: _choose(x, sampling, vocab), lambda _: greedy, logits)
    return jnp.where(drawing, drawn, greedy)


def _given(token_ids: jax.Array, sampling: Sampling) -> jax.Array:
    """What was drawn [L], but where a prompt gives the token."""
    return jnp.where(sampling.given_ids >= 0, sampling.given_ids, token_ids)


def _logprobs(
    logits: jax.Array, token_ids: jax.Array, asked_ids: jax.Array, vocab: VocabShards
) -> dict[str, jax.Array]:
    """Log probabilities of the chosen tokens [L], of the likeliest and of asked ones [L, K], by the names of
    `StepTokens`."""
    shifted = logits - vocab.max(logits)
    logprobs = shifted - jnp.log(vocab.sum(jnp.exp(shifted)))
    top_logprobs, top_ids = vocab.top_k(logprobs, MAX_TOP_LOGPROBS)
    # one look-up of all: on a mesh the shards meet but once
    picked = vocab.pick(logprobs, jnp.concatenate([token_ids[:, None], asked_ids], 1))
    return {
        "logprobs": picked[:, 0],
        "top_ids": top_ids,
        "top_logprobs": top_logprobs,
        "asked_logprobs": picked[:, 1:],
    }


class History:
    """The tokens that came before each wanted position, read back from the pages of its row.

    Token ids are kept beside the KV, page by page, so that penalties need no state per request: what
    is shared, cached or preempted with the pages is right by construction.
    """

    def __init__(self, pages: jax.Array, batch: ForwardBatch) -> None:
        """pages: [pages, page_size] token ids."""
        rows, num_pages, page_size = batch.rows, batch.rows.page_indices.shape[0], pages.shape[1]
        self.tokens = pages[rows.page_indices]  # [P, page_size]
        page_row = jnp.searchsorted(rows.page_offsets, jnp.arange(num_pages), side="right") - 1
        page_row = jnp.minimum(page_row, rows.kv_lens.shape[0] - 1)
        column = jnp.arange(num_pages) - rows.page_offsets[page_row]
        at = column[:, None] * page_size + jnp.arange(page_size)
        self.at = at  # [P, page_size] position of each token in its row
        self.live = (at < rows.kv_lens[page_row][:, None]) & (
            jnp.arange(num_pages) < rows.page_offsets[rows.num_rows]
        )[:, None]
        # rows of one step sample at most once each, after what they score: row -> its wanted position
        wanted = batch.logits_rows
        count = jnp.arange(wanted.shape[0])
        wanted_of = (
            jnp.full(rows.kv_lens.shape[0], -1).at[wanted].max(jnp.where(count < batch.num_wanted, count, -1))
        )
        self.wanted = jnp.broadcast_to(wanted_of[page_row][:, None], at.shape)

    def counts(self, first: jax.Array, vocab: VocabShards) -> jax.Array:
        """How often each token id occurs from position `first` [L] on: float32 [L, vocab]."""
        counted = self.live & (self.wanted >= 0) & (self.at >= first[self.wanted])
        target = jnp.where(counted, self.wanted, len(first))  # out of range entries are dropped
        return jnp.zeros((len(first), vocab.size)).at[target, vocab.local(self.tokens)].add(1.0, mode="drop")


def _reshape(logits: jax.Array, batch: ForwardBatch, pages: jax.Array, vocab: VocabShards) -> jax.Array:
    """Penalties as in OpenAI's API (output only) and CTRL (repetition: prompt too), then biases."""
    sampling = batch.sampling

    def penalize(logits: jax.Array) -> jax.Array:
        history = History(pages, batch)
        output = history.counts(sampling.prompt_lens, vocab)
        logits -= sampling.frequency_penalty[:, None] * output
        logits -= sampling.presence_penalty[:, None] * (output > 0)
        seen = history.counts(jnp.zeros_like(sampling.prompt_lens), vocab) > 0
        penalty = sampling.repetition_penalty[:, None]
        return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)

    used = (
        (sampling.frequency_penalty != 0)
        | (sampling.presence_penalty != 0)
        | (sampling.repetition_penalty != 1)
    )
    logits = lax.cond(jnp.any(used), penalize, lambda logits: logits, logits)
    at = (sampling.bias_rows, vocab.local(sampling.bias_ids))
    return logits.at[at].add(sampling.bias_values, mode="drop")


def _choose(logits: jax.Array, sampling: Sampling, vocab: VocabShards) -> jax.Array:
    """One token a row, drawn from what the cuts leave; of greedy rows, with temperature 0, any token.

    The cuts are bars in the order of `_ordered`, which a positive temperature does not change; 0 is below
    everything. They are found and applied without a copy of the logits that outlives its use.
    """
    temperature = jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)[:, None]
    top = vocab.max(logits) / temperature
    bar = lax.cond(
        jnp.any(sampling.top_k > 0),
        lambda: _top_k_bar(logits, sampling, vocab),
        lambda: jnp.zeros((logits.shape[0], 1), jnp.uint32),
    )

    def top_p_bar() -> jax.Array:
        weights = jnp.where(_ordered(logits) >= bar, jnp.exp(logits / temperature - top), 0)
        return jnp.maximum(bar, _top_p_bar(logits, weights, sampling, vocab))

    bar = lax.cond(jnp.any(sampling.top_p < 1), top_p_bar, lambda: bar)
    scaled = logits / temperature - top
    # the largest of `scaled` is 0, so min_p of the largest probability is a bound on scaled itself
    kept = (_ordered(logits) >= bar) & (scaled >= jnp.log(sampling.min_p)[:, None])
    return vocab.argmax(jnp.where(kept, scaled + _gumbel_noise(sampling, vocab), -jnp.inf))


def _gumbel_noise(sampling: Sampling, vocab: VocabShards) -> jax.Array:
    """-log(-log(u)) of u uniform in (0, 1), float32 [L, vocab].

    u is 23 bits of mix(mix(id * GOLDEN + mix(seed)) ^ mix(index + GOLDEN)): the noise of an id depends
    on nothing but seed, index and the id itself, on whatever shard, and costs a dozen integer operations.
    """
    tokens = vocab.ids.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    seeds = _mix(sampling.seeds)[:, None]
    indices = _mix(sampling.indices.astype(jnp.uint32) + jnp.uint32(_GOLDEN))[:, None]
    words = _mix(_mix(tokens + seeds) ^ indices)
    # 24 bits would round to 1 at the top, whose noise is infinite
    uniform = ((words >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    return -jnp.log(-jnp.log(uniform))


def _mix(words: jax.Array) -> jax.Array:
    """uint32 words, each to another that looks random: MurmurHash3's last step. Appleby 2011."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def _top_k_bar(logits: jax.Array, sampling: Sampling, vocab: VocabShards) -> jax.Array:
    """What keeps the k largest of each row (0: all), ties with the k-th included."""
    top_k = sampling.top_k
    wanted = jnp.where(top_k > 0, top_k, vocab.size * vocab.axis.size)[:, None, None]
    return _largest_bar(logits, lambda kept: vocab.sum(kept) >= wanted, vocab)


def _top_p_bar(logits: jax.Array, weights: jax.Array, sampling: Sampling, vocab: VocabShards) -> jax.Array:
    """What keeps the fewest largest whose share of all `weights` reaches top_p. Holtzman et al. 2020."""
    top_p = sampling.top_p[:, None]
    # rounding can leave a sum just under the whole; a row with top_p 1 keeps everything
    wanted = jnp.where(top_p < 1, top_p * vocab.sum(weights), -1.0)[..., None]
    bar = _largest_bar(logits, lambda kept: vocab.sum(jnp.where(kept, weights[:, None], 0)) >= wanted, vocab)
    return jnp.where(top_p < 1, bar, 0)


def _ordered(x: jax.Array) -> jax.Array:
    """float32 as uint32 in the same order."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest_bar(x: jax.Array, enough: Callable[[jax.Array], jax.Array], vocab: VocabShards) -> jax.Array:
    """For each row the largest bar for which `enough(x >= bar)` still holds; uint32 [L, 1].

    `enough` takes what several bars keep, bool [L, bars, vocab], and gives bool [L, bars, 1].
    """
    # shards have to wait for each other in every round: then few rounds of many bars are quicker
    bits = 1 if vocab.axis.size == 1 else 4
    steps = jnp.arange(1, 1 << bits, dtype=jnp.uint32)

    def narrow(settled: jax.Array, bar: jax.Array) -> jax.Array:
        # the barrier keeps the compiler from holding x in order, a second copy, for all rounds
        values, bar = lax.optimization_barrier((x, bar))
        shift = (32 - bits * (settled + 1)).astype(jnp.uint32)
        bars = bar | (steps << shift)
        held = enough(_ordered(values)[:, None] >= bars[..., None]).sum(1, dtype=jnp.uint32)  # the lower ones
        return bar | (held << shift)

    return lax.fori_loop(0, 32 // bits, narrow, jnp.zeros((x.shape[0], 1), jnp.uint32))
