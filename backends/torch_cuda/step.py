"""One whole engine step on the device: embedding to token slots, nothing left to the host."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...engine.batch import SamplingVariant
from ...engine.config import Pooling
from .decoder import Decoder
from .forward_batch import ForwardBatch
from .operations import Operations
from .pages import DeviceState
from .sampler import Masks, Sampled, sample


class Step(NamedTuple):
    """What a step needs beside its batch. Eager steps and captured graphs run the same methods."""

    decoder: Decoder
    state: DeviceState
    operations: Operations

    def embed(self, batch: ForwardBatch) -> Tensor:
        """The residual stream [T, embed] before the first layer. Fills the pages' token ids."""
        return self.decoder.embed(batch, self.state.slots, self.state.page_tokens)

    def hidden(self, batch: ForwardBatch) -> Tensor:
        """Hidden states [T, embed]. Fills KV pages and their token ids."""
        return self.decoder.hidden(self.embed(batch), batch, self.state.kv_pages)

    def logits(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        """Logits [L, vocab] at the wanted ones of the positions of hidden states [T, embed]."""
        everything = len(batch.logits_positions) == len(hidden)  # as in decode
        return self.decoder.logits(hidden if everything else hidden[batch.logits_positions])

    def pool(self, hidden: Tensor, batch: ForwardBatch, pooling: Pooling) -> Tensor:
        """Of each row, [S, embed] float32: the last of its hidden states [T, embed], or their sum."""
        ends = batch.rows.cu_q_lens[1:]
        if pooling == "last":
            return hidden[ends - 1].float()
        owners = torch.searchsorted(
            ends, torch.arange(len(hidden), dtype=ends.dtype, device=ends.device), right=True
        )
        sums = hidden.new_zeros(len(ends), hidden.shape[1], dtype=torch.float32)
        return sums.index_add_(0, owners, hidden.float())

    def sample(
        self, logits: Tensor, batch: ForwardBatch, variant: SamplingVariant, masks: Masks | None = None
    ) -> Sampled:
        """Sample from logits [L, vocab], under masks if there are any, into the slots, and return what was
        sampled."""
        state = self.state
        page_tokens = state.page_tokens.view(-1, state.kv_pages.shape[2])
        sampled = sample(logits, batch, page_tokens, variant, self.operations, masks)
        state.slots[batch.slots] = sampled["token_ids"]
        return sampled
