"""Prompt logprobs: how likely each token of a prompt was, given those before it.

They need no path of their own. Logits at a prompt position are wanted as those of a last token are; what
follows is not sampled there but given by the prompt, and goes into no slot. As many positions may be wanted
in a step as there can be rows: a chunk of a prompt that is scored ends where they do.
"""

from .batch import ScheduleBatch, StepTokens
from .outputs import TokenOutput
from .request import Request


def scored_positions(request: Request, start: int, end: int) -> range:
    """Those of the positions `[start, end)` whose logits tell how likely the prompt's next token was, and for
    which that is wanted and not known yet."""
    if request.params.prompt_logprobs is None:
        return range(0)
    return range(max(start, _first(request)), min(end, request.num_prompt_tokens - 1))


def num_reusable(request: Request) -> int:
    """How many of the known tokens may come from the cache: of those after, more than their KV is wanted."""
    if request.whole:
        return 0
    last = request.num_tokens - 1  # its logits give the next token
    first = _first(request)
    scored = request.params.prompt_logprobs is None or first >= request.num_prompt_tokens - 1
    return last if scored else first


def take_prompt_logprobs(batch: ScheduleBatch, tokens: StepTokens) -> list[TokenOutput]:
    """Add what a step brought to its requests. Returns the outputs of those that now have all of theirs."""
    outputs = []
    given = (batch.sampling.given_ids >= 0).nonzero()[0].tolist()
    for index in given:
        request, position = batch.sampled[index], int(batch.sampling.indices[index]) - 1
        if request.finished:
            continue
        assert position == _first(request), "prompt logprobs come in order, each once"
        params = request.params
        assert params.prompt_logprobs is not None
        found = tokens.logprobs_of(index, params.prompt_logprobs, len(params.logprob_token_ids))
        request.prompt_logprobs.append(found)
        request.num_scored += 1
        if position == request.num_prompt_tokens - 2:
            output = TokenOutput.of(request, [])
            output.prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, []
            outputs.append(output)
    return outputs


def _first(request: Request) -> int:
    """The first position that is still to be scored."""
    return request.params.prompt_logprob_start + request.num_scored
