"""From logits to tokens on the device. The choosing itself is an operation; here are penalties,
biases and logprobs, which few requests ask for."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...engine.batch import SamplingVariant
from ...engine.request import MAX_TOP_LOGPROBS
from .forward_batch import ForwardBatch
from .operations import Operations

Sampled = dict[str, Tensor]  # by the names of `StepTokens`


class Masks(NamedTuple):
    """What constrained rows may sample."""

    rows: Tensor  # [C] int64, `ScheduleBatch.constrained`
    words: Tensor  # [C, ceil(vocab / 32)] int32: bit `i % 32` of word `i // 32` allows token i

    def apply(self, logits: Tensor) -> Tensor:
        """logits [L, vocab] with -inf for what is not allowed; other rows as they are."""
        bits = self.words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=logits.device)
        forbidden = (bits.flatten(1)[:, : logits.shape[1]] & 1) == 0
        return logits.index_copy(0, self.rows, logits[self.rows].masked_fill(forbidden, -torch.inf))


def sample(
    logits: Tensor,
    batch: ForwardBatch,
    page_tokens: Tensor,
    variant: SamplingVariant,
    operations: Operations,
    masks: Masks | None = None,
) -> Sampled:
    """Token ids [L] int32 and, for FULL, logprobs of logits [L, vocab].

    page_tokens: [pages, page_size] the token ids behind the KV pool.
    """
    sampling, shaped = batch.sampling, logits
    if variant == SamplingVariant.FULL:
        shaped = _reshape(logits.float(), batch, page_tokens)
    if masks is not None:
        shaped = masks.apply(shaped)
    if variant == SamplingVariant.GREEDY:
        return {"token_ids": operations.greedy(shaped)}
    token_ids = operations.choose_tokens(
        shaped, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seeds,
        sampling.indices,
    )  # fmt: skip
    if variant == SamplingVariant.SAMPLE:
        return {"token_ids": token_ids}
    if len(sampling.given_ids):
        token_ids = torch.where(sampling.given_ids >= 0, sampling.given_ids, token_ids)
    logprobs = logits.log_softmax(-1, dtype=torch.float32)
    top_logprobs, top_ids = logprobs.topk(min(MAX_TOP_LOGPROBS, logits.shape[-1]))
    chosen = logprobs.gather(-1, token_ids.long()[:, None])[:, 0]
    found = {
        "token_ids": token_ids,
        "logprobs": chosen,
        "top_ids": top_ids.int(),
        "top_logprobs": top_logprobs,
    }
    if len(sampling.asked_ids):
        found["asked_logprobs"] = logprobs.gather(-1, sampling.asked_ids.long())
    return found


def _reshape(logits: Tensor, batch: ForwardBatch, page_tokens: Tensor) -> Tensor:
    """Penalties as in OpenAI's API (output only) and CTRL (repetition: prompt too), then biases."""
    sampling = batch.sampling
    output, everything = _counts(logits.shape, batch, page_tokens, sampling.prompt_lens)
    logits = logits - sampling.frequency_penalty[:, None] * output
    logits -= sampling.presence_penalty[:, None] * (output > 0)
    penalty = sampling.repetition_penalty[:, None]
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    logits = torch.where(everything > 0, penalized, logits)
    return logits.index_put_((sampling.bias_rows, sampling.bias_ids), sampling.bias_values, accumulate=True)


def _counts(
    shape: torch.Size, batch: ForwardBatch, page_tokens: Tensor, prompt_lens: Tensor
) -> tuple[Tensor, Tensor]:
    """How often each token id occurs before each wanted position: in the output, and in all. [L, vocab].

    Token ids are kept beside the KV, page by page, so that penalties need no state per request: what
    is shared, cached or preempted with the pages is right by construction.
    """
    rows, page_size = batch.rows, page_tokens.shape[1]
    pages = torch.arange(len(rows.page_indices), dtype=torch.int32, device=page_tokens.device)
    page_row = torch.searchsorted(rows.page_offsets, pages, right=True, out_int32=True) - 1
    at = (pages - rows.page_offsets[page_row])[:, None] * page_size
    at = at + torch.arange(page_size, device=page_tokens.device)  # [P, page_size] position in the row
    live = at < rows.kv_lens[page_row][:, None]
    # rows of one step sample at most once each, after what they score: row -> its last wanted position,
    # or the spare one
    count = torch.arange(shape[0], dtype=torch.int32, device=page_tokens.device)
    wanted_of = torch.full((len(rows.kv_lens),), shape[0], dtype=torch.int32, device=page_tokens.device)
    wanted_of.scatter_reduce_(0, batch.logits_rows.long(), count, "amax", include_self=False)
    wanted = wanted_of[page_row][:, None]
    first_output = torch.cat([prompt_lens, prompt_lens.new_zeros(1)])[wanted]
    ids = page_tokens[rows.page_indices].long()
    counts = torch.zeros(2, shape[0] + 1, shape[1], device=page_tokens.device)
    target = (wanted.long() * shape[1] + ids).flatten()
    for count, counted in zip(counts, (live & (at >= first_output), live), strict=True):
        count.view(-1).index_add_(0, target, counted.flatten().float())
    return counts[0, :-1], counts[1, :-1]
