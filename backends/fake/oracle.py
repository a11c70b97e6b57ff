"""What the fake runner must answer, computed from token lists alone: no pages, no batches, no numpy."""

from collections.abc import Callable, Collection, Sequence


def expected_tokens(
    prompt: Sequence[int],
    count: int,
    vocab_size: int,
    *,
    seed: int | None = None,
    eos_token_id: int = 0,
    eos_every: int = 0,
    stop: Collection[int] = (),
    min_new_tokens: int = 0,
    allowed: Callable[[Sequence[int]], Collection[int]] | None = None,
) -> list[int]:
    """Up to `count` tokens after `prompt`; the first of `stop` ends them. `seed` None is greedy. `allowed`
    tells what may follow an output."""
    tokens = [int(token) for token in prompt]
    weighted = sum((token + 1) * place for place, token in enumerate(tokens, 1))
    output: list[int] = []
    while len(output) < count:
        value = weighted + 31 * tokens[-1] + 7 * (len(tokens) - 1)
        if seed is not None:
            value += 7919 * seed + 104729 * len(tokens)
        token = value % vocab_size
        if eos_every and value // vocab_size % eos_every == 0:
            token = eos_token_id
        may_come = range(vocab_size) if allowed is None else allowed(output)
        while token not in may_come or (token in stop and len(output) < min_new_tokens):
            token = (token + 1) % vocab_size
        output.append(token)
        tokens.append(token)
        weighted += (token + 1) * len(tokens)
        if token in stop:
            break
    return output


def expected_embedding(prompt: Sequence[int], *, mean: bool) -> list[float]:
    """The pooled hidden states of `prompt`: the last token's, or the mean of all."""
    total, states = 0, []
    for place, token in enumerate(prompt, 1):
        total += (int(token) + 1) * place
        states.append([total % 7, total % 11, total % 13, total % 1009])
    return (
        [sum(column) / len(states) for column in zip(*states, strict=True)]
        if mean
        else [float(each) for each in states[-1]]
    )


def expected_prompt_logprobs(
    prompt: Sequence[int], vocab_size: int, *, top: int = 0, asked: Sequence[int] = ()
) -> list[tuple[float, list[int], list[float]]]:
    """Of each token after the first: its log probability, the `top` likeliest ids, and those of `asked`."""
    found = []
    for place in range(1, len(prompt)):
        (likeliest,) = expected_tokens(prompt[:place], 1, vocab_size)

        def logprob(token: int, likeliest: int = likeliest) -> float:
            return -0.5 - (token - likeliest) % vocab_size

        likely = [(likeliest + rank) % vocab_size for rank in range(top)]
        found.append((logprob(int(prompt[place])), likely, [logprob(token) for token in asked]))
    return found
