"""From logits to tokens, inside the compiled step.

Steps of greedy rows alone take an argmax and nothing else. Sampled rows find their top-k and top-p
cut by bisection over the float32 bit patterns instead of sorting the vocabulary: 32 rounds, exact,
ties kept. The randomness of a row depends on its seed and the index of the token alone, never on its
neighbours.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ...engine.request import MAX_TOP_LOGPROBS
from .forward_batch import ForwardBatch, Sampling


def sample(logits: jax.Array, batch: ForwardBatch, pages: jax.Array, full: bool) -> dict[str, jax.Array]:
    """Token ids [L] int32 and, if `full`, logprobs of logits [L, vocab] float32.

    pages: [pages, page_size] the token ids behind the KV pool.
    """
    shaped = _reshape(logits, batch, pages) if full else logits
    greedy = jnp.argmax(shaped, -1).astype(jnp.int32)
    drawing = batch.sampling.temperature > 0
    drawn = lax.cond(jnp.any(drawing), _choose, lambda *_: greedy, shaped, batch.sampling)
    token_ids = jnp.where(drawing, drawn, greedy)
    if not full:
        return {"token_ids": token_ids}
    logprobs = jax.nn.log_softmax(logits)
    top_logprobs, top_ids = lax.top_k(logprobs, min(MAX_TOP_LOGPROBS, logits.shape[-1]))
    chosen = jnp.take_along_axis(logprobs, token_ids[:, None], axis=-1)[:, 0]
    return {"token_ids": token_ids, "logprobs": chosen, "top_ids": top_ids, "top_logprobs": top_logprobs}


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
        # rows of one step sample at most once each: row -> its wanted position
        wanted = batch.logits_rows
        count = jnp.arange(wanted.shape[0])
        wanted_of = (
            jnp.full(rows.kv_lens.shape[0], -1).at[wanted].max(jnp.where(count < batch.num_wanted, count, -1))
        )
        self.wanted = jnp.broadcast_to(wanted_of[page_row][:, None], at.shape)

    def counts(self, first: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """How often each token id occurs from position `first` [L] on: float32 [L, vocab]."""
        counted = self.live & (self.wanted >= 0) & (self.at >= first[self.wanted])
        target = jnp.where(counted, self.wanted, shape[0])  # out of range entries are dropped
        return jnp.zeros(shape).at[target, self.tokens].add(1.0, mode="drop")


def _reshape(logits: jax.Array, batch: ForwardBatch, pages: jax.Array) -> jax.Array:
    """Penalties as in OpenAI's API (output only) and CTRL (repetition: prompt too), then biases."""
    sampling = batch.sampling

    def penalize(logits: jax.Array) -> jax.Array:
        history = History(pages, batch)
        output = history.counts(sampling.prompt_lens, logits.shape)
        logits -= sampling.frequency_penalty[:, None] * output
        logits -= sampling.presence_penalty[:, None] * (output > 0)
        seen = history.counts(jnp.zeros_like(sampling.prompt_lens), logits.shape) > 0
        penalty = sampling.repetition_penalty[:, None]
        return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)

    used = (
        (sampling.frequency_penalty != 0)
        | (sampling.presence_penalty != 0)
        | (sampling.repetition_penalty != 1)
    )
    logits = lax.cond(jnp.any(used), penalize, lambda logits: logits, logits)
    return logits.at[sampling.bias_rows, sampling.bias_ids].add(sampling.bias_values, mode="drop")


def _choose(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """One token a row, drawn from what the cuts leave; of greedy rows, with temperature 0, any token."""
    temperature = jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)
    scaled = logits / temperature[:, None]
    scaled -= scaled.max(-1, keepdims=True)
    scaled = lax.cond(jnp.any(sampling.top_k > 0), _keep_top_k, lambda x, _: x, scaled, sampling.top_k)
    scaled = lax.cond(jnp.any(sampling.top_p < 1), _keep_top_p, lambda x, _: x, scaled, sampling.top_p)
    # the largest of `scaled` is 0, so min_p of the largest probability is a bound on scaled itself
    scaled = jnp.where(scaled >= jnp.log(sampling.min_p)[:, None], scaled, -jnp.inf)
    return _draw(scaled, sampling)


def _draw(scaled: jax.Array, sampling: Sampling) -> jax.Array:
    """Gumbel-max: argmax of scaled logits plus noise of each row's own seed and token index."""

    def noise(seed: jax.Array, index: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), index)
        return jax.random.gumbel(key, scaled.shape[1:])

    return jnp.argmax(scaled + jax.vmap(noise)(sampling.seeds, sampling.indices), -1).astype(jnp.int32)


def _keep_top_k(scaled: jax.Array, top_k: jax.Array) -> jax.Array:
    """Keep the k largest of each row (0: all), ties with the k-th included."""
    wanted = jnp.where(top_k > 0, top_k, scaled.shape[-1])[:, None]
    bar = _largest_bar(scaled, lambda kept: kept.sum(-1, keepdims=True) >= wanted)
    return jnp.where(_ordered(scaled) >= bar, scaled, -jnp.inf)


def _keep_top_p(scaled: jax.Array, top_p: jax.Array) -> jax.Array:
    """Keep the fewest largest whose probability reaches top_p. Holtzman et al. 2020."""
    probs = jax.nn.softmax(scaled)
    # rounding can leave a sum just under 1; a row with top_p 1 keeps everything
    enough = jnp.where(top_p < 1, top_p, -1.0)[:, None]
    bar = _largest_bar(scaled, lambda kept: jnp.where(kept, probs, 0).sum(-1, keepdims=True) >= enough)
    return jnp.where((_ordered(scaled) >= bar) | (top_p >= 1)[:, None], scaled, -jnp.inf)


def _ordered(x: jax.Array) -> jax.Array:
    """float32 as uint32 in the same order."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest_bar(x: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """For each row the largest bar for which `enough(x >= bar)` still holds; uint32 [L, 1]."""
    keys = _ordered(x)

    def halve(_: int, bar: jax.Array) -> jax.Array:
        bit, bar = bar[1], bar[0]
        higher = bar | bit
        return jnp.stack([jnp.where(enough(keys >= higher), higher, bar), bit >> 1])

    shape = (x.shape[0], 1)
    start = jnp.stack([jnp.zeros(shape, jnp.uint32), jnp.full(shape, 1 << 31, jnp.uint32)])
    return lax.fori_loop(0, 32, halve, start)[0]
