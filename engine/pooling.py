"""Embeddings: the hidden states of a prompt, pooled over the steps that compute it.

A request for an embedding is a request of one token that nobody looks at. Runners return, for each row of
a step, the sum of its tokens' hidden states (`embedding_pooling` mean) or the last one's (last); what a
prompt's chunks bring is put together here, on the host, so that no device keeps anything between steps.
"""

import numpy as np

from .batch import ScheduleBatch, StepTokens
from .config import Pooling
from .request import Request, SamplingParams

EMBED = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True, embed=True)


def take_pooled(batch: ScheduleBatch, tokens: StepTokens, pooling: Pooling) -> None:
    """Add what a step brought to those of its requests that want it; `Request.embedding` is there once all
    of the prompt is."""
    if tokens.pooled is None:
        return
    starts = batch.kv_lens - np.diff(batch.cu_q_lens)
    for row in batch.pooled.tolist():
        request, start, end = batch.rows[row], int(starts[row]), int(batch.kv_lens[row])
        if pooling == "last":
            request.hidden_sum = tokens.pooled[row]
        elif not start:
            request.hidden_sum = tokens.pooled[row].astype(np.float64)
        elif request.hidden_sum is not None and request.num_pooled_tokens == start:
            request.hidden_sum = request.hidden_sum + tokens.pooled[row]
        else:
            continue  # in flight when the request was preempted, which computes it anew
        request.num_pooled_tokens = end
        if end == request.num_prompt_tokens:
            request.embedding = _embedding(request, pooling)


def _embedding(request: Request, pooling: Pooling) -> bytes:
    assert request.hidden_sum is not None
    count = request.num_prompt_tokens if pooling == "mean" else 1
    return (request.hidden_sum / count).astype(np.float32).tobytes()
